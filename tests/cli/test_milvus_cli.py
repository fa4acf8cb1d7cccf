"""The commands take a collection in Milvus in place of a folder, and say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import call, write_lines
from milvus import collection_at, drop
from serving import KEYS, running
from texts import SENTENCES

from searchkit.remote.address import parse_milvus
from searchkit.server.settings import Settings

pytest.importorskip("pymilvus")

ROWS = [{"id": str(n), "text": text, "metadata": {"n": n}} for n, text in enumerate(SENTENCES)]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("milvus")
    index, address = folder / "x.index", collection_at(folder)
    call("index", write_lines(folder / "x.jsonl", ROWS), "--index", index)
    printed = call("push", index, address).stdout
    assert f"{parse_milvus(address)}: 10 documents, 10 passages, index FLAT; 10 written" in printed
    write_lines(folder / "q.jsonl", [{"id": f"q{n}", "text": text} for n, text in enumerate(SENTENCES)])
    (folder / "q.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\t{n}\t1\n" for n in range(10)))
    yield folder, address
    drop(address)


@pytest.fixture
def other(pushed: tuple[Path, str]) -> Iterator[tuple[Path, str]]:
    """A collection to change."""
    folder, _ = pushed
    address = collection_at(folder)
    call("push", folder / "x.index", address, "--index-type", "HNSW")
    yield folder, address
    drop(address)


def printed(*arguments: object) -> Any:
    return json.loads(call(*arguments, "--format", "json").stdout)


@pytest.mark.parametrize(
    "options", [[], ["--mode", "dense", "--instruction", "Find it", "--where", '{"n": {"$lt": 5}}']]
)
def test_search_prints_what_it_prints_for_the_folder(pushed: tuple[Path, str], options: list[str]) -> None:
    folder, address = pushed
    here, there = (
        printed("search", place, "bread", "-k", 2, "--facet", "n", *options) for place in (folder / "x.index", address)
    )
    assert [hit["id"] for hit in here["hits"]] == [hit["id"] for hit in there["hits"]]
    assert here["facets"] == there["facets"]


def test_notes_about_filters_and_facets(pushed: tuple[Path, str]) -> None:
    _, address = pushed
    result = call("search", address, "bread", "--where", '{"m": 3}', "--facet", "k", "-k", 1)
    assert (
        'no document has the key "m", so the filter\'s condition on it matches nothing; keys are n (integer)'
        in result.stderr
    )
    assert 'no document has the key "k"' in result.stderr


def test_evaluate_and_compare(pushed: tuple[Path, str]) -> None:
    folder, address = pushed
    judged = ["--queries", folder / "q.jsonl", "--qrels", folder / "q.tsv"]
    here, there = (printed("evaluate", place, *judged) for place in (folder / "x.index", address))
    assert {mode: values["ndcg@10"] for mode, values in here.items()} == {
        mode: values["ndcg@10"] for mode, values in there.items()
    }
    assert there["dense"]["bytes_per_document"] is None
    compared = printed("compare", f"folder={folder / 'x.index'}", f"milvus={address}", *judged, "--modes", "dense")
    assert compared["differences"][0]["difference"] == 0
    refused = call("compare", address, *judged, "--dims", "128,64", code=1)
    assert "is on a server: its vectors can be cut" in refused.stderr


def test_documents_are_added_updated_and_deleted(other: tuple[Path, str]) -> None:
    folder, address = other
    more = write_lines(folder / "more.jsonl", [*ROWS[:2], {"id": "new", "text": "Green tea is not fermented."}])
    report = printed("add", address, more)
    assert (report["documents"], report["unchanged"], report["total"]) == (1, 2, 11)
    assert printed("search", address, "tea", "-k", 1, "--mode", "lexical")["hits"][0]["id"] == "new"
    changed = write_lines(folder / "changed.jsonl", [{"id": "new", "text": "Black tea is."}])
    assert "in the index with other content" in call("add", address, changed, code=1).stderr
    assert printed("update", address, changed)["updated"] == 1
    assert printed("get", address, "new")["text"] == "Black tea is."
    assert printed("similar", address, "new", "-k", 3)["hits"]
    assert printed("delete", address, "new", "none") == {
        "index": str(parse_milvus(address)), "deleted": 1, "total": 10, "unknown": ["none"], "dry_run": False,
    }  # fmt: skip
    refused = call("push", folder / "x.index", address, code=1)
    assert "was changed by itself" in refused.stderr
    assert printed("push", folder / "x.index", address, "--overwrite")["documents"] == 10


def test_a_service_searches_and_changes_it(other: tuple[Path, str]) -> None:
    _, address = other
    place = parse_milvus(address)
    name, reading, writing = place.collection, *({"Authorization": f"Bearer {k[0]}"} for k in (KEYS.read, KEYS.write))
    with (
        running(Settings((place,), port=0, keys=KEYS)) as server,
        httpx.Client(base_url=server.address, timeout=30) as client,
    ):
        listed = client.get(f"/indexes/{name}", headers=reading).json()
        assert (listed["documents"], listed["recipe"]) == (10, "HNSW")
        assert listed["metadata"]["n"]["types"] == {"integer": 10}
        body = {"query": "bread", "k": 1, "where": {"n": {"$lt": 5}}, "explain": True, "facets": ["n"]}
        found = client.post(f"/indexes/{name}/search", json=body, headers=reading).json()
        assert found["hits"][0]["id"] == "1"
        added = {"documents": [{"id": "new", "text": "Green tea is not fermented."}]}
        assert client.post(f"/indexes/{name}/documents", json=added, headers=writing).status_code == 200
        assert client.get(f"/indexes/{name}/documents/new", headers=reading).json()["text"].startswith("Green tea")
        found = client.post(f"/indexes/{name}/search", json={"query": "green tea", "k": 1}, headers=reading).json()
        assert found["hits"][0]["id"] == "new"


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["search", "milvus://host/9", "x"], 2, "cannot name a collection"),
        (["search", "milvus:none.db/papers", "x"], 1, "there is no such file; put an index there with: searchkit push"),
        (["compact", "milvus:none.db/papers"], 2, "works on an index folder"),
        (["push", "x.index", "papers"], 2, "x.index"),
        (["push", "none.index", "milvus:none.db/papers"], 2, "none.index"),
        (["search", "milvus://127.0.0.1:1/papers?timeout=0.5", "x"], 1, "cannot be connected to"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], code: int, part: str) -> None:
    assert part in call(*arguments, code=code).stderr
