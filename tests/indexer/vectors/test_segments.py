from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import again, flat, in_segments

from searchkit.errors import StoreError
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.faiss_index import train
from searchkit.indexer.vectors.recipes import Plan
from searchkit.indexer.vectors.search import search
from searchkit.indexer.vectors.segments import DiskSegment, Entry

GAPS = np.array([0, 1, 4, 5, 6, 9, *range(20, 54)])


@pytest.mark.parametrize("rows", [np.arange(40), GAPS], ids=["all rows", "after compaction"])
@pytest.mark.parametrize("cuts", [(), (13,), (1, 20, 39)])
def test_rows_lead_to_their_documents_vectors_and_scores(
    tmp_path: Path, vectors: np.ndarray, cuts: tuple[int, ...], rows: np.ndarray
) -> None:
    written = in_segments(tmp_path, vectors, cuts, rows=rows)
    asked = np.array([[39, 0, 13], [12, 39, 25]])
    np.testing.assert_array_equal(segments.documents_of(written, rows[asked]), rows[asked] // 2)
    np.testing.assert_allclose(
        segments.score(written, vectors[5], rows[asked[0]]), vectors[asked[0]] @ vectors[5], atol=1e-6
    )
    np.testing.assert_array_equal(segments.all_rows(written), rows)
    if not cuts:  # written only where rows do not follow each other
        assert ("rows.i64" in written[0].entry.files) == (len(rows) <= rows[-1])


def test_row_minus_1_is_no_document(tmp_path: Path, vectors: np.ndarray) -> None:
    written = in_segments(tmp_path, vectors, (13,))
    np.testing.assert_array_equal(segments.documents_of(written, np.array([[-1, 4], [39, -1]])), [[-1, 2], [19, -1]])
    assert segments.documents_of([], np.full((2, 0), -1)).shape == (2, 0)
    assert segments.score(written, vectors[0], np.empty(0, np.int64)).shape == (0,)


def test_search_gives_the_rows_of_a_compacted_segment(tmp_path: Path, vectors: np.ndarray) -> None:
    written = in_segments(tmp_path, vectors, (3, 20), rows=GAPS)
    rows, _ = search(written, vectors[:7], 5)
    np.testing.assert_array_equal(rows, GAPS[np.argsort(-(vectors[:7] @ vectors.T), axis=1)[:, :5]])


def test_a_file_is_checked_when_it_is_first_needed_and_once(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    real = segments.verify
    monkeypatch.setattr(segments, "verify", lambda file, stamp: verified.append(file.name) or real(file, stamp))
    (segment,) = in_segments(tmp_path, vectors)
    assert verified == []
    for _ in range(2):
        _ = segment.docs
        _ = segment.index
    assert verified == ["docs.i64", "dense.faiss"]


@pytest.mark.parametrize("name", ["dense.faiss", "docs.i64", "rows.i64", "vectors.f16"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "is missing; repair the index with: searchkit check INDEX --repair"),
        (lambda file: shutil.rmtree(file.parent), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-7]), r"has \d+ bytes, expected \d+; repair the index"),
        (lambda file: file.write_bytes(b""), "has 0 bytes, expected"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\7"), "is damaged .its checksum differs.; repair"),
        (lambda file: file.replace(file.parent / "x") and file.mkdir(), "is missing"),
    ],
    ids=["missing", "no folder", "truncated", "emptied", "one byte", "a folder"],
)
def test_damage_is_named_before_anything_parses_it(
    tmp_path: Path, vectors: np.ndarray, name: str, damage: Any, said: str
) -> None:
    (segment,) = in_segments(tmp_path, vectors, (), train(Plan("int8", 16), vectors), rows=GAPS)
    damage(segment.folder / name)
    needs = {"dense.faiss": lambda s: s.index, "docs.i64": lambda s: s.docs, "rows.i64": lambda s: s.rows}
    with pytest.raises(StoreError, match=rf"{re.escape(name)} {said}"):
        needs.get(name, lambda s: s.vectors(np.array([0])))(again(segment))
    with pytest.raises(StoreError, match=said):
        again(segment).check()


def test_an_index_with_other_vectors_than_the_commit_says_is_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    (segment,) = in_segments(tmp_path, vectors)
    wrong = Entry(0, 39, segment.entry.name, segment.entry.files)
    with pytest.raises(StoreError, match="holds 40 vectors of 16, expected 39 of 16; repair the index"):
        _ = DiskSegment(segment.folder, wrong, segment.plan, segment.backend).index
    with pytest.raises(StoreError, match="holds 40 vectors of 16, expected 40 of 32"):
        _ = DiskSegment(segment.folder, segment.entry, Plan("flat", 32), segment.backend).index


def entries(*counts: int) -> list[Entry]:
    return [Entry(sum(counts[:n]), count, str(n), {}) for n, count in enumerate(counts)]


@pytest.mark.parametrize(
    ("counts", "merged"),
    [
        ((), 0),
        ((1000,) * 7, 0),
        ((1000,) * 8, 8),
        ((1024,) * 8, 8),
        ((9000, *(1000,) * 7), 0),  # or few small ones would have a large one copied
        ((9000, *(1000,) * 8), 8),
        ((9000,) * 7 + (1000,) * 8, 8),
        ((9000,) * 8, 8),
        ((9000,) * 8 + (1000,) * 3, 11),
        ((9000,) * 4 + (1000,) + (9000,) * 4, 9),
        ((70_000,) * 2 + (9000,) * 8, 8),
        ((1000,) * 20, 20),
    ],
)
def test_neighbours_of_similar_size_are_merged(counts: tuple[int, ...], merged: int) -> None:
    given = entries(*counts)
    assert segments.to_merge(given) == given[len(given) - merged :]


def test_few_segments_are_left_and_rows_are_copied_few_times() -> None:
    held, copied = entries(), 0
    for n in range(4096):
        held.append(Entry(1024 * n, 1024, "", {}))
        while group := segments.to_merge(held):
            total = sum(entry.count for entry in group)
            copied += total
            held[-len(group) :] = [Entry(group[0].first_row, total, "", {})]
        assert len(held) <= 8 * 4
    assert copied <= 4 * 4096 * 1024


@pytest.mark.parametrize("rows", [np.arange(40), GAPS], ids=["all rows", "after compaction"])
def test_merged_segments_answer_as_their_parts_did(tmp_path: Path, vectors: np.ndarray, rows: np.ndarray) -> None:
    parts = in_segments(tmp_path, vectors, (3, 20), rows=rows)
    entry = segments.merge_segments(tmp_path, parts, flat(16), keep_vectors=True)
    whole = DiskSegment(tmp_path / entry.name, entry, parts[0].plan, parts[0].backend)
    assert (entry.first_row, entry.count, entry.name) == (0, 40, "000004")
    np.testing.assert_array_equal(whole.vectors(np.arange(40)), vectors)
    np.testing.assert_array_equal(segments.all_rows([whole]), rows)
    np.testing.assert_array_equal(whole.docs, rows // 2)


def test_leftovers_of_a_failed_commit_do_no_harm(tmp_path: Path, vectors: np.ndarray) -> None:
    (tmp_path / "000001.tmp").mkdir()
    (tmp_path / "000001.tmp" / "dense.faiss").write_bytes(b"half")
    (segment,) = in_segments(tmp_path, vectors)
    np.testing.assert_array_equal(segment.vectors(np.arange(40)), vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
