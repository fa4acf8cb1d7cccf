"""Files and folders that cannot be read as a whole, and what kind a path is."""

from __future__ import annotations

import io
import os
import sys

import pytest
from files import refused, table, write

from searchkit.errors import CorpusError
from searchkit.readers.corpus import Fields, kind_of, read_corpus
from searchkit.records import Document

GOOD = '{"id": "good", "text": "tea"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[\n{"id": "a"}]', r"a.json:1: one JSON array, .* jq -c .* > a.jsonl"),
        ("a.jsonl", '[{"id": "a"}]', r"one JSON array, .* > a-lines.jsonl"),
        ("a.json", '{\n"id": "a"\n}', r"a.json:1: a JSON object over several lines, .* jq -c \. .* > a.jsonl"),
        ("a.json", '{"n": 1, "rows": [{"id": "a"}]}', r'around a list, "rows", .* jq -c .*rows.*\[\]'),
        ("a.jsonl", '{"id": 1, "body": "t"}', 'no "text" among "id", "body"; .*--text-field'),
        (
            "a.csv",
            "doc,body\n1,t\n",
            'no column "text"; its columns are "doc", "body"; name the text column with --text-field',
        ),
        ("a.csv", "_id,body\n1,t\n", 'no column "text"; .* --text-field'),
        ("a.tsv", "id,text\n1,t\n", 'no column "text"; its columns are "id,text"; .* --delimiter ","'),
        ("a.csv", "id,text,id\n1,t,2\n", 'more than one column is called "id"'),
        ("a.csv", "", "empty; the first line must name the columns"),
        ("a.csv", b"id,t\xe9xt\n", "a.csv:1: not utf-8: .* at byte 4"),
        ("a.xml", "<a/>", r'unknown suffix ".xml"; expected one of .jsonl .* or name its kind'),
        ("a.txt.gz", "tea", "unknown suffix"),
        ("a.parquet", "not parquet", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, content, message):
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(CorpusError, match=message):
        list(read_corpus(write(tmp_path / name, content)))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (Fields(id="doc"), 'no column "doc"; .*--id-field'),
        (Fields(title="head"), 'no column "head"; .*--title-field'),
        (Fields(text="body"), 'no column "body"; .*--text-field'),
        (Fields(metadata=("year", "lang")), 'no column "year", "lang" to keep as metadata'),
    ],
)
def test_a_named_column_that_is_missing_stops_even_a_lenient_run(tmp_path, kind, fields, message):
    csv_path = write(tmp_path / "a.csv", "id,text\n1,t\n")
    path = csv_path if kind == "csv" else table(tmp_path / "a.parquet", {"id": ["1"], "text": ["t"]})
    with pytest.raises(CorpusError, match=message):
        refused(path, fields=fields)


@pytest.mark.parametrize(("key", "fields"), [("doc", Fields(id="doc", text="key")), ("text", Fields(id="key"))])
def test_a_key_that_no_row_has_stops_even_a_lenient_run(tmp_path, key, fields):
    path = write(tmp_path / "a.jsonl", '{"key": "1"}\n{"key": "2"}\n')
    option = "id" if key == "doc" else key
    with pytest.raises(CorpusError, match=f'no row has "{key}"; .*--{option}-field'):
        refused(path, fields=fields)


def test_damaged_parquet_is_a_corpus_error(tmp_path):
    path = table(tmp_path / "a.parquet", {"id": ["1"] * 5000, "text": [os.urandom(40).hex() for _ in range(5000)]})
    data = path.read_bytes()
    path.write_bytes(data[:5000] + b"\xff" * 100_000 + data[105_000:])
    with pytest.raises(CorpusError, match=r"a.parquet:row \d+: damaged from here on"):
        list(read_corpus(path))


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("missing.jsonl", "auto", "missing.jsonl: no such file or folder"),
        ("-", "parquet", "cannot read parquet from standard input, only jsonl, csv, tsv"),
        ("folder", "csv", "a folder, but csv is read from a file"),
        ("folder", "beir", "not a BEIR folder"),
        ("a.jsonl", "beir", "a BEIR corpus is a folder"),
        ("a.jsonl", "files", "files of text are .txt"),
        ("a.jsonl", "xml", 'kind "xml" is unknown; kinds are auto, beir'),
    ],
)
def test_a_path_that_cannot_be_that_kind_fails_at_once(tmp_path, monkeypatch, path, kind, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=message):
        read_corpus(path, kind=kind)
    with pytest.raises(ValueError, match=message):
        kind_of(path, kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.ndjson", "jsonl"),
        ("a.tsv.gz", "tsv"),
        ("a.parquet", "parquet"),
        ("a.MD", "files"),
        ("papers/a.txt", "files"),
        ("trec/corpus.jsonl.gz", "beir"),
    ],
)
def test_the_kind_of_a_path_is_told(tmp_path, name, kind):
    path = write(tmp_path / name, "")
    assert kind_of(path.parent if "/" in name else str(path)) == kind


def test_a_kind_that_is_named_is_the_kind(tmp_path):
    assert kind_of(write(tmp_path / "a.txt", ""), "csv") == "csv"
    assert (kind_of("-"), kind_of("-", "tsv")) == ("jsonl", "tsv")


def test_an_unknown_encoding_fails_at_once(tmp_path):
    with pytest.raises(CorpusError, match='no encoding is called "utf-9"'):
        read_corpus(write(tmp_path / "a.jsonl", GOOD), encoding="utf-9")


# Folders


def test_a_folder_is_read_in_order_without_hidden_and_other_files(tmp_path):
    for name in ("b.txt", "a/Z.MD", "a/b/c.txt", ".hidden.txt", ".git/x.txt", "data.bin"):
        write(tmp_path / name, "tea")
    (tmp_path / "loop").symlink_to(tmp_path)
    documents = list(read_corpus(tmp_path))
    assert [document.id for document in documents] == ["b.txt", "a/Z.MD", "a/b/c.txt"]
    assert documents[1].title == "Z"
    assert documents[1].place == str(tmp_path / "a/Z.MD")


def test_files_carry_their_day(tmp_path):
    path = write(tmp_path / "tea.txt", b"\xef\xbb\xbfone\r\ntwo")
    os.utime(path, (0, 86400 * 365))
    expected = Document("tea.txt", "one\ntwo", "tea", {"modified": "1971-01-01"})
    assert list(read_corpus(path)) == list(read_corpus(tmp_path)) == [expected]


def test_a_folder_spelled_otherwise_gives_the_same_documents(tmp_path, monkeypatch):
    write(tmp_path / "a" / "tea.txt", "hot")
    monkeypatch.chdir(tmp_path)
    spellings = [".", tmp_path, tmp_path / "a" / ".."]
    assert len({document.checksum() for path in spellings for document in read_corpus(path)}) == 1


def written_pdf(password: str | None) -> bytes:
    writer = pytest.importorskip("pypdf").PdfWriter()
    writer.add_blank_page(100, 100)
    if password is not None:
        writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("a.pdf", lambda: written_pdf("secret"), "encrypted: it opens only with a password"),
        ("a.pdf", lambda: written_pdf(None), "empty text: .* scanned pages need character recognition"),
        ("a.pdf", lambda: written_pdf(""), "empty text"),
        ("a.pdf", lambda: b"%PDF-1.4\nnonsense", "cannot be read as PDF"),
        ("a.pdf", lambda: b"", "not a PDF: it does not begin with %PDF-"),
        ("a.txt", lambda: b"th\xe9", "not utf-8: unexpected end of data 0xe9 at byte 2 of the file; .* --encoding"),
        ("a.md", lambda: b" \n", "empty text"),
        ("a.html", lambda: b"<p></p>", "empty text"),
        ("a.txt", lambda: b"a\0b", "text holds a NUL byte"),
    ],
)
def test_a_bad_file_is_named_or_set_aside(tmp_path, name, make, reason):
    if name == "a.html":
        pytest.importorskip("bs4")
    folder = tmp_path / "papers"
    path = write(folder / name, make())
    write(folder / "good.txt", "tea")
    with pytest.raises(CorpusError, match=f"{name}: {reason}"):
        list(read_corpus(folder))
    ids, entries = refused(folder)
    assert (ids, [entry["place"] for entry in entries]) == (["good.txt"], [str(path)])


def test_a_link_to_nothing_is_a_bad_file(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(CorpusError, match=r"a.txt: cannot be opened: No such file"):
        list(read_corpus(tmp_path))


def test_a_file_name_that_is_not_utf8_is_a_bad_file(tmp_path):
    try:
        write(tmp_path / "papers" / os.fsdecode(b"th\xe9.txt"), "tea")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert refused(tmp_path / "papers")[1][0]["reason"].startswith("its name is not UTF-8")


@pytest.mark.parametrize(("name", "library"), [("a.pdf", "pypdf"), ("a.html", "bs4"), ("a.parquet", "pyarrow")])
def test_a_missing_library_names_its_extra(tmp_path, monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"reading .* needs .*: pip install 'searchkit\[files\]'"):
        refused(write(tmp_path / name, b"x"))


def test_a_folder_without_readable_files_says_what_is_there(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.doc", "README"):
        write(tmp_path / name, "x")
    with pytest.raises(
        CorpusError, match=r"expected .txt .* found: 2 .jsonl, 1 .doc, 1 without a suffix|found: 2 .jsonl"
    ):
        list(read_corpus(tmp_path))
    with pytest.raises(CorpusError, match="found: nothing"):
        list(read_corpus(write(tmp_path / "empty" / ".keep", "").parent))
