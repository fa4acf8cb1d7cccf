from __future__ import annotations

import asyncio
import json
from importlib.resources import files

import cohere
import httpx
import numpy as np
import pytest
from texts import TEXTS

from searchkit.models.embedder import Embedder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the client's own


def test_documents_are_ordered_by_their_cosine(server) -> None:
    embedder = Embedder("builtin")
    expected = (1 + embedder.encode_passages(TEXTS) @ embedder.encode_queries(["cheese and wine"])[0]) / 2
    for version in (cohere.Client, cohere.ClientV2):
        with httpx.Client() as connection:
            client = version("none", base_url=server.address, httpx_client=connection)
            answer = client.rerank(model="builtin", query="cheese and wine", documents=TEXTS, top_n=5)
        assert [result.index for result in answer.results] == np.argsort(-expected)[:5].tolist()
        scores = [result.relevance_score for result in answer.results]
        np.testing.assert_allclose(scores, np.sort(expected)[::-1][:5], atol=1e-6)


def test_the_asynchronous_client_gets_the_same(server, client) -> None:
    async def ask() -> list[int]:
        async with httpx.AsyncClient() as connection:
            api = cohere.AsyncClientV2("none", base_url=server.address, httpx_client=connection)
            return [each.index for each in (await api.rerank(model="builtin", query="tea", documents=TEXTS)).results]

    expected = client.post("/v2/rerank", json={"query": "tea", "documents": TEXTS}).json()["results"]
    assert asyncio.run(ask()) == [each["index"] for each in expected]


def test_another_instruction_gives_another_order(client) -> None:
    """Queries of one text with different instructions, as in corpora/intents."""
    folder = files("searchkit.corpora") / "intents"
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
    support, refute = (
        next(q for q in queries if q["_id"] == f"afternoon-nap-{kind}") for kind in ("support", "refute")
    )
    assert support["text"] == refute["text"]
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text("utf-8").splitlines()][:60]
    orders = []
    for query in (support, refute):
        body = {
            "query": query["text"],
            "documents": [each["text"] for each in corpus],
            "instruction": query["instruction"],
        }
        orders.append([each["index"] for each in client.post("/v1/rerank", json=body).json()["results"]])
    assert orders[0] != orders[1]


def test_the_answer_says_what_scored_and_returns_documents(client) -> None:
    body = {
        "query": "tea",
        "documents": [{"text": "green tea"}, "coal"],
        "return_documents": True,
        "instruct": "Find it",
    }
    answer = client.post("/v2/rerank", json=body).json()
    assert answer["scored_by"] == "bi-encoder"
    assert answer["results"][0]["document"] == {"text": "green tea"}
    assert answer["meta"]["api_version"] == {"version": "2"}


def test_documents_are_cut_at_so_many_tokens(client) -> None:
    whole, cut = "green tea and a lot of coal", "green tea"
    scores = [
        client.post("/v1/rerank", json={"query": "tea", "documents": [text], "max_tokens_per_doc": tokens}).json()
        for text, tokens in ((whole, 2), (cut, 100))
    ]
    assert scores[0]["results"] == scores[1]["results"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"documents": []}, "1 to 2048"),
        ({"documents": ["a", ""]}, "document 2 is empty"),
        ({"documents": ["a"] * 2049}, "1 to 2048"),
        ({"query": ""}, "query is empty"),
        ({"top_n": 0}, "top_n"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"model": "rerank-v3.5"}, "this service has builtin"),
    ],
)
def test_mistakes_are_explained(client, fields, message) -> None:
    response = client.post("/v2/rerank", json={"query": "tea", "documents": ["tea"], **fields})
    assert response.status_code in (400, 404)
    assert message in response.json()["message"]
