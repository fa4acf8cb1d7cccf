"""A push makes a collection of an index folder, whatever interrupts it, and brings it in step after changes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Words
from milvus import VARIABLE, collection_at, drop

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.indexer.vectors.recipes import Tuning, plan
from searchkit.records import Document
from searchkit.remote.address import parse_milvus
from searchkit.remote.client import Client, library
from searchkit.remote.engine import MilvusEngine
from searchkit.remote.kinds import Kind, check_built, chosen_kind, kind_of
from searchkit.remote.push import push

pytest.importorskip("pymilvus")

KILLS = int(os.environ.get("SEARCHKIT_KILLS", "1"))
"""Processes that are killed; SEARCHKIT_KILLS=20 takes minutes."""
WIDTH = 8


def documents(count: int, first: int = 0) -> list[Document]:
    return [Document(f"d{n}", f"word{n % 7} number {n}", metadata={"n": n}) for n in range(first, first + count)]


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    address = collection_at(tmp_path)
    yield address
    drop(address)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SearchEngine]:
    with SearchEngine.create(tmp_path / "x.index", dim=WIDTH) as engine:
        engine.add(documents(30), vectors=vectors(30))
        engine.delete(["d4", "d29"])
        yield engine


@contextmanager
def opened(address: str, *, writable: bool = False) -> Iterator[MilvusEngine]:
    with MilvusEngine.open(address, writable=writable) as engine:
        yield engine


def check_equal(folder: SearchEngine, address: str) -> None:
    """The collection holds what the folder does, and ranks alike."""
    with opened(address) as engine:
        assert list(engine.documents(vectors=True)) == list(folder.documents(vectors=True))
        assert (len(engine), engine.passages) == (len(folder), folder.passages)
        assert engine.collection.count("row >= 0") == folder.passages
        queries = vectors(5, seed=9)
        here, there = (place.search_many(vectors=queries, k=8) for place in (folder, engine))
        assert [[hit.id for hit in hits] for hits in there] == [[hit.id for hit in hits] for hits in here]


def test_a_push_is_whole_and_pushing_again_writes_nothing(folder: SearchEngine, address: str) -> None:
    report = push(folder, parse_milvus(address))
    assert (report.documents, report.passages, report.written, report.compared) == (28, 28, 28, 28)
    assert report.kind == "FLAT"
    check_equal(folder, address)
    again = push(folder, parse_milvus(address))
    assert (again.written, again.removed, again.compared) == (0, 0, 28)


def test_only_what_has_changed_is_pushed(folder: SearchEngine, address: str) -> None:
    push(folder, parse_milvus(address))
    folder.add(documents(3, first=50), vectors=vectors(3, seed=1))
    folder.add([replace(documents(1, first=7)[0], text="changed")], vectors=vectors(1, seed=2), update=True)
    folder.delete(["d1", "d2", "d51"])
    report = push(folder, parse_milvus(address))
    assert (report.written, report.removed) == (3, 3)  # d50, d52, d7; d1, d2 and what d7 was
    check_equal(folder, address)
    with opened(address) as engine:
        assert [hit.id for hit in engine.search("changed", mode="lexical")] == ["d7"]


def test_a_compacted_folder_is_compared_row_by_row(folder: SearchEngine, address: str) -> None:
    push(folder, parse_milvus(address))
    folder.delete(["d0", "d8"])
    folder.add(documents(2, first=60), vectors=vectors(2, seed=1))
    folder.compact()
    report = push(folder, parse_milvus(address))
    assert (report.written, report.removed) == (2, 2)
    check_equal(folder, address)


class Stopped(BaseException):
    """Stands for the end of a process: nobody catches it."""


CALLS = 24
"""Requests of a first push and of one that changes something, about."""


@pytest.mark.parametrize("after", random.Random(0).sample(range(1, CALLS), 20))
def test_a_push_that_was_stopped_is_carried_on(
    folder: SearchEngine, address: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0
    call = Client.call

    def counting(self: Client, method: str, *arguments: Any, **options: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted == after:
            raise Stopped
        answer = call(self, method, *arguments, **options)
        if counted == -after:
            raise Stopped
        return answer

    monkeypatch.setattr(Client, "call", counting)
    monkeypatch.setattr("searchkit.remote.push._TOGETHER", 10)
    monkeypatch.setattr("searchkit.remote.push._ACKNOWLEDGED", 10)
    stopped = False
    try:
        push(folder, parse_milvus(address))
    except Stopped:
        stopped = True
        if after % 2:  # the folder does not wait
            folder.delete(["d3"])
            folder.add(documents(1, first=70), vectors=vectors(1, seed=1))
        push(folder, parse_milvus(address))
    folder.add(documents(2, first=80), vectors=vectors(2, seed=2))
    folder.delete(["d5"])
    if not stopped:
        counted = -1000 if counted >= after else counted
    push(folder, parse_milvus(address))
    monkeypatch.setattr(Client, "call", call)
    check_equal(folder, address)


KILLED = """
import os, sys, signal
from searchkit.engine import SearchEngine
from searchkit.remote import push as module
from searchkit.remote.address import parse_milvus
from searchkit.remote.client import Client
module._TOGETHER = module._ACKNOWLEDGED = 10
left, call = int(sys.argv[3]), Client.call
def killing(self, *arguments, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(self, *arguments, **options)
Client.call = killing
with SearchEngine.open(sys.argv[1]) as engine:
    module.push(engine, parse_milvus(sys.argv[2]))
"""


@pytest.mark.parametrize("after", [14, *random.Random(1).sample(range(2, CALLS), 19)][:KILLS])
def test_a_killed_push_is_carried_on(folder: SearchEngine, address: str, after: int) -> None:
    command = [sys.executable, "-c", KILLED, str(folder.store.folder), address, str(after)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    push(folder, parse_milvus(address))
    check_equal(folder, address)


def test_a_collection_that_is_not_whole_is_not_searched(
    folder: SearchEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Stopped

    monkeypatch.setattr("searchkit.remote.collection.Collection.build", stop)
    with pytest.raises(Stopped):
        push(folder, parse_milvus(address))
    with pytest.raises(StoreError, match=r"is not whole: a push was interrupted .* finish it with: searchkit push"):
        MilvusEngine.open(address)


def test_what_was_changed_by_itself_is_not_undone_unasked(folder: SearchEngine, address: str) -> None:
    push(folder, parse_milvus(address))
    with opened(address, writable=True) as engine:
        engine.add(documents(1, first=90), vectors=vectors(1, seed=3))
        engine.delete(["d3"])
    with pytest.raises(StoreError, match=r"was changed by itself .* --overwrite"):
        push(folder, parse_milvus(address))
    report = push(folder, parse_milvus(address), overwrite=True)
    assert (report.written, report.removed) == (1, 1)
    check_equal(folder, address)


def test_an_interrupted_change_is_undone_by_the_next_writer(
    folder: SearchEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, parse_milvus(address))
    commit = "searchkit.remote.collection.Collection.commit"

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    with opened(address, writable=True) as engine, monkeypatch.context() as patched:
        patched.setattr(commit, stop)
        with pytest.raises(Stopped):
            engine.add(documents(3, first=90), vectors=vectors(3, seed=3))
    with opened(address, writable=True) as engine:
        assert engine.collection.count("row >= 0") == folder.passages
        assert engine.add(documents(3, first=90), vectors=vectors(3, seed=3)).documents == 3
        assert len(engine) == len(folder) + 3


def test_a_second_writer_is_noticed(folder: SearchEngine, address: str) -> None:
    push(folder, parse_milvus(address))
    with opened(address, writable=True) as one, opened(address, writable=True) as other:
        one.delete(["d3"])
        with pytest.raises(StoreError, match="was changed by somebody else"):
            other.delete(["d5"])


def test_another_model_or_other_settings_are_refused(tmp_path: Path, address: str) -> None:
    class Others(Words):
        def identity(self) -> dict[str, Any]:
            return super().identity() | {"weights": "others"}

    with SearchEngine.create(tmp_path / "a.index", model=Words()) as engine:
        engine.add(documents(3))
        push(engine, parse_milvus(address))
    with pytest.raises(StoreError, match="differs from"):
        MilvusEngine.open(address, model=Others())
    with MilvusEngine.open(address, model=Words(), writable=True) as place:
        assert place.search("number 2", k=1)[0].id == "d2"
        assert place.add([Document("more", "something else")]).documents == 1
    for name, options, part in (
        ("b.index", {"model": Others()}, "with another model"),
        ("c.index", {"model": Words(), "language": "german"}, "language 'english', and .* 'german'"),
        ("d.index", {"dim": 64}, "holds vectors made by a model"),
    ):
        with (
            SearchEngine.create(tmp_path / name, **options) as engine,  # type: ignore[arg-type]
            pytest.raises(StoreError, match=part),
        ):
            push(engine, parse_milvus(address))


def test_what_searchkit_did_not_make_is_left_alone(folder: SearchEngine, address: str) -> None:
    client = Client(parse_milvus(address), create=True)
    client.call("create_collection", client.address.collection, dimension=4)
    client.close()
    for attempt in (lambda: MilvusEngine.open(address), lambda: push(folder, parse_milvus(address))):
        with pytest.raises(StoreError, match="was not made by searchkit push"):
            attempt()


def test_what_milvus_cannot_keep_is_named(tmp_path: Path, address: str) -> None:
    with SearchEngine.create(tmp_path / "a.index", dim=2) as engine:
        engine.add([Document("big", "x" * 70_000)], vectors=np.ones((1, 2)))
        with pytest.raises(InputError, match=r"document 'big': its text takes 70000 bytes, and Milvus keeps 65,535"):
            push(engine, parse_milvus(address))


# The index over the vectors


def test_recipes_become_the_index_that_is_nearest() -> None:
    def kind(recipe: str) -> Kind:
        return kind_of(plan(recipe, 64, 100_000), Tuning(probes=9, ef=100))

    assert [kind(recipe).described for recipe in ("flat", "fp16", "hnsw", "int8", "ivf-int8")] == [
        "FLAT", "FLAT", "HNSW", "IVF_SQ8", "IVF_SQ8",
    ]  # fmt: skip
    assert kind("hnsw").search == {"ef": 100}
    assert (kind("int8").build, kind("int8").search) == ({"nlist": 1}, {"nprobe": 1})
    assert (kind("ivf-int8").build, kind("ivf-int8").search) == ({"nlist": 1264}, {"nprobe": 9})
    assert kind("ivf-pq:16").described == "FAISS:IVF1264,PQ16np"
    assert kind("pq:16").codes
    with pytest.raises(InputError, match=r"no index like the recipe binary; choose one: --index-type FLAT"):
        kind("binary")
    with pytest.raises(InputError, match=r"index type 'HSNW' is unknown; expected one of FLAT, HNSW"):
        chosen_kind("HSNW", 64, 1000)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchEngine]:
    """Enough vectors for an index to be told from a scan."""
    folder = tmp_path_factory.mktemp("many")
    with SearchEngine.create(folder / "x.index", dim=WIDTH) as engine:
        engine.add((Document(str(n), "x") for n in range(2200)), vectors=vectors(2200))
        yield engine


@pytest.mark.parametrize("name", ["FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8"])
def test_what_was_asked_for_was_built(many: SearchEngine, address: str, name: str) -> None:
    assert push(many, parse_milvus(address), index_type=name).kind == name
    queries = vectors(40, seed=5)
    with opened(address) as engine:
        here, there = (place.search_many(vectors=queries, k=10) for place in (many, engine))
    expected, found = ([[hit.id for hit in hits] for hits in rankings] for rankings in (here, there))
    if name == "FLAT":
        assert found == expected
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(expected, found, strict=True)])
    assert recall >= (0.95 if name in ("FLAT", "HNSW") else 0.6)
    with pytest.raises(StoreError, match=rf"has the index {name}, not "):
        push(many, parse_milvus(address), index_type="HNSW" if name != "HNSW" else "FLAT")


@pytest.mark.skipif(VARIABLE in os.environ, reason="a server may have an index that milvus-lite lacks")
def test_an_index_that_cannot_be_loaded_is_refused(folder: SearchEngine, address: str) -> None:
    with pytest.raises(StoreError, match=r"does not build the index FAISS:Flat .* --index-type"):
        push(folder, parse_milvus(address), index_type="FAISS:Flat")


@pytest.mark.skipif(VARIABLE in os.environ, reason="a server may have an index that milvus-lite lacks")
def test_an_index_that_is_said_to_be_finished_and_is_not_is_refused(address: str) -> None:
    client = Client(parse_milvus(address), create=True)
    name = client.address.collection
    client.call("create_collection", name, dimension=WIDTH, primary_field_name="row", metric_type="IP")
    client.call("insert", name, data=[{"row": n, "vector": row} for n, row in enumerate(vectors(2100))])
    client.call("release_collection", name)
    client.call("drop_index", name, "vector")
    params = library().MilvusClient.prepare_index_params()
    params.add_index("vector", index_type="FLAT", metric_type="IP")
    client.call("create_index", name, params)
    client.call("load_collection", name)
    check_built(client, Kind("FLAT"), 2100, WIDTH)
    described = client.call("describe_index", name, "vector")
    for kind, part in (
        (Kind("HNSW"), "it describes a FLAT"),
        (Kind("FLAT", least={"nprobe": 1}, most={"nprobe": 8}), "misses nothing .* as only a scan does"),
        (Kind("FLAT", codes=True), "its scores are those of the vectors themselves, and not of codes"),
    ):
        with pytest.raises(StoreError, match=rf"says that its index .* is finished, but .*{part}"):
            check_built(client, kind, 2100, WIDTH, patience=0)
    assert described["state"] == "Finished"
    client.close()


def test_a_single_letter_is_found_as_in_the_folder(tmp_path: Path, address: str) -> None:
    texts = ["黒猫が好き", "猫と猫", "犬がいる", "책을 읽는다", "plain words"]
    with SearchEngine.create(tmp_path / "x.index", dim=WIDTH, language="none") as folder:
        folder.add([Document(str(n), text) for n, text in enumerate(texts)], vectors=vectors(len(texts)))
        push(folder, parse_milvus(address))
        with opened(address) as engine:
            for query, found in (("猫", ["1", "0"]), ("책", ["3"]), ("黒猫", ["0"]), ("plain 犬", ["2", "4"])):
                hits = engine.search(query, mode="lexical")
                assert sorted(hit.id for hit in hits) == sorted(found)
                scores = {hit.id: hit.score for hit in folder.search(query, mode="lexical")}
                assert {hit.id: hit.score for hit in hits} == pytest.approx(scores, rel=0.05)
