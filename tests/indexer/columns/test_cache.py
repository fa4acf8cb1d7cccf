"""Columns answer as the documents do, whatever happens to their files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchkit.errors import StoreError
from searchkit.indexer.columns import build, cache, filtering
from searchkit.indexer.columns.part import Part, UnusableError
from searchkit.indexer.columns.values import Values
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.keys import filter_faults, metadata_keys
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store

FILTERS: list[dict[str, Any]] = [
    {"year": {"$gte": 2000}},
    {"year": 1995, "tags": "b"},
    {"$or": [{"tags": {"$in": ["a", None]}}, {"$not": {"author.name": "caf\u00e9"}}]},
    {"missing": {"$exists": False}},
    {"missing": 1},
    {"$nor": [{"year": {"$lt": 2000}}, {"n": {"$gt": 30}}]},
    {},
]


def documents(count: int, start: int = 0, *, passages: int = 1) -> list[NewDocument]:
    made = []
    for n in range(start, start + count):
        rng = random.Random(n)
        metadata = {"year": rng.choice([1990, 1995, 2000.0, 2005, "2000", True, None]), "n": n}
        if n % 3:
            metadata |= {
                "tags": rng.choices(["a", "b", "c"], k=rng.randrange(3)),
                "author": {"name": rng.choice(["cafe\u0301", "x"])},
            }
        text = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
        made.append(NewDocument(f"d{n}", "", "text", text, "0", [(0, 1 + i) for i in range(passages)]))
    return made


def add(store: Store, new: list[NewDocument]) -> None:
    store.commit(new, np.ones((sum(len(document.spans) for document in new), 2), np.float32))
    store.merge_small_segments()


def answers(store: Store) -> list[Any]:
    """What every filter matches, and every key counts."""
    snapshot = store.snapshot()
    matching = [[array.tolist() for array in store.matching(compile_filter(where), snapshot)] for where in FILTERS]
    for where, found in zip(FILTERS, matching, strict=True):
        assert [np.flatnonzero(mask).tolist() for mask in store.passing(compile_filter(where), snapshot)] == found
    keys = metadata_keys(store.documents)
    described = {name: (dict(key.types), key.examples) for name, key in keys.items()}
    counted = []
    for key in ("year", "tags", "author.name", "absent"):
        found = store.values(key, snapshot)
        held = {
            doc: found.values[number] for doc, number in zip(found.docs.tolist(), found.numbers.tolist(), strict=True)
        }
        counted.append({doc: repr(value) for doc, value in held.items() if value is not None})
    faults = [fault.message for fault in filter_faults({"yea": 1, "n": "x"}, store.documents)]
    return [matching, described, counted, faults]


def read(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The same, from the documents."""
    with monkeypatch.context() as patch:
        for name in ("matching", "masks", "values", "counted"):
            patch.setattr(cache.Columns, name, lambda *_, **__: None)
        return answers(store)


def from_columns(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The same, with an error instead of reading the documents."""
    with monkeypatch.context() as patch:
        patch.setattr(type(store.documents), "_filtered", refuse)
        patch.setattr(type(store.documents), "check_contents", refuse)
        return answers(store)


def refuse(*_: Any) -> Any:
    raise AssertionError("the documents were read")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART", 8)
    monkeypatch.setattr(cache, "LEVEL", 2)
    monkeypatch.setattr(cache, "_LAGGING", 32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "an.index", {"language": "none"}, dim=2) as made:
        yield made


def files(store: Store) -> list[Path]:
    return sorted((store.folder / "columns").glob("*"), key=lambda file: int(file.name.split("-")[1]))


@pytest.mark.parametrize("passages", [1, 3])
def test_filters_and_facets_are_answered_from_columns(
    store: Store, passages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = 0
    for count in (1, 6, 1, 1, 30, 2, 11):
        add(store, documents(count, start, passages=passages))
        start += count
        store.delete(store.documents.positions_of([f"d{start - 1}", "d3"]))
        assert from_columns(store, monkeypatch) == read(store, monkeypatch)
    assert [file.name for file in files(store)] == ["0-0-40", "0-40-48"]  # of 52: the others are read
    with Store(store.folder) as reader:
        assert from_columns(reader, monkeypatch) == read(store, monkeypatch)


def test_compaction_leaves_out_what_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, documents(40))
    store.delete(range(0, 40, 3))
    rewrite(store, store.template(), purge=True)
    assert from_columns(store, monkeypatch) == read(store, monkeypatch)
    add(store, documents(20, 40))
    store.delete(range(0, 60, 4))
    rewrite(store, store.template(), purge=True)
    assert from_columns(store, monkeypatch) == read(store, monkeypatch)
    compacted = store.database.number("compacted")
    assert {file.name.split("-")[0] for file in files(store)} == {str(compacted)}


def test_compaction_makes_columns_of_those_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, documents(48, passages=2))
    assert len(files(store)) == 2
    store.delete([*range(32, 40), 47, 5])
    derived: list[tuple[int, int]] = []
    made = cache.part_of
    monkeypatch.setattr(cache, "part_of", lambda *given: derived.append(given[1:3]) or made(*given))
    rewrite(store, store.template(), purge=True)
    assert from_columns(store, monkeypatch) == read(store, monkeypatch)
    assert derived == []  # no document was read
    for part in map(Part.open, files(store)):
        texts = "".join(part.texts("n"))
        assert '"n": 4}' in texts or part.start
        assert not [n for n in (5, 32, 47) if f'"n": {n}}}' in texts]


def test_compaction_numbers_values_again_once_they_are_few(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MOST", 20)
    add(store, documents(48))
    assert store.documents.counted_values(all_keys=True) is None
    store.delete(range(15, 48))
    rewrite(store, store.template(), purge=True)
    assert files(store) != []
    assert from_columns(store, monkeypatch) == read(store, monkeypatch)


def test_compaction_of_documents_with_nan_ends_the_warning(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = documents(48)
    made[3] = made[3]._replace(metadata='{"year": NaN}')
    add(store, made)
    with Store(store.folder) as reader:
        answers(reader)
    assert "NaN" in caplog.text
    caplog.clear()
    store.delete([3])
    rewrite(store, store.template(), purge=True)
    with Store(store.folder) as reader:
        assert from_columns(reader, monkeypatch) == read(reader, monkeypatch)
    assert caplog.text == ""


@pytest.mark.parametrize("other", [True, False])
def test_damaged_columns_are_made_again_by_compaction(
    store: Store, other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, documents(50))
    found = files(store)
    content = found[0].read_bytes()
    found[0].write_bytes(content.replace(b'"contents": ', b'"contents": 1', 1) if other else b"x" + content[1:])
    store.delete([3, 40])
    rewrite(store, store.template(), purge=True)
    assert from_columns(store, monkeypatch) == read(store, monkeypatch)
    assert len(files(store)) == 2


def test_a_reader_of_an_older_commit_sees_its_documents(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, documents(20))
    with Store(store.folder) as reader:
        snapshot = reader.snapshot()
        add(store, documents(30, 20))
        store.delete(range(10))
        docs, rows = reader.matching(compile_filter({}), snapshot)
        assert docs.tolist() == rows.tolist() == list(range(20))
        assert [mask.tolist() for mask in reader.passing(compile_filter({}), snapshot)] == [[True] * 20] * 2
        rewrite(store, store.template(), purge=True)
        with pytest.raises(StoreError, match="has been compacted"):
            reader.matching(compile_filter({}), snapshot)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file, _: file.unlink(),
        lambda file, _: file.write_bytes(b""),
        lambda file, _: file.write_bytes(file.read_bytes()[:-30]),
        lambda file, _: file.write_bytes(b"x" + file.read_bytes()[1:]),
        lambda file, _: file.write_bytes(file.read_bytes()[:-60] + bytes(20) + file.read_bytes()[-40:]),
        lambda file, other: file.write_bytes(other.read_bytes()),
        lambda file, _: file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 2')),
    ],
    ids=["missing", "empty", "cut", "block", "header", "swapped", "version"],
)
@pytest.mark.parametrize("which", [0, -1])
def test_damaged_files_change_no_answer_and_are_made_again(
    store: Store, damage: Callable[[Path, Path], Any], which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, documents(50))
    expected = read(store, monkeypatch)
    found = files(store)
    assert len(found) == 2
    damage(found[which], found[which - 1])
    with Store(store.folder) as reader:
        assert answers(reader) == expected
    store.close()
    with Store(store.folder, writable=True) as writer:
        assert answers(writer) == expected
        add(writer, documents(40, 50))
        with Store(store.folder) as reader:
            assert from_columns(reader, monkeypatch) == read(writer, monkeypatch)


def test_columns_of_other_documents_are_not_used(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, documents(50))
    with Store.create(tmp_path / "other.index", {"language": "none"}, dim=2) as other:
        add(other, documents(50, 1000))
        expected = read(other, monkeypatch)
        for mine, theirs in zip(files(store), files(other), strict=True):
            theirs.write_bytes(mine.read_bytes())
    with Store(tmp_path / "other.index", writable=True) as other:
        assert answers(other) == expected
        add(other, documents(20, 2000))
        with Store(tmp_path / "other.index") as reader:
            assert from_columns(reader, monkeypatch) == read(other, monkeypatch)


def test_an_index_without_columns_is_read_and_gets_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cache.Columns, "follow", lambda _: None)
        add(store, documents(50))
    assert files(store) == []
    assert answers(store) == read(store, monkeypatch)
    with pytest.raises(AssertionError, match="were read"):
        from_columns(store, monkeypatch)
    add(store, documents(1, 50))
    assert from_columns(store, monkeypatch) == read(store, monkeypatch)


def test_a_key_with_very_many_values_is_read_from_the_documents(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MOST", 20)
    add(store, documents(50))
    assert answers(store) == read(store, monkeypatch)
    snapshot = store.snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(type(store.documents), "_filtered", refuse)
        assert len(store.matching(compile_filter({"year": 1995}), snapshot)[0]) > 3
        with pytest.raises(AssertionError, match="were read"):
            store.matching(compile_filter({"n": 3}), snapshot)
        counted = store.documents.counted_values(all_keys=False)
        assert counted is not None
        assert {key for text, _ in counted for key in json.loads(text)} == {"year", "tags", "author"}
    assert store.documents.counted_values(all_keys=True) is None


def test_a_full_disk_leaves_commits_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Part, "write", full)
        add(store, documents(30))
    assert answers(store) == read(store, monkeypatch)
    assert store.documents.counts()[0] == 30


def test_a_filter_reads_no_documents(store: Store) -> None:
    add(store, documents(64))
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with Store(store.folder) as reader:
        snapshot = reader.snapshot()
        reader.database.db.set_progress_handler(count, 1)
        reader.matching(compile_filter({"year": 1995}), snapshot)
        reader.database.db.set_progress_handler(None, 1)
    assert 0 < steps < 200  # reading 64 documents takes ten times as many


def test_a_value_is_decided_once_however_many_files_have_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, documents(60))
    assert len(files(store)) > 1
    made: list[str] = []

    class Counted(Values):
        def __init__(self, key: str, parts: Any) -> None:
            super().__init__(key, parts)
            made.append(key)
            assert self._count == len({text for part in parts for text in part.texts(key)})

    monkeypatch.setattr(filtering, "Values", Counted)
    with Store(store.folder) as reader:
        for year in (1990, 1995, 2005):
            reader.passing(compile_filter({"year": year}), reader.snapshot())
        assert made == ["year"]
        add(store, documents(1, 60))
        reader.passing(compile_filter({"year": 1990}), reader.snapshot())
        assert made == ["year", "year"]


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "0-0-8").write_bytes(b"something else entirely, but long enough to have a foot")
    with pytest.raises(UnusableError, match="is damaged"):
        Part.open(tmp_path / "0-0-8")
