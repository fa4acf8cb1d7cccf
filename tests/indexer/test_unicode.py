"""Filters compare what reads the same as the same, however it was typed; what is stored stays as it was."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Words

from searchkit.engine import SearchEngine
from searchkit.indexer.keys import metadata_keys
from searchkit.indexer.unicode import filterable, is_normalised, normalised, normalised_metadata
from searchkit.records import Document

# One text, as several keyboards, PDFs and word processors write it.
SPELLINGS = {
    "café": ["cafe\u0301", "ca\u00adfé", "ca\u200bfé", "\uff43\uff41\uff46é", "\ufeffcafé"],
    "office": ["o\ufb03ce", "of\u00adfice", "\uff4f\uff46\uff46\uff49\uff43\uff45", "of\u2060fice"],
    "H2O 12": ["H\u2082O 12", "H2O\u00a012", "H2O \uff11\uff12"],
    "Ω unit": ["\u2126 unit", "Ω\u2003unit"],
}
PAIRS = [(plain, other) for plain, others in SPELLINGS.items() for other in others]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SearchEngine]:
    with SearchEngine.create(tmp_path / "x.index", model=Words()) as engine:
        yield engine


def ids(engine: SearchEngine, where: dict[str, Any]) -> set[str]:
    found = {hit.id for hit in engine.search("tea", where=where)}
    assert engine.delete(where=where, dry_run=True) == (len(found), [])
    return found


@pytest.mark.parametrize(("plain", "other"), PAIRS)
def test_values_keys_and_titles_match_whichever_side_is_typed_how(engine: SearchEngine, plain: str, other: str) -> None:
    for id, written in (("plain", plain), ("other", other)):
        metadata = {"k": written, "list": ["x", written], written: 1, "in": {written: {"deep": written}}}
        engine.add([Document(id, "tea", written, metadata)])
    engine.add([Document("none", "tea", "Title", {"k": "\U0001f680", "list": [], "in": {}})])
    for written in (plain, other):
        for where in (
            {"k": written},
            {"k": {"$in": ["?", written]}},
            {"k": {"$lte": written}},
            {"list": written},
            {written: 1},
            {f"in.{written}.deep": written},
            {written: {"$exists": True}},
            {"_title": written},
        ):
            assert ids(engine, where) == {"plain", "other"}, where
            assert engine.filter_faults(where) == []
        assert ids(engine, {"k": {"$ne": written}}) == {"none"}
        assert ids(engine, {"k": {"$nin": [written]}}) == {"none"}
    for id, written in (("plain", plain), ("other", other)):
        document = engine.get(id)
        assert document is not None
        assert document.title == document.metadata["k"] == written
        assert written in document.metadata
    keys = metadata_keys(engine.store.documents)
    assert keys[plain].types == {"integer": 2}  # one key
    assert f'"{plain}"' in keys["k"].examples


def test_ids_are_exact(engine: SearchEngine) -> None:
    engine.add([Document("café", "tea"), Document("cafe\u0301", "tea")])
    assert ids(engine, {"_id": "café"}) == {"café"}
    assert ids(engine, {"_id": {"$in": ["cafe\u0301"]}}) == {"cafe\u0301"}


def test_a_document_that_comes_later_or_goes_changes_nothing_for_the_others(engine: SearchEngine) -> None:
    engine.add([Document("1", "tea", metadata={"k": "é", "n": 1})])
    assert ids(engine, {"k": "e\u0301"}) == {"1"}
    engine.add([Document("2", "tea", metadata={"k": "e\u0301", "n": 2})])
    assert ids(engine, {"k": "é"}) == {"1", "2"}
    engine.delete(["2"])
    assert ids(engine, {"k": "é"}) == {"1"}
    engine.compact()
    assert ids(engine, {"k": "e\u0301"}) == {"1"}
    assert ids(engine, {"n": {"$gt": 1}}) == set()


def test_messages_name_the_key_that_is_meant(engine: SearchEngine) -> None:
    engine.add([Document("1", "tea", metadata={"cle\u0301": 5})])
    (fault,) = engine.filter_faults({"clés": 5})
    assert 'did you mean "clé"?' in fault.message
    (fault,) = engine.filter_faults({"cle\u0301": "5"})
    assert "but it holds integer (5)" in fault.message


def test_keys_that_become_equal_in_one_document_both_match(engine: SearchEngine) -> None:
    engine.add([Document("1", "tea", metadata={"é": 1, "e\u0301": [2, 3]})])
    assert [ids(engine, {"é": n}) for n in (1, 2, 3, 4)] == [{"1"}, {"1"}, {"1"}, set()]


@pytest.mark.parametrize("key", ["a\uff0eb", "\uff04ref", "\uff3fid", "a\uff02b", "a\uff3cb", "\u00ad"])
def test_keys_that_would_turn_into_syntax_can_still_be_named(engine: SearchEngine, key: str) -> None:
    engine.add([Document("1", "tea", metadata={key: 1, "n": 5}), Document("2", "tea", metadata={"n": 6})])
    assert ids(engine, {key: 1}) == {"1"}
    assert ids(engine, {"n": 5}) == {"1"}
    (listed,) = metadata_keys(engine.store.documents).keys() - {"n"}
    assert ids(engine, {listed: 1}) == {"1"}


def test_normalising_once_is_enough() -> None:
    for code in (*range(0xD800), *range(0xE000, 0x2FA20)):
        for text in (chr(code), f"e{chr(code)}\u0301"):
            assert is_normalised(normalised(text)), hex(code)
            assert unicodedata.is_normalized("NFC", normalised(text))


def test_deep_metadata_are_normalised() -> None:
    metadata: Any = "e\u0301"
    for _ in range(499):
        metadata = [metadata] if isinstance(metadata, dict) else {"e\u0301": metadata}
    assert is_normalised(repr(normalised_metadata(metadata)))


def test_numbers_are_kept_to_the_last_bit() -> None:
    written = '{"e\u0301": [9007199254740993, 0.1, 1e-300, -0.0, true, null]}'
    assert filterable(written) == unicodedata.normalize("NFC", written)
