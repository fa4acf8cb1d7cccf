from __future__ import annotations

import asyncio
import base64
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.tasks import get_task

INSTRUCTION = "Given a claim, find documents that refute the claim"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder("builtin")


@pytest.fixture(scope="module")
def api(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as api:
        yield api


def vectors(response: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    return np.array([item.embedding for item in response.data], np.float32)


def test_vectors_are_the_embedders(api, embedder) -> None:
    response = api.embeddings.create(model="builtin", input=TEXTS)
    np.testing.assert_allclose(vectors(response), embedder.encode_passages(TEXTS), atol=1e-6)
    assert response.usage.prompt_tokens == sum(embedder.passage_tokens(TEXTS))
    assert [item.index for item in response.data] == list(range(len(TEXTS)))


def test_the_asynchronous_client_gets_the_same(server, embedder) -> None:
    async def ask() -> list[np.ndarray]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none") as api:
            calls = (api.embeddings.create(model="builtin-query", input=text) for text in TEXTS)
            return [vectors(response)[0] for response in await asyncio.gather(*calls)]

    np.testing.assert_allclose(np.stack(asyncio.run(ask())), embedder.encode_queries(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "fields", "instruction"),
    [
        ("builtin-query", {}, None),
        ("builtin", {"input_type": "query"}, None),
        ("builtin", {"input_type": "search_query"}, None),
        ("builtin", {"instruction": INSTRUCTION}, INSTRUCTION),
        ("builtin-query", {"instruct": INSTRUCTION, "input_type": "query"}, INSTRUCTION),
        ("builtin", {"task": "scifact"}, get_task("scifact").instruction),
    ],
)
def test_queries_get_their_instruction(api, embedder, model, fields, instruction) -> None:
    response = api.embeddings.create(model=model, input="is tea healthy", extra_body=fields)
    np.testing.assert_allclose(vectors(response), embedder.encode_queries(["is tea healthy"], instruction), atol=1e-6)


def test_each_input_may_have_its_own_instruction(api, embedder) -> None:
    fields = {"instruction": [INSTRUCTION, "", None]}
    response = api.embeddings.create(model="builtin", input=["tea"] * 3, extra_body=fields)
    expected = np.concatenate([embedder.encode_queries(["tea"], each) for each in (INSTRUCTION, "", None)])
    np.testing.assert_allclose(vectors(response), expected, atol=1e-6)


def test_base64_equals_floats_bit_for_bit(client) -> None:
    body = {"input": TEXTS[:3], "model": "builtin"}
    floats = client.post("/v1/embeddings", json=body).json()["data"]
    coded = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"]
    for plain, packed in zip(floats, coded, strict=True):
        assert np.array(plain["embedding"], "<f4").tobytes() == base64.b64decode(packed["embedding"])


def test_2048_inputs_in_one_call(api, embedder) -> None:
    texts = [f"{number} cups of tea" for number in range(2048)]
    np.testing.assert_allclose(
        vectors(api.embeddings.create(model="builtin", input=texts))[::100],
        embedder.encode_passages(texts[::100]),
        atol=1e-6,
    )
    with pytest.raises(openai.BadRequestError, match="at most 2048"):
        api.embeddings.create(model="builtin", input=[*texts, "one more"])


def test_a_text_that_is_too_long_is_truncated_and_named(client, embedder) -> None:
    long = "word " * 200_000  # a megabyte
    answer = client.post("/v1/embeddings", json={"input": ["tea", long]}).json()
    assert answer["truncated"] == [1]
    expected = embedder.encode_passages([long])[0]
    np.testing.assert_allclose(np.array(answer["data"][1]["embedding"]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": ""}, "empty"),
        ({"input": []}, "empty"),
        ({"input": ["tea", ""]}, "input 2 is empty"),
        ({"input": [1, 2, 3]}, "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, "check_embedding_ctx_length=False"),
        ({"input": ["tea", 3]}, "input 2 is not a string"),
        ({"input": {"a": 1}}, "expected a string"),
        ({"input": None}, "expected a string"),
        ({"input": "tea", "dimensions": 5}, "was trained for 384"),
        ({"input": "tea", "dimensions": -1}, "dimensions"),
        ({"input": "tea", "encoding_format": "hex"}, "base64"),
        ({"input": "tea", "instructon": "x"}, "instructon"),
        ({"input": "tea", "instruction": "x", "task": "web"}, "more than one"),
        ({"input": "tea", "instruction": "x", "input_type": "document"}, "only queries"),
        ({"input": "tea", "instruction": ["x", "y"]}, "2 instructions came for 1"),
        ({"input": "tea", "instruction": "word " * 400}, "the instruction takes 402 of 256 tokens"),
        ({"input": "tea", "task": "nonesuch"}, "known tasks"),
        ({"input": "tea", "model": None, "user": 3}, "user"),
    ],
)
def test_mistakes_are_told_in_openai_s_form(client, fields, message) -> None:
    response = client.post("/v1/embeddings", json={"model": "builtin", **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert {"param", "code"} <= error.keys()


def test_an_unknown_model_is_not_found(api) -> None:
    with pytest.raises(openai.NotFoundError, match="this service has builtin, builtin-query"):
        api.embeddings.create(model="text-embedding-3-small", input="tea")


def test_models_are_listed(api) -> None:
    assert [model.id for model in api.models.list()] == ["builtin", "builtin-query"]
    assert api.models.retrieve("builtin-query").id == "builtin-query"
    with pytest.raises(openai.NotFoundError, match="this service has builtin"):
        api.models.retrieve("gpt-4")


def test_full_width_may_be_requested(api) -> None:
    response = api.embeddings.create(model="builtin", input="tea", dimensions=384, user="someone")
    assert math.isclose(np.linalg.norm(vectors(response)), 1, abs_tol=1e-5)


def test_one_bad_text_spoils_nobody_s_answer(serve, monkeypatch) -> None:
    server = serve()
    embedder = server.config.app.state.service.models["builtin"].embedder
    whole = embedder.encode_tokens
    bad = embedder.tokenize(["poison"])[0]

    def failing(tokens: list[list[int]], instructions: Sequence[str]) -> np.ndarray:
        if bad in tokens:
            raise RuntimeError("the graph failed")
        return whole(tokens, instructions)

    monkeypatch.setattr(embedder, "encode_tokens", failing)

    async def ask() -> list[object]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as api:
            texts = ["tea", "poison", *TEXTS]
            calls = (api.embeddings.create(model="builtin", input=text) for text in texts)
            return await asyncio.gather(*calls, return_exceptions=True)

    good, poisoned, *others = asyncio.run(ask())
    assert isinstance(poisoned, openai.InternalServerError)
    assert not any(isinstance(each, Exception) for each in (good, *others))


def test_models_of_two_runs_of_adapt_go_by_their_runs(serve, mistral: Path, tmp_path: Path) -> None:
    for name, length in (("tea", 64), ("coffee", 32)):
        model = shutil.copytree(mistral, tmp_path / f"{name}.adapted" / "model")
        with SearchEngine.create(tmp_path / f"{name}.index", model=Embedder(model, max_length=length)) as engine:
            engine.add([Document("1", TEXTS[0])])
    server = serve(tmp_path / "tea.index", tmp_path / "coffee.index")
    models = [model["id"] for model in httpx.get(f"{server.address}/v1/models").json()["data"]]
    assert models == ["tea.adapted", "tea.adapted-query", "coffee.adapted", "coffee.adapted-query"]
    answer = httpx.post(f"{server.address}/v1/embeddings", json={"input": "tea"})
    assert "the request names no model; this service has tea.adapted, " in answer.json()["message"]
