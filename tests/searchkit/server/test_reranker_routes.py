"""A service with a reranker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cohere
import httpx
import numpy as np
import pytest
from rerankers import build_reranker
from serving import running
from texts import TEXTS

from searchkit.models.reranker import Reranker
from searchkit.server.settings import Settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reranker(tmp_path_factory.mktemp("models") / "yes-or-no", "qwen3-lm")


@pytest.fixture(scope="module")
def reranking(notes: Path, model: Path) -> Iterator[httpx.Client]:
    with (
        running(Settings((notes,), port=0, rerank=str(model), device="cpu")) as server,
        httpx.Client(base_url=server.address, timeout=30) as client,
    ):
        yield client


def test_rerank_is_scored_by_the_reranker(reranking: httpx.Client, model: Path) -> None:
    expected = Reranker(model, device="cpu").rerank("cheese and wine", TEXTS, "Find meals", top_n=5)
    with httpx.Client() as connection:
        api = cohere.ClientV2("none", base_url=str(reranking.base_url), httpx_client=connection)
        answer = api.rerank(model="yes-or-no", query="cheese and wine", documents=TEXTS, top_n=5,
                            request_options={"additional_body_parameters": {"instruction": "Find meals"}})  # fmt: skip
    assert [(each.index, each.relevance_score) for each in answer.results] == [
        (index, pytest.approx(score, abs=1e-6)) for index, score in expected
    ]
    body = {"query": "tea", "documents": TEXTS}
    names = [reranking.post("/v1/rerank", json=body | more).json() for more in ({}, {"model": "builtin"})]
    assert [(each["model"], each["scored_by"]) for each in names] == [
        ("yes-or-no", "cross-encoder"),
        ("builtin", "bi-encoder"),
    ]
    assert reranking.post("/v1/rerank", json=body | {"model": "nobody"}).status_code == 404


def test_documents_are_shortened_in_the_rerankers_tokens(reranking: httpx.Client, model: Path) -> None:
    body = {"query": "tea", "documents": ["Sailors found their latitude."], "max_tokens_per_doc": 2}
    score = reranking.post("/v2/rerank", json=body).json()["results"][0]["relevance_score"]
    reranker = Reranker(model, device="cpu")
    short = body["documents"][0][: reranker.offsets(body["documents"][0])[1][1]]
    assert 0 < len(short) < 25
    assert score == pytest.approx(reranker.scores("tea", [short])[0], abs=1e-6)


def test_a_search_is_reranked_where_it_asks_for_it(reranking: httpx.Client, model: Path) -> None:
    body = {"query": "why does bread rise", "k": 30, "instruction": "Find recipes"}
    plain = reranking.post("/indexes/notes/search", json=body).json()["hits"]
    answer = reranking.post("/indexes/notes/search", json=body | {"rerank": True, "k": 4, "rerank_depth": 30}).json()
    assert "rerank_ms" in answer["timings"]
    texts = [f"{hit['title']} {hit['text']}" for hit in plain]
    scores = Reranker(model, device="cpu").scores(body["query"], texts, "Find recipes")
    order = np.argsort(-scores, kind="stable")[:4]
    assert [hit["id"] for hit in answer["hits"]] == [plain[n]["id"] for n in order]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(scores[order].tolist(), abs=1e-6)
    link = reranking.get(
        "/indexes/notes/search",
        params={"query": body["query"], "instruction": "Find recipes", "k": 4, "rerank": True, "rerank_depth": 30},
    )
    assert link.json()["hits"] == answer["hits"]


def test_too_much_to_rerank_and_no_reranker_are_clear(reranking: httpx.Client, client: httpx.Client) -> None:
    search = "/indexes/notes/search"
    for asked, body, message in (
        (client, {"query": "tea", "rerank": True}, "start it with --rerank MODEL"),
        (reranking, {"queries": ["tea"] * 30, "rerank": True}, "30 queries with 50 hits each are too many to rerank"),
        (reranking, {"similar_to": "1", "rerank": True}, "omit rerank"),
    ):
        answer = asked.post(search, json=body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
    assert reranking.post(search, json={"query": "tea", "rerank": True, "rerank_depth": 201}).status_code in (400, 422)
