"""Random records through every reader: each comes out equal, or is among the rejects with a reason; none is lost."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchkit.readers.corpus import ReadReport, Rejects, TableOptions, read_corpus

pytestmark = pytest.mark.filterwarnings("ignore")
TEXT = st.text(st.one_of(st.sampled_from('",;\t\n\r\\ ab10#\ufeff\x00\u2028'), st.characters()), max_size=12)
CELL = st.one_of(st.sampled_from(["", "1", "-2", "007", "1.50", "true", "2024-05-01", "nan", "1e5", '"', '""']), TEXT)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.tuples(CELL, CELL, CELL, CELL), max_size=8)
HEADER = ("id", "title", "text", "v")


def read(name: str, data: bytes, **options: Any) -> tuple[list[Any], list[dict[str, str]]]:
    """Documents and rejects of a file with such bytes; they must add up to the rows read."""
    with tempfile.TemporaryDirectory() as folder:
        path, kept = Path(folder) / name, Path(folder) / "rejects.jsonl"
        path.write_bytes(data)
        report = ReadReport()
        with Rejects(kept) as rejects:
            documents = list(read_corpus(path, rejects=rejects, report=report, **options))
        entries = [json.loads(line) for line in kept.read_bytes().splitlines()] if kept.exists() else []
    assert report.rows == len(documents) + len(entries)
    assert all(entry["reason"] for entry in entries)
    return documents, entries


def sound(row: tuple[str, ...]) -> bool:
    """Whether a row can be a document."""
    id, title, text, _ = row
    written = "".join(row)
    return bool(id.strip() and (title + text).strip()) and "\0" not in id + title + text and storable(written)


def storable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def json_sound(record: dict[str, Any]) -> bool:
    """Whether a JSON record is certainly a document."""
    id, title, text = (record[key] for key in ("id", "title", "text"))
    if not all(isinstance(value, str) for value in (id, title, text)):
        return False
    written = json.dumps(record, ensure_ascii=False)
    extreme = any(word in written for word in ("NaN", "Infinity")) or re.search(r"\d{19}", written)
    return sound((id, title, text, written)) and not extreme


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_csv(rows):
    rows = [row for row in rows if storable("".join(row))]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([HEADER, *rows])
    documents, entries = read("a.csv", stream.getvalue().encode(), table=TableOptions(types={"v": "text"}))
    found = [(each.id, each.title, each.text, each.metadata["v"]) for each in documents]
    assert found == [row for row in rows if sound(row)]
    assert len(entries) == sum(not sound(row) for row in rows)


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_tsv(rows):
    rows = [row for row in rows if storable("".join(row)) and not set("\t\n\r") & set("".join(row))]
    text = "".join("\t".join(row) + "\n" for row in [HEADER, *rows])
    documents, entries = read("a.tsv", text.encode(), table=TableOptions(types={"v": "text"}))
    assert [(each.id, each.title, each.text, each.metadata["v"]) for each in documents] == list(filter(sound, rows))
    assert len(entries) == sum(not sound(row) for row in rows)


@given(ROWS)
@settings(max_examples=100, deadline=None)
def test_typed_cells_mean_what_was_written(rows):
    rows = [(str(n), "", "t", row[3]) for n, row in enumerate(rows) if storable(row[3])]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([HEADER, *rows])
    documents, entries = read("a.csv", stream.getvalue().encode())
    assert (len(documents), entries) == (len(rows), [])
    for document, row in zip(documents, rows, strict=True):
        value, cell = document.metadata["v"], row[3]
        if isinstance(value, bool):
            assert str(value).lower() == cell.strip().lower()
        elif isinstance(value, int | float):
            assert float(cell) == value
        else:
            assert (value or "").strip() == cell.strip()


@given(st.lists(st.tuples(JSON, JSON, JSON, st.dictionaries(TEXT, JSON, max_size=3)), max_size=6))
@settings(max_examples=150, deadline=None)
def test_jsonl(rows):
    records = [{"extra": extra, "id": id, "title": title, "text": text} for id, title, text, extra in rows]
    documents, entries = read("a.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    assert len(documents) + len(entries) == len(records)
    places = {int(each.place.rpartition(":")[2]): each for each in documents}
    for number, record in enumerate(records, start=1):
        if number in places:
            document = places[number]
            title, text = record["title"] or "", record["text"] or ""
            assert (document.id, document.title, document.text) == (str(record["id"]), title, text)
            assert document.metadata == {"extra": record["extra"]}
        else:
            assert not json_sound(record)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT, st.floats() | st.none()), max_size=6))
@settings(max_examples=100, deadline=None)
def test_parquet(rows):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [row for row in rows if storable("".join(row[:3]))]
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    types = (pa.string(), pa.string(), pa.string(), pa.float64())
    table = pa.table({name: pa.array(cells, kind) for name, cells, kind in zip(HEADER, columns, types, strict=True)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    documents, entries = read("a.parquet", buffer.getvalue())
    kept = [row for row in rows if sound((*row[:3], "")) and (row[3] is None or abs(row[3]) < float("inf"))]
    assert [(each.id, each.title, each.text, each.metadata["v"]) for each in documents] == kept
    assert len(entries) == len(rows) - len(kept)


@given(st.binary(max_size=60), st.sampled_from(["a.csv", "a.tsv", "a.jsonl"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_rows_or_rejects(data, name):
    head = b"" if name == "a.jsonl" else b"id\ttext\n" if name == "a.tsv" else b"id,text\n"
    read(name, head + data) if name != "a.jsonl" else read(name, b'{"id": 1, "text": "t"}\n' + data)
