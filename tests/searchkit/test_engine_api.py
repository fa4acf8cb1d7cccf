"""What the Python API takes, what it refuses and in which words, and that threads may share an engine."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from forked import Words, folder_in_memory
from searching import ids
from texts import TEXTS

from searchkit import Document, Query, SearchEngine, SearchkitError, SearchOptions
from searchkit.errors import InputError, StoreError


def notes(count: int = 30) -> list[Document]:
    return [Document(str(n), TEXTS[n], f"Note {n}", {"n": n}) for n in range(count)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchEngine]:
    """The thirty notes and a long document in passages. No test changes it."""
    with SearchEngine.create(tmp_path_factory.mktemp("api") / "i", model=Words(), chunk_tokens=24, overlap=0) as made:
        made.add([*notes(), Document("long", " ".join(TEXTS[:10]), metadata={"n": 99})])
        yield made


# Arguments


REFUSED: dict[str, tuple[Callable[[SearchEngine], object], str]] = {
    "no query": (lambda e: e.search(None), "query is None; expected a string"),  # type: ignore[arg-type]
    "a number for a query": (lambda e: e.search(5), "query is 5; expected a string"),  # type: ignore[arg-type]
    "a list for a query": (lambda e: e.search(["tea"]), "query is a list"),  # type: ignore[arg-type]
    "an empty query": (lambda e: e.search(""), "a query is empty; write what to search for"),
    "a query without text": (lambda e: e.search(Query("1", None)), "text of a query is None"),  # type: ignore[arg-type]
    "half a character": (lambda e: e.search("te\ud800"), "lone surrogate"),
    "a string for queries": (lambda e: e.search_many("tea"), "queries is 'tea'; expected a list"),
    "no queries": (lambda e: e.search_many(None), "queries is None"),  # type: ignore[arg-type]
    "a number among queries": (lambda e: e.rank(["tea", 5]), "query 2 is 5"),  # type: ignore[list-item]
    "k a string": (lambda e: e.search("tea", k="3"), "k is '3'; expected a whole number, 1 or more"),  # type: ignore[arg-type]
    "k a fraction": (lambda e: e.search("tea", k=2.5), "k is 2.5; expected a whole number"),  # type: ignore[arg-type]
    "k a boolean": (lambda e: e.search("tea", k=True), "k is True; expected a whole number"),
    "k None": (lambda e: e.search("tea", k=None), "k is None"),  # type: ignore[arg-type]
    "k zero": (lambda e: e.search("tea", k=0), "k is 0; expected 1 or more"),
    "options a dict": (lambda e: e.search("tea", options={"mode": "dense"}), "options is a dict; expected"),  # type: ignore[arg-type]
    "options and mode": (lambda e: e.search("tea", options=SearchOptions(), mode="dense"), "both options and mode"),
    "options and where": (lambda e: e.search("tea", options=SearchOptions(), where={"n": 1}), "both options and mode"),
    "an unknown mode": (lambda e: e.search("tea", mode="sparse"), "mode is 'sparse'; expected one of"),  # type: ignore[arg-type]
    "a mode of a wrong type": (lambda e: e.search("tea", mode=["dense"]), "mode is a list; expected one of"),  # type: ignore[arg-type]
    "where a string": (lambda e: e.search("tea", where="n"), 'a filter is "n"; expected an object like {"year"'),  # type: ignore[arg-type]
    "where a list": (lambda e: e.search("tea", where=[1]), "a filter is [1]; expected an object"),  # type: ignore[arg-type]
    "an instruction of a wrong type": (lambda e: e.search("tea", instruction=5), "instruction is 5; expected a string"),  # type: ignore[arg-type]
    "a task of a wrong type": (lambda e: e.search("tea", task=5), "task is 5; expected a string"),  # type: ignore[arg-type]
    "a task and an instruction": (lambda e: e.search("tea", task="nq", instruction="Find"), "give one of them"),
    "vectors of a wrong shape": (lambda e: e.search_many(["tea"], vectors=np.zeros((1, 3))), r"expected (1, 64)"),
    "vectors that are none": (lambda e: e.search_many(["tea"], vectors="x"), "vectors is 'x'; expected"),  # type: ignore[arg-type]
    "vectors with NaN": (lambda e: e.search_many(["tea"], vectors=np.full((1, 64), np.nan)), "NaN or Infinity"),
    "a weight of a wrong type": (lambda _: SearchOptions(dense_weight="1"), "dense_weight is '1'; expected 0 to 1"),  # type: ignore[arg-type]
    "a weight that is no number": (lambda _: SearchOptions(dense_weight=float("nan")), "dense_weight is nan"),
    "rrf_k of a wrong type": (lambda _: SearchOptions(rrf_k=1.5), "rrf_k is 1.5; expected a whole number"),  # type: ignore[arg-type]
    "depth of a wrong type": (lambda _: SearchOptions(depth="9"), "depth is '9'; expected a whole number"),  # type: ignore[arg-type]
    "get by a number": (lambda e: e.get(5), "id is 5; expected a string"),  # type: ignore[arg-type]
    "similar to nothing": (lambda e: e.similar("nobody"), "the index holds no document 'nobody'"),
    "similar, k a string": (lambda e: e.similar("1", k="3"), "k is '3'"),  # type: ignore[arg-type]
    "add None": (lambda e: e.add(None), "documents is None; expected a list of searchkit.Document"),  # type: ignore[arg-type]
    "add one document": (lambda e: e.add(Document("x", "tea")), "documents is a Document; expected a list"),  # type: ignore[arg-type]
    "add a string": (lambda e: e.add("tea"), "documents is 'tea'"),  # type: ignore[arg-type]
    "add a dict": (lambda e: e.add([{"id": "x"}]), "a dict came in place of a document"),  # type: ignore[list-item]
    "add strings": (lambda e: e.add(["tea"]), "'tea' came in place of a document"),  # type: ignore[list-item]
    "commit_every zero": (lambda e: e.add([], commit_every=0), "commit_every is 0; expected 1 or more"),
    "delete a string": (lambda e: e.delete("17"), "ids is '17'; expected a list of ids"),
    "delete a number": (lambda e: e.delete([17]), "id is 17; expected a string"),  # type: ignore[list-item]
    "delete where a string": (lambda e: e.delete(where="n"), 'a filter is "n"; expected an object'),  # type: ignore[arg-type]
    "a recipe of a wrong type": (lambda e: e.store_as(8), "recipe is 8; expected a string"),  # type: ignore[arg-type]
    "a path of a wrong type": (lambda _: SearchEngine.open(5), "path is 5; expected a path"),  # type: ignore[arg-type]
    "a device of a wrong type": (
        lambda e: SearchEngine.open(e.store.folder, device=0),
        "device is 0; expected a string",
    ),  # type: ignore[arg-type]
    "a dtype of a wrong type": (
        lambda e: SearchEngine.open(e.store.folder, dtype=16),
        "dtype is 16; expected a string",
    ),  # type: ignore[arg-type]
    "threads of a wrong type": (lambda e: SearchEngine.open(e.store.folder, threads="2"), "threads is '2'"),  # type: ignore[arg-type]
    "a model of a wrong type": (lambda e: SearchEngine.open(e.store.folder, model=5), "model is 5; expected a path"),  # type: ignore[arg-type]
    "a tuning of a wrong type": (lambda e: e.store_as("pq", tuning=5), "tuning is 5; expected a Tuning"),  # type: ignore[arg-type]
    "a sample of a wrong size": (lambda e: e.sample(2.5), "count is 2.5; expected a whole number"),  # type: ignore[arg-type]
    "no path": (lambda _: SearchEngine.create(None), "path is None; expected a path"),  # type: ignore[arg-type]
    "a language of a wrong type": (lambda _: SearchEngine.create("no-such", model=Words(), language=5), "language 5"),  # type: ignore[arg-type]
    "chunks of a wrong type": (
        lambda _: SearchEngine.create("x", model=Words(), chunk_tokens="9"),
        "chunk_tokens is '9'",
    ),  # type: ignore[arg-type]
    "an overlap of a wrong type": (lambda _: SearchEngine.create("x", model=Words(), overlap=1.5), "overlap is 1.5"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_argument_is_an_input_error_that_says_what_came(engine: SearchEngine, case: str) -> None:
    call, said = REFUSED[case]
    with pytest.raises(InputError) as error:
        call(engine)
    assert said in str(error.value)
    assert len(engine) == 31


ANYTHING: list[Any] = [
    None, 5, -1, 0, 2.5, True, "x", "", b"x", [], [5], {}, {"a": 1}, ("a",), {1}, object(), float("nan"), 10**30,
    Document("q", "tea"), Query("1", "tea"), SearchOptions(), lambda: 1,
]  # fmt: skip
SOUND: dict[str, dict[str, Any]] = {
    "search": {"query": "tea"}, "search_many": {"queries": ["tea"]}, "rank": {"queries": ["tea"]},
    "embed": {"queries": ["tea"]}, "similar": {"id": "a"}, "get": {"id": "a"}, "sample": {"count": 1},
    "add": {"documents": []}, "delete": {"dry_run": True}, "store_as": {"recipe": "flat"}, "check_settings": {},
}  # fmt: skip


@pytest.mark.parametrize("method", SOUND)
def test_whatever_an_argument_is_no_error_comes_from_inside(tmp_path: Path, method: str) -> None:
    with SearchEngine.create(tmp_path / "i", model=Words()) as made:
        made.add([Document("a", "tea one", metadata={"n": 1}), Document("b", "milk two")])
        call = getattr(made, method)
        for name in inspect.signature(call).parameters:
            for value in ANYTHING:
                with suppress(SearchkitError):
                    call(**{**SOUND[method], name: value})


def test_a_wrong_document_goes_to_the_callback_and_what_is_no_document_does_not(tmp_path: Path) -> None:
    refused: list[str] = []
    wrong: list[Any] = [Document("1", None), Document(2, "tea"), Document("3", "tea", metadata=[1])]  # type: ignore[arg-type]
    with SearchEngine.create(tmp_path / "i", model=Words()) as made:
        report = made.add([*wrong, Document("ok", "tea")], on_refused=lambda _, reason: refused.append(reason))
        assert (report.documents, report.refused) == (1, 3)
        with pytest.raises(InputError, match="a dict came"):
            made.add([{"id": "x"}], on_refused=lambda _, reason: refused.append(reason))  # type: ignore[list-item]
    assert refused == [
        "document '1': text is None; expected a string",
        "document 2: id is 2; expected a string",
        "document '3': metadata is a list; expected a dict, {} for none",
    ]


def test_mode_and_where_are_short_for_options(engine: SearchEngine) -> None:
    where = {"n": {"$lt": 20}}
    for mode in ("dense", "lexical", "hybrid"):
        options = SearchOptions(mode=mode, where=where)
        assert engine.search("the sun", mode=mode, where=where) == engine.search("the sun", options=options)
    assert engine.search_many(["the sun"], where=where) == [engine.search("the sun", where=where)]
    assert engine.search("the sun") == engine.search("the sun", options=SearchOptions())


def test_any_k_of_any_integer_type_is_taken(engine: SearchEngine) -> None:
    for mode in ("dense", "lexical", "hybrid"):
        options = SearchOptions(mode=mode)
        everything = engine.search("note", k=31, options=options)
        assert engine.search("note", k=10**18, options=options) == everything
        assert engine.search("note", k=np.int64(7), options=options) == everything[:7]  # type: ignore[arg-type]
    assert engine.search("note", options=SearchOptions(depth=10**18))


# Documents


def test_an_engine_is_a_collection_of_documents(engine: SearchEngine) -> None:
    assert len(engine) == 31
    assert list(engine) == [*notes(), engine.get("long")]
    assert "7" in engine
    assert "no such" not in engine
    assert 7 not in engine


def test_get_gives_a_document_as_it_was_added_or_none(engine: SearchEngine) -> None:
    assert engine.get("3") == notes()[3]
    assert engine.get("no such") is None


def test_similar_documents_are_the_nearest_by_any_pair_of_passages(engine: SearchEngine) -> None:
    texts: dict[str, list[str]] = {}
    for passage in engine.store.documents.passages(range(engine.store.documents.counts()[1])).values():
        texts.setdefault(passage.id, []).append(f"{passage.title} {passage.text}".strip())
    vectors = {id: Words().encode_passages(parts) for id, parts in texts.items()}
    assert len(vectors["long"]) > 3
    for id in ("3", "long"):
        scores = {other: float((vectors[id] @ rows.T).max()) for other, rows in vectors.items() if other != id}
        expected = sorted(scores, key=lambda other: -scores[other])[:5]
        hits = engine.similar(id, k=5)
        assert ids(hits) == expected
        assert [hit.score for hit in hits] == pytest.approx([scores[other] for other in expected], abs=1e-5)
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert len(engine.similar("3", k=100)) == 30
    assert {hit.metadata["n"] for hit in engine.similar("3", k=100, where={"n": {"$lt": 9}})} == {*range(9)} - {3}


def test_a_document_that_was_added_since_is_found_by_its_id(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "i", model=Words()) as writer:
        writer.add(notes(10))
        with SearchEngine.open(tmp_path / "i", model=Words()) as reader:
            writer.add([Document("new", TEXTS[3])])
            writer.delete(["4"])
            assert reader.get("new") == Document("new", TEXTS[3])
            assert ids(reader.similar("new", k=1)) == ["3"]
            assert reader.get("4") is None


# A closed engine


CALLS: dict[str, Callable[[SearchEngine], object]] = {
    "search": lambda e: e.search("tea"),
    "lexical search": lambda e: e.search("tea", mode="lexical"),
    "rank": lambda e: e.rank(["tea"]),
    "similar": lambda e: e.similar("1"),
    "get": lambda e: e.get("1"),
    "in": lambda e: "1" in e,
    "documents": lambda e: list(e),
    "add": lambda e: e.add(notes(1)),
    "delete": lambda e: e.delete(["1"]),
    "compact": lambda e: e.compact(),
    "store_as": lambda e: e.store_as("fp16"),
    "reload": lambda e: e.reload(),
    "the store": lambda e: e.store.documents.checksum(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_engine_says_that_it_is_closed(tmp_path: Path, call: str) -> None:
    made = SearchEngine.create(tmp_path / "i", model=Words())
    made.add(notes(3))
    made.close()
    made.close()
    with pytest.raises(StoreError, match="has been closed; open it again") as error:
        CALLS[call](made)
    assert "build" not in str(error.value)


# Threads


def test_threads_that_add_at_once_lose_nothing_and_others_search_meanwhile() -> None:
    errors: list[BaseException] = []
    counts: list[int] = []
    ended = threading.Event()

    def guarded(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        return run

    with folder_in_memory() as folder, SearchEngine.create(folder / "i", model=Words()) as made:

        def search() -> None:
            while not ended.is_set():
                counts.append(len(made.search("note", k=500, mode="lexical")))

        def write(n: int) -> None:
            made.add((Document(f"{n}-{i}", f"note {n} {i}") for i in range(12)), commit_every=5)
            made.add([Document(f"{n}-0", f"note {n} again")], update=True)
            assert made.delete([f"{n}-1", "no such"]) == (1, ["no such"])
            if n == 2:
                made.compact()

        searching = threading.Thread(target=guarded(search))
        writing = [threading.Thread(target=guarded(lambda n=n: write(n))) for n in range(4)]
        for thread in (searching, *writing):
            thread.start()
        for thread in writing:
            thread.join()
        ended.set()
        searching.join()
        assert errors == []
        expected = {f"{n}-{i}" for n in range(4) for i in range(12) if i != 1}
        assert {document.id for document in made} == expected
        assert set(ids(made.search("note", k=500))) == expected
        assert len(set(counts)) > 1


@pytest.mark.parametrize("writable", [False, True])
def test_an_engine_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool) -> None:
    monkeypatch.chdir(tmp_path)
    with SearchEngine.create("notes.index", model=Words()) as made:
        made.add(notes(3))
    with SearchEngine.open("notes.index", model=Words(), writable=writable) as engine:
        assert engine.name == "notes.index"
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        for mode in ("dense", "lexical", "hybrid"):
            assert len(engine.search(TEXTS[1], mode=mode, k=1, where={"n": 1})) == 1
        if writable:
            engine.delete(["0"])
            engine.add(notes(5))
            engine.compact()
            assert len(engine) == 5
    assert list(Path().iterdir()) == []


def test_a_path_that_the_libraries_cannot_take_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9.index")
    with pytest.raises(StoreError, match="the path is not UTF-8, which FAISS and tantivy need; rename the folder"):
        SearchEngine.create(folder, model=Words())


def test_every_error_of_the_api_has_one_root() -> None:
    assert issubclass(InputError, SearchkitError)
    assert issubclass(StoreError, SearchkitError)


def test_an_index_of_the_built_in_model_of_another_version_has_to_be_built_again(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "x.index") as engine:
        engine.add([Document("tea", "Green tea"), Document("bread", "Bread rises")])
        with engine.store.database.transaction():
            engine.store.database.put(model={**engine.settings["model"], "weights": "04c0b7d940fb" + 52 * "0"})
    with (
        SearchEngine.open(tmp_path / "x.index") as engine,
        pytest.raises(StoreError, match=r"of another version .*'04c0b7d940fb'.*; index the documents again"),
    ):
        engine.search("tea", k=1)
    assert '"id": "bread"' in call("dump", tmp_path / "x.index").stdout, "the documents are still there"
