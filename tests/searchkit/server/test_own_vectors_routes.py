"""An index of vectors that its users made, served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import KEYS

from searchkit.engine import SearchEngine
from searchkit.records import Document

WRITE = {"Authorization": f"Bearer {KEYS.write[0]}"}
EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


@pytest.fixture
def client(serve: Any, tmp_path: Path) -> Iterator[httpx.Client]:
    folder = tmp_path / "own.index"
    with SearchEngine.create(folder, dim=2, similarity="euclidean") as engine:
        documents = [Document("east", "green tea"), Document("north", "black tea"), Document("bare", "herbs")]
        engine.add(documents, vectors=[EAST, NORTH, None])
    with httpx.Client(base_url=serve(folder, keys=KEYS).address, headers=WRITE, timeout=30) as client:
        yield client


def search(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.post("/indexes/own/search", json=body).json()
    return answer


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


def test_a_search_takes_a_vector(client: httpx.Client) -> None:
    answer = search(client, vector=EAST)
    assert (ids(answer), answer["mode"], answer["model"]) == (["east", "north"], "dense", None)
    assert answer["hits"][0]["score"] == 0
    answer = search(client, query="herbs", vector=NORTH)
    assert answer["mode"] == "hybrid"
    assert set(ids(answer)) == {"north", "east", "bare"}
    answer = search(client, query="herbs")
    assert (ids(answer), answer["mode"]) == (["bare"], "lexical")
    answer = search(client, queries=[{"vector": EAST}, {"vector": NORTH}], k=1)
    assert [ids(result) for result in answer["results"]] == [["east"], ["north"]]
    assert ids(search(client, similar_to="east")) == ["north"]


def test_what_is_refused(client: httpx.Client) -> None:
    for body, said in (
        ({"query": "herbs", "mode": "dense"}, "no model to embed"),
        ({"vector": [1.0]}, "vector has dimension 1; expected dimension 2, as in the index"),
        ({"vector": EAST, "mode": "lexical"}, "needs the text"),
        ({"vector": EAST, "similar_to": "east"}, "vector goes with query, or alone"),
        ({"queries": [{"vector": EAST}, "tea"]}, "has no vector, and others have one"),
        ({}, "give exactly one"),
    ):
        response = client.post("/indexes/own/search", json=body)
        assert response.status_code == 400
        assert said in response.json()["error"]["message"]
    response = client.post("/v1/embeddings", json={"input": "tea", "model": "builtin"})
    assert response.status_code == 404
    assert "users made the vectors" in response.json()["error"]["message"]


def test_documents_bring_their_vectors(client: httpx.Client) -> None:
    documents = [{"id": "west", "text": "coffee", "vector": [-1, 0]}, {"id": "wide", "text": "x", "vector": [1, 2, 3]}]
    answer = client.post("/indexes/own/documents", json={"documents": documents}).json()
    assert answer["added"] == 1
    assert "vector has dimension 3" in answer["refused"][0]["message"]
    assert ids(search(client, vector=[-1, 0], k=1)) == ["west"]
    assert client.get("/indexes/own/documents/west").json()["vector"] == [-1, 0]
    assert client.put("/indexes/own/documents/west", json={"text": "coffee"}).json()["updated"] == 1
    assert ids(search(client, vector=[-1, 0], k=1)) == ["north"]
    assert "west" in ids(search(client, query="coffee"))


def test_it_is_ready_and_described(client: httpx.Client) -> None:
    assert client.get("/readyz").json() == {"status": "ok"}
    described = client.get("/indexes/own").json()
    assert (described["dim"], described["model"]) == (2, None)
    assert client.get("/v1/models").json()["data"] == []
