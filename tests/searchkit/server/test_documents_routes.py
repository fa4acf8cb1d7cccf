from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import KEYS

from searchkit.engine import SearchEngine
from searchkit.records import Document

WRITE = {"Authorization": f"Bearer {KEYS.write[0]}"}


@pytest.fixture
def writer(serve, tmp_path: Path) -> Iterator[httpx.Client]:
    folder = tmp_path / "live.index"
    with SearchEngine.create(folder, model="builtin") as engine:
        engine.add([Document("1", "Old tea.", metadata={"n": 1})])
    with httpx.Client(base_url=serve(folder, keys=KEYS).address, headers=WRITE, timeout=30) as client:
        yield client


def ids(client: httpx.Client, query: str) -> list[str]:
    return [hit["id"] for hit in client.get("/indexes/live/search", params={"query": query}).json()["hits"]]


def test_a_document_is_put_found_replaced_and_deleted(writer) -> None:
    path = "/indexes/live/documents/a/b"
    first = writer.put(path, json={"text": "A quince tree.", "metadata": {"n": 2}}).json()
    assert (first["added"], first["updated"]) == (1, 0)
    assert ids(writer, "quince")[0] == "a/b"
    second = writer.put(path, json={"text": "A pear tree."}).json()
    assert (second["added"], second["updated"]) == (0, 1)
    assert second["commit"] > first["commit"]
    assert writer.get(path).json()["text"] == "A pear tree."
    assert writer.put(path, json={"text": "A pear tree."}).json()["unchanged"] == 1
    deleted = writer.delete(path).json()
    assert deleted["deleted"] == 1
    assert writer.get("/indexes/live").json()["commit"] == deleted["commit"]
    assert ids(writer, "pear") == ["1"]
    assert writer.delete(path).status_code == 404


def test_a_refused_document_does_not_spoil_the_others(writer) -> None:
    documents = [{"id": "2", "text": "Coal."}, {"id": "1", "text": "Other tea."}, {"id": "3"}]
    answer = writer.post("/indexes/live/documents", json={"documents": documents}).json()
    assert answer["added"] == 1
    assert [each["id"] for each in answer["refused"]] == ["1", "3"]
    answer = writer.post("/indexes/live/documents", json={"documents": documents[1:2], "update": True}).json()
    assert answer["updated"] == 1
    response = writer.post("/indexes/live/documents", json={"documents": documents[2:]})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "documents_refused")
    assert response.json()["error"]["message"] == "document '3': there is neither text nor title"


def test_documents_are_deleted_by_ids_and_by_a_filter(writer) -> None:
    documents = [{"id": str(n), "text": f"Text {n}.", "metadata": {"n": n}} for n in range(2, 9)]
    writer.post("/indexes/live/documents", json={"documents": documents})
    answer = writer.post("/indexes/live/delete", json={"ids": ["2", "none"], "where": {"n": {"$gte": 7}}}).json()
    assert (answer["deleted"], answer["unknown"]) == (3, ["none"])
    assert writer.post("/indexes/live/delete", json={}).status_code == 400
    assert writer.get("/indexes/live").json()["documents"] == 5


def test_another_writer_makes_the_service_wait(writer, tmp_path: Path) -> None:
    with SearchEngine.open(tmp_path / "live.index", writable=True):
        response = writer.put("/indexes/live/documents/2", json={"text": "Coal."})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "index_busy"
    assert int(response.headers["retry-after"]) >= 1
    assert writer.put("/indexes/live/documents/2", json={"text": "Coal."}).status_code == 200


@pytest.mark.parametrize(
    "document",
    [
        {"text": "nul \0"},
        {"text": "x", "metadata": {"n": 2**70}},
        {"text": "x", "metadata": []},
        {"text": 7},
        {"text": " "},
        {"text": "x", "titel": "y"},
    ],
)
def test_bad_documents_are_refused(writer, document) -> None:
    response = writer.put("/indexes/live/documents/2", json=document)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_an_index_that_was_built_anew_is_served_without_a_restart(writer, tmp_path: Path) -> None:
    assert ids(writer, "tea") == ["1"]
    folder = tmp_path / "live.index"
    shutil.rmtree(folder)
    assert ids(writer, "tea") == ["1"]  # until there is another
    with SearchEngine.create(folder, model="builtin") as engine:
        engine.add([Document("new", "New tea.")])
    assert ids(writer, "tea") == ["new"]
    assert writer.get("/indexes/live/documents/1").status_code == 404
    writer.put("/indexes/live/documents/2", json={"text": "Coal."})
    assert writer.get("/indexes/live/documents/2").json()["text"] == "Coal."
    assert writer.get("/readyz").status_code == 200


def test_an_index_of_another_model_needs_a_restart_and_the_service_says_so(writer, tmp_path: Path) -> None:
    folder = tmp_path / "live.index"
    folder.rename(tmp_path / "before.index")
    with SearchEngine.create(folder, dim=2, vectors_from="m") as engine:
        engine.add([Document("new", "New tea.")], vectors=[[1.0, 0.0]])
    writer.get("/indexes/live/search", params={"query": "tea"})
    ready = writer.get("/readyz")
    assert ready.status_code == 503
    assert "live has been replaced, and the service has to be restarted" in ready.json()["failures"]["index live"]
    shutil.rmtree(folder)
    (tmp_path / "before.index").rename(folder)
    assert ids(writer, "tea") == ["1"]
