from __future__ import annotations

import math
import re
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rank_bm25 import BM25Okapi
from texts import TEXTS

from searchkit.indexer.analysis import LANGUAGES
from searchkit.indexer.lexical import LexicalIndex

QUERIES = ["the sun", "bread", "is it so why", "THE SUN, the sun!", "nobody tunes the oboe", "zebra"]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def bm25(texts: Sequence[str], query: str) -> np.ndarray:
    """Okapi BM25 with k1 1.2, b 0.75 and log(1 + (n - df + 0.5) / (df + 0.5)), as Lucene has it."""
    index = BM25Okapi([words(text) for text in texts], k1=1.2, b=0.75)
    for word in index.idf:
        df = sum(word in frequencies for frequencies in index.doc_freqs)
        index.idf[word] = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
    return np.asarray(index.get_scores(words(query)))


def made(folder: Path, texts: Sequence[str], language: str = "none") -> LexicalIndex:
    index = LexicalIndex(folder, language)
    index.add(enumerate(texts))
    return index


def found(index: LexicalIndex, query: str, k: int = 10) -> list[int]:
    rows, _ = index.search(query, k, rows_below=len(index))
    return list(rows)


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> LexicalIndex:
    return made(tmp_path_factory.mktemp("lexical"), TEXTS, "english")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LexicalIndex:
    return made(tmp_path_factory.mktemp("lexical"), TEXTS)


@pytest.mark.parametrize("query", QUERIES)
def test_scores_equal_the_bm25_formula(plain: LexicalIndex, query: str) -> None:
    oracle = bm25(TEXTS, query)
    rows, scores = plain.search(query, 100, rows_below=30)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    assert set(rows) == set(np.flatnonzero(oracle))
    np.testing.assert_allclose(scores, oracle[rows], rtol=1e-5)
    assert list(zip(-scores, rows, strict=True)) == sorted(zip(-scores, rows, strict=True))


def test_a_repeated_query_term_counts_each_time(plain: LexicalIndex) -> None:
    once, twice = (dict(zip(*plain.search(query, 30, rows_below=30), strict=True)) for query in ("sun", "sun Sun"))
    assert once
    assert twice == pytest.approx({row: 2 * score for row, score in once.items()})


def test_stop_words_match_nothing_and_stems_match_other_forms(english: LexicalIndex, plain: LexicalIndex) -> None:
    assert found(english, "the is of") == []
    assert found(plain, "the is of") != []
    assert set(found(english, "repair flower")) == {0, 10, 20, 5, 15, 25}  # "repairs" and "flowers"
    assert found(plain, "repair flower") == []


@pytest.mark.parametrize("language", [*LANGUAGES, "none"])
def test_every_language_matches_its_own_words(tmp_path: Path, language: str) -> None:
    assert found(made(tmp_path, ["Photosynthesis", "комета"], language), "photosynthesis") == [0]


def test_another_language_stems_by_its_own_rules(tmp_path: Path) -> None:
    texts = ["die Häuser am Fluss", "a house"]
    assert found(made(tmp_path / "de", texts, "german"), "Haus die") == [0]
    assert found(made(tmp_path / "en", texts, "english"), "Haus") == []


def test_an_unknown_language_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no stemmer for language 'klingon'; known: arabic.*turkish, or none"):
        LexicalIndex(tmp_path, "klingon")


@pytest.mark.parametrize(
    "query",
    ['AND OR NOT -bread "the', "bread AND -yeast", '"bread', "text:bread", "row:1", "bread^9", "bre*", "(bread",
     "bread~2", "[a TO b]", "\\", "+bread +zebra", "/bread/", "NOT bread", "bread:*\n*:*"],
)  # fmt: skip
def test_queries_have_no_operators(plain: LexicalIndex, query: str) -> None:
    rows, scores = plain.search(query, 30, rows_below=30)
    np.testing.assert_allclose(scores, bm25(TEXTS, query)[rows], rtol=1e-5)
    assert set(rows) == set(np.flatnonzero(bm25(TEXTS, query)))


@pytest.mark.parametrize("query", ["", "  \n", "?!", "-", "😀"])
def test_a_query_without_terms_returns_nothing(english: LexicalIndex, query: str) -> None:
    rows, scores = english.search(query, 5, rows_below=30)
    assert (rows.shape, rows.dtype, scores.shape, scores.dtype) == ((0,), np.int64, (0,), np.float32)


def test_an_empty_index_and_k_zero_return_nothing(tmp_path: Path, plain: LexicalIndex) -> None:
    assert found(made(tmp_path, []), "sun") == []
    assert found(plain, "sun", k=0) == []


def test_empty_texts_keep_their_rows_and_never_match(tmp_path: Path) -> None:
    index = made(tmp_path, ["", "tea", "?", "tea"])
    assert len(index) == 4
    assert found(index, "tea") == [1, 3]


@pytest.mark.parametrize("below", [0, 1, 7, 29, 30])
def test_rows_from_rows_below_on_are_left_out(plain: LexicalIndex, below: int) -> None:
    everything, scores = plain.search("the sun is so", 30, rows_below=30)
    rows, kept = plain.search("the sun is so", 3, rows_below=below)
    np.testing.assert_array_equal(rows, everything[everything < below][:3])
    np.testing.assert_array_equal(kept, scores[everything < below][:3])


def test_equal_scores_come_by_row_also_at_the_cut(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path, "none")
    for row in range(12):  # tantivy merges small segments, and a merged one is no longer first
        index.add([(row, "tea cup")])
    index.add((row, "tea cup") for row in range(12, 400))
    assert found(index, "tea", k=5) == [0, 1, 2, 3, 4]
    assert list(index.search("cup tea", 3, rows_below=2)[0]) == [0, 1]


def test_adding_in_two_calls_equals_a_single_call(tmp_path: Path, plain: LexicalIndex) -> None:
    index = LexicalIndex(tmp_path, "none")
    index.add(enumerate(TEXTS[:11]))
    index.add(enumerate(TEXTS[11:], start=11))
    assert len(index) == 30
    for query in QUERIES:
        for k in (2, 30):
            for ours, theirs in zip(index.search(query, k, 30), plain.search(query, k, 30), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_an_add_that_fails_adds_nothing(tmp_path: Path) -> None:
    index = made(tmp_path, ["tea"])
    with pytest.raises(ZeroDivisionError):
        index.add((row, f"tea {1 / (3 - row)}") for row in range(1, 5))
    assert len(LexicalIndex(tmp_path, "none")) == 1
    index.add([(1, "tea again")])
    assert found(index, "tea") == [0, 1]


def test_deleted_passages_are_not_found_and_count_until_they_are_merged_away(tmp_path: Path) -> None:
    index = made(tmp_path / "some", TEXTS)
    before = index.search("the sun", 30, 30)
    index.delete([0, 3, 29, 1000])
    for opened in (index, LexicalIndex(tmp_path / "some", "none")):
        assert (len(opened), opened.deleted) == (27, 3)
        rows, scores = opened.search("the sun", 30, 30)
        kept = ~np.isin(before[0], [0, 3, 29])
        assert kept.sum() < len(kept)
        np.testing.assert_array_equal(rows, before[0][kept])
        np.testing.assert_array_equal(scores, before[1][kept])
    index.add([(30, "the sun again")])
    assert 30 in index.search("the sun", 30, 31)[0]
    index.delete(list(range(31)))
    assert (len(index), index.deleted, found(index, "the sun")) == (0, 0, [])


def test_a_reopened_index_holds_all_it_held(tmp_path: Path) -> None:
    made(tmp_path, TEXTS, "english")
    again = LexicalIndex(tmp_path, "english")
    assert len(again) == 30
    assert found(again, "bees dancing", k=1) == [5]


def test_searches_go_on_where_the_folder_was_taken_away(tmp_path: Path) -> None:
    index = LexicalIndex(tmp_path / "lexical")
    index.add(enumerate(["the sun", "the moon", "a star"]))
    before = found(index, "the sun"), index.ceiling("the sun")
    shutil.rmtree(tmp_path / "lexical")
    assert (found(index, "the sun"), index.ceiling("the sun")) == before


def test_files_that_cannot_be_written_are_an_os_error_and_leave_what_was_there(tmp_path: Path) -> None:
    index = made(tmp_path, TEXTS[:3])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        with pytest.raises(OSError, match=re.escape(str(tmp_path))):
            index.add(enumerate(TEXTS[3:], start=3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(LexicalIndex(tmp_path, "none")) == 3
    index.add(enumerate(TEXTS[3:], start=3))
    assert len(index) == len(TEXTS)
