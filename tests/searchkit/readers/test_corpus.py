"""What is read, and what is said when it cannot be."""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import json
import os
import sys
import threading
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from files import refused, table, write

from searchkit.errors import CorpusError
from searchkit.readers.corpus import Fields, ReadReport, Rejects, estimate_documents, read_corpus
from searchkit.records import Document
from searchkit.validation import check_document

TEA = Document(id="1", title="Tea", text="Steep for three minutes.", metadata={"year": 2015})
GOOD = '{"id": "good", "text": "tea"}\n'


# --- rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"id": 1, "title": "Tea", "text": "Steep for three minutes.", "year": 2015}\n'),
        ("a.ndjson", '\ufeff{"_id": "1", "title": "Tea", "text": "Steep for three minutes.", "year": 2015}'),
        ("a.json", '\n{"id": "1", "title": "Tea", "text": "Steep for three minutes.", "metadata": {"year": 2015}}\r\n'),
        ("a.jsonl.gz", '{"id": "1", "title": "Tea", "text": "Steep for three minutes.", "year": 2015}\n'),
        ("a.csv", '\ufeffid,title,text,metadata\r\n1,Tea,Steep for three minutes.,"{""year"": 2015}"\r\n'),
        ("a.tsv.gz", 'id\ttitle\ttext\tmetadata\n1\tTea\tSteep for three minutes.\t"{""year"": 2015}"\n'),
    ],
)
def test_every_line_format_gives_the_same_document(tmp_path, name, content):
    assert list(read_corpus(write(tmp_path / name, content))) == [TEA]


def test_parquet_gives_the_same_document(tmp_path):
    path = table(tmp_path / "a.parquet", {"id": [1], "title": ["Tea"], "text": [TEA.text], "year": [2015]})
    assert list(read_corpus(path)) == [TEA]


def test_documents_carry_their_file_and_line(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD + "\n" + GOOD)
    assert [document.place for document in read_corpus(str(path))] == [f"{path}:1", f"{path}:3"]


def test_csv_places_are_where_a_record_starts(tmp_path):
    path = write(tmp_path / "a.csv", 'id,text\n1,"two\nlines"\n\n2,tea\n')
    documents = list(read_corpus(path))
    assert [document.place for document in documents] == [f"{path}:2", f"{path}:5"]
    assert documents[0].text == "two\nlines"


def test_parquet_places_are_rows(tmp_path):
    path = table(tmp_path / "a.parquet", {"id": ["a", "b"], "text": ["x", "y"]})
    assert [document.place for document in read_corpus(path)] == [f"{path}:row 1", f"{path}:row 2"]


def test_named_fields_are_used_and_named_metadata_is_all_that_is_kept(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '{"doc": 7, "head": "Tea", "body": "hot", "year": 1, "x": 2, "metadata": {"y": 3}}'
    )
    fields = Fields(id="doc", title="head", text="body", metadata=("year", "y", "head"))
    assert list(read_corpus(path, fields=fields)) == [Document("7", "hot", "Tea", {"year": 1, "y": 3, "head": "Tea"})]


def test_metadata_may_have_an_id_and_a_title_of_its_own(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"id": "a", "text": "tea", "metadata": {"id": 5, "title": "x"}, "lang": "en"}')
    assert next(read_corpus(path)).metadata == {"id": 5, "title": "x", "lang": "en"}


def test_text_may_be_blank_or_null_under_a_title(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '{"id": "a", "title": "Tea", "text": ""}\n{"id": "b", "title": "T", "text": null}'
    )
    assert [document.text for document in read_corpus(path)] == ["", ""]


def test_an_encoding_can_be_named(tmp_path):
    path = write(tmp_path / "a.csv", "id,text\n1,thé\n".encode("cp1252"))
    assert next(read_corpus(path, encoding="cp1252")).text == "thé"


def test_parquet_values_become_json(tmp_path):
    moment = datetime.datetime(2015, 6, 1, 12, 30)
    columns = {"id": ["a"], "text": ["t"], "day": [moment.date()], "at": [moment], "cost": [Decimal("1.50")]}
    columns |= {"tags": [["x", "y"]], "metadata": [{"deep": {"when": moment.date()}}]}
    document = next(read_corpus(table(tmp_path / "a.parquet", columns)))
    assert document.metadata == {
        "deep": {"when": "2015-06-01"},
        "day": "2015-06-01",
        "at": "2015-06-01T12:30:00",
        "cost": 1.5,
        "tags": ["x", "y"],
    }


def test_unnamed_csv_columns_are_left_out(tmp_path):
    assert next(read_corpus(write(tmp_path / "a.csv", ",id,text,\n0,a,tea,\n"))).metadata == {}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"id": "x", "text": ', "the row is not JSON: Expecting value at column"),
        (b'{"id": "x", "text": "t', "the row is not JSON: Unterminated string starting at column 21"),
        (b'{"id": "x", "text": "t", "n": NaN}', "the row is not JSON: NaN is not a JSON number"),
        (b'{"id": "x", "text": "t", "n": 1e999}', "metadata holds NaN or Infinity"),
        (
            b'{"id": "x", "text": "t", "n": ' + b"9" * 5000 + b"}",
            "the row holds a number of thousands of digits; write it as a string",
        ),
        (b'{"id": "x", "n": ' + b"[" * 100_000, "the row is nested too deeply to read"),
        (b'{"id": "x", "text": "t", "text": "u"}', 'the row is not JSON: the key "text" comes more than once'),
        (b'{"id": "x", "text": "t", "m": {"a": 1, "a": 2}}', 'the row is not JSON: the key "a" comes more than once'),
        (
            b'{"id": "x",',
            "the row is not JSON: Expecting property name enclosed in double quotes at column 12; it ends",
        ),
        (b'["x", "t"]', "the row is a list; it must be a JSON object"),
        (b"42", "the row is a number; it must be a JSON object"),
        (b'{"key": "x", "text": "t"}', 'no "id" among "key", "text"; name the one to use with --id-field'),
        (b'{"id": "x", "body": "t"}', 'no "text" among "id", "body"; name the one to use with --text-field'),
        (b'{"id": " ", "text": "t"}', "empty id"),
        (b'{"id": null, "text": "t"}', "id is null; it must be a string or an integer"),
        (b'{"id": true, "text": "t"}', "id is a boolean"),
        (b'{"id": 1.0, "text": "t"}', "id is a decimal number"),
        (b'{"id": "x", "text": ["t"]}', "text is a list; it must be a string"),
        (b'{"id": "x", "text": "t", "title": 3}', "title is a number; it must be a string"),
        (b'{"id": "x", "text": " ", "title": ""}', "empty text"),
        (b'{"id": "x", "text": "a\\u0000b"}', "text holds a NUL byte at character 1"),
        (b'{"id": "x\\u0000", "text": "b"}', "id holds a NUL byte"),
        (b'{"id": "x", "text": "a\\ud800b"}', "text holds the lone surrogate \\ud800"),
        (b'{"id": "x", "text": "t", "m": {"\\udc00": 1}}', "metadata holds the lone surrogate \\udc00"),
        (b'{"id": "x", "text": "t", "metadata": [1]}', "metadata is a list; it must be an object"),
        (b'{"id": "x", "text": "th\xe9"}', "not utf-8: invalid continuation byte 0xe9 at byte 23 of the line"),
    ],
)
def test_a_bad_json_row_is_named_or_set_aside(tmp_path, row, reason):
    path = write(tmp_path / "a.jsonl", GOOD.encode() + row + b"\n" + GOOD.encode())
    with pytest.raises(CorpusError) as error:
        list(read_corpus(path))
    assert str(error.value).startswith(f"{path}:2: {reason}")
    ids, entries = refused(path)
    assert ids == ["good", "good"]
    assert entries[0]["place"] == f"{path}:2"
    assert entries[0]["reason"].startswith(reason)
    assert entries[0]["row"] == row.decode(errors="backslashreplace")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"x,Tea", "2 columns where the header has 4; quote cells"),
        (b"x,Tea,one,,two", "5 columns where the header has 4"),
        (
            b'x,Tea,"one" two,',
            'broken quotes: a cell goes on after its closing quote; double the quotes inside it ("")',
        ),
        (b"x,,,", "empty text"),
        (b"x,Tea\rMilk,one,", "broken quotes or line ends: new-line character seen in unquoted field"),
        (b"id,title,text,metadata", "the header again"),
        (b",Tea,one,", "empty id"),
        (b"x,Tea,th\xe9,", "not utf-8: invalid continuation byte 0xe9 at byte 8 of the line"),
        (b"x,Tea,a\0b,", "text holds a NUL byte"),
        (b"x,Tea,one,nonsense", "metadata is not JSON: Expecting value at column 1"),
        (b"x,Tea,one,[1]", "metadata is a list; it must be a JSON object"),
    ],
)
def test_a_bad_csv_row_is_named_or_set_aside(tmp_path, row, reason):
    path = write(tmp_path / "a.csv", b"id,title,text,metadata\n" + row + b"\ngood,,tea,\n")
    with pytest.raises(CorpusError) as error:
        list(read_corpus(path))
    assert str(error.value).startswith(f"{path}:2: {reason}")
    ids, entries = refused(path)
    assert ids == ["good"]
    assert (entries[0]["place"], entries[0]["row"]) == (f"{path}:2", row.decode(errors="backslashreplace"))


def test_a_quote_never_closed_is_a_fault_where_it_opened(tmp_path):
    path = write(tmp_path / "a.csv", 'id,text\n1,tea\n2,"open\n3,milk\n')
    with pytest.raises(
        CorpusError,
        match=r"a.csv:3: broken quotes: a quote that opens here is not closed before line 4, and line 4 looks",
    ):
        list(read_corpus(path))


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("image", [b"\x89PNG", None], 'column "image" holds bytes, which JSON cannot'),
        ("took", [datetime.timedelta(1), None], 'column "took" holds'),
        ("score", [float("nan"), 1.0], "metadata holds NaN"),
        ("metadata", ["nonsense", ""], "metadata is not JSON"),
        ("text", [None, "t"], "empty text"),
        ("id", [None, "good"], "id is null"),
    ],
)
def test_a_bad_parquet_row_is_named_or_set_aside(tmp_path, column, values, reason):
    path = table(tmp_path / "a.parquet", {"id": ["x", "good"], "text": ["t", "t"]} | {column: values})
    with pytest.raises(CorpusError) as error:
        list(read_corpus(path))
    assert str(error.value).startswith(f"{path}:row 1: {reason}")
    ids, entries = refused(path)
    assert (ids, len(entries)) == (["good"], 1)


def test_parquet_text_that_is_not_utf8_is_one_bad_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    text = pa.array([b"th\xe9", b"tea"]).view(pa.string())
    ids, entries = refused(table(tmp_path / "a.parquet", {"id": ["x", "good"], "text": text}))
    assert ids == ["good"]
    assert "column \"text\": 'utf-8' codec" in entries[0]["reason"]
    assert json.loads(entries[0]["row"])["text"] == "b'th\\xe9'"  # kept whole


def test_parquet_text_may_be_bytes_in_utf8(tmp_path):
    document = next(read_corpus(table(tmp_path / "a.parquet", {"id": [b"a"], "text": ["thé".encode()]})))
    assert (document.id, document.text) == ("a", "thé")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_bad_file_of_several_is_a_reject_and_the_others_are_read(tmp_path, suffix):
    good = {".csv": "id,text\n{0},tea\n", ".jsonl": '{{"id": "{0}", "text": "tea"}}\n'}
    for name in "acd":
        path = tmp_path / "parts" / f"{name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        if suffix == ".parquet":
            table(path, {"id": [name], "text": ["tea"]})
        else:
            write(path, good[suffix].format(name))
    write(tmp_path / "parts" / f"b{suffix}", "PAR1 and no more")
    corpus = tmp_path / "parts" if suffix == ".parquet" else tmp_path / "parts" / f"*{suffix}"
    ids, entries = refused(corpus)
    assert ids == ["a", "c", "d"]
    assert [Path(entry["place"]).name for entry in entries] == [f"b{suffix}"]
    assert "arquet" in entries[0]["reason"]
    with pytest.raises(CorpusError, match=rf"b\{suffix}: "):
        list(read_corpus(corpus))


# --- streaming


def test_the_first_document_comes_before_the_pipe_is_closed(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as sender, os.fdopen(reader, "rb") as receiver:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=receiver))
        sender.write(GOOD.encode())
        sender.flush()
        documents = read_corpus("-")
        assert next(documents) == Document("good", "tea", place="stdin:1")
        documents.close()
        assert not receiver.closed


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "jsonl.gz"])
def test_lines_are_read_as_they_are_asked_for(tmp_path, suffix):
    content = "id,text\n1,t\n" if suffix == "csv" else GOOD
    path = write(tmp_path / f"a.{suffix}", content + '"no\n')
    assert next(read_corpus(path)).text in ("t", "tea")


def test_standard_input_may_be_csv(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"id,text\n1,tea\n")))
    assert list(read_corpus("-", kind="csv")) == [Document("1", "tea")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_estimating_leaves_a_pipe_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert estimate_documents(tmp_path / "pipe.jsonl") is None
    sender = threading.Thread(target=(tmp_path / "pipe.jsonl").write_text, args=(GOOD,))
    sender.start()
    assert [document.id for document in read_corpus(tmp_path / "pipe.jsonl")] == ["good"]
    sender.join()


# --- rejects


def test_a_clean_run_writes_no_rejects(tmp_path):
    refused(write(tmp_path / "a.jsonl", GOOD))
    assert list((tmp_path / "refused").iterdir()) == []


def test_a_new_run_overwrites_the_rejects_of_the_last(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD + "1\n2\n")
    assert len(refused(path)[1]) == len(refused(path)[1]) == 2


def test_the_corpus_is_not_overwritten_by_its_own_rejects(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(CorpusError, match="would overwrite the corpus itself"):
        read_corpus(path, rejects=Rejects(path))


# --- BEIR


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_beir_folder_is_recognised(tmp_path, name):
    row = {"_id": "d1", "id": "other", "title": "Tea", "text": "hot", "metadata": {"url": "x"}, "lang": "en"}
    write(tmp_path / name, json.dumps(row))
    expected = Document("d1", "hot", "Tea", {"url": "x", "id": "other", "lang": "en"})
    assert list(read_corpus(tmp_path)) == list(read_corpus(tmp_path, kind="beir")) == [expected]
    assert next(read_corpus(tmp_path)).place == f"{tmp_path / name}:1"


def test_a_beir_folder_may_have_plain_ids(tmp_path):
    write(tmp_path / "corpus.jsonl", '{"id": "d1", "text": "tea"}\n')
    assert list(read_corpus(tmp_path)) == [Document("d1", "tea")]


def test_metadata_that_no_row_has_are_told_of(tmp_path):
    report = ReadReport()
    fields = Fields(metadata=("year", "lang", "yaer"))
    path = write(
        tmp_path / "a.jsonl", '{"id": "a", "text": "t", "year": 1}\n{"id": "b", "text": "t", "metadata": {"lang": 2}}\n'
    )
    assert len(list(read_corpus(path, fields=fields, report=report))) == 2
    assert report.notes() == [f'{path}: no row has "yaer" to keep as metadata (--metadata-field)']


@pytest.mark.parametrize("path", [None, "rows.jsonl"])
def test_blank_beir_rows_are_counted_and_stop_nothing(tmp_path, path):
    write(tmp_path / "corpus.jsonl", '{"_id": "a", "title": "", "text": ""}\n{"_id": "b", "text": "tea"}\n')
    with Rejects(path and tmp_path / path) as rejects:
        assert [document.id for document in read_corpus(tmp_path, rejects=rejects)] == ["b"]
    assert rejects.count == 1
    assert (tmp_path / "rows.jsonl").exists() == (path is not None)


def test_other_faults_of_beir_rows_still_stop(tmp_path):
    write(tmp_path / "corpus.jsonl", '{"key": "a", "text": "tea"}\n')
    with pytest.raises(CorpusError, match=r'corpus.jsonl:1: no "_id" among "key", "text"'):
        list(read_corpus(tmp_path))


# --- estimates


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("a.jsonl", GOOD * 3, 3),
        ("a.jsonl", GOOD * 2 + GOOD.strip(), 3),
        ("a.csv", "id,text\n1,t\n2,t\n", 2),
        ("a.csv", "", 0),
        ("a.jsonl.gz", GOOD, None),
        ("corpus.jsonl", GOOD * 2, 2),
        ("papers/a.txt", "x", 1),
    ],
)
def test_estimates_count_documents(tmp_path, name, content, count):
    path = write(tmp_path / name, content)
    assert estimate_documents(path.parent if name.startswith(("corpus", "papers")) else path) == count


def test_parquet_counts_its_rows_and_stdin_none(tmp_path):
    assert estimate_documents(table(tmp_path / "a.parquet", {"id": ["1"] * 9, "text": ["t"] * 9})) == 9
    assert estimate_documents("-") is None


# --- against an independent reader


def test_csv_agrees_with_the_csv_module(tmp_path):
    cells = ["tea", "a,b", 'say "x"', "two\nlines", "tab\there", " padded "]
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "text"), *zip(itertools.count(), cells, strict=False)])
    assert [document.text for document in read_corpus(tmp_path / "a.csv")] == cells


def test_a_file_may_have_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    try:
        path.write_text('{"id": "a", "text": "Tea."}\n')
    except OSError:
        pytest.skip("this file system takes no such name")
    (document,) = read_corpus(path)
    check_document(document)
    assert document.place.endswith("caf\\xe9.jsonl:1")
