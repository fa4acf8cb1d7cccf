"""Folders of notes: what is read, what is passed over, and which titles they get."""

from __future__ import annotations

import datetime
import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path

import pytest
from files import saved, write

from searchkit.engine import SearchEngine
from searchkit.errors import CorpusError, MissingExtraError
from searchkit.readers.corpus import ReadReport, Rejects, estimate_documents, kind_of, read_corpus

# --- what is read


def test_every_file_is_read_or_counted(tmp_path):
    for name in ("a.md", "b.markdown", "c.mdx", "d.rst", "e.txt", "f.org", "g.adoc", "h.txt.gz", "i.MD.bak", "j"):
        write(tmp_path / "notes" / name, "zebra")
    report = ReadReport()
    documents = list(read_corpus(tmp_path / "notes", report=report))
    assert [document.id[0] for document in documents] == list("abcdefg")
    assert report.passed_over == {".gz": 1, ".bak": 1, "without a suffix": 1}
    assert "files of other kinds ignored: 1 .gz, 1 .bak, 1 without a suffix" in report.notes()


def test_links_to_folders_are_followed_and_never_in_a_circle(tmp_path):
    write(tmp_path / "notes" / "a.md", "here")
    write(tmp_path / "elsewhere" / "z.md", "there")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "notes" / "linked").symlink_to("../elsewhere")
    (tmp_path / "notes" / "loop").symlink_to(".")
    report = ReadReport()
    assert [each.id for each in read_corpus(tmp_path / "notes", report=report)] == ["a.md", "linked/z.md"]
    assert report.passed_over.total() == 3


def test_a_pattern_names_files_by_their_folder(tmp_path, monkeypatch):
    for name in ("notes/a.md", "notes/b.txt", "notes/deep/c.md"):
        write(tmp_path / name, "tea")
    monkeypatch.chdir(tmp_path)
    assert [each.id for each in read_corpus("notes/*.md")] == ["a.md"]
    assert [each.id for each in read_corpus(f"{tmp_path}/notes/**/*.md")] == ["a.md", "deep/c.md"]
    assert [each.id for each in read_corpus("notes/*")] == ["a.md", "b.txt", "deep/c.md"]
    assert estimate_documents("notes/*") == 3
    with pytest.raises(CorpusError, match="no file or folder matches"):
        read_corpus("notes/*.pdf")


def test_a_pattern_may_name_the_parts_of_a_table(tmp_path):
    for part in (1, 2):
        write(tmp_path / f"p{part}.jsonl", f'{{"id": {part}, "text": "tea"}}\n')
    write(tmp_path / "q.csv", "id,text\n")
    assert [each.id for each in read_corpus(tmp_path / "p*.jsonl")] == ["1", "2"]
    with pytest.raises(CorpusError, match="files of several kinds"):
        read_corpus(tmp_path / "*")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    assert next(read_corpus(write(tmp_path / "a[1].md", "tea"))).id == "a[1].md"


def test_a_folder_of_parquet_parts_is_one_table(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for year, name in ((2020, "a"), (2021, "b")):
        folder = tmp_path / "t" / f"year={year}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"id": [name], "text": ["tea"]}), folder / "part-0.parquet")
    write(tmp_path / "t" / "_SUCCESS", "")
    write(tmp_path / "t" / "_temporary" / "x.parquet", "broken")
    assert (kind_of(tmp_path / "t"), estimate_documents(tmp_path / "t")) == ("parquet", 2)
    assert [(each.id, each.metadata) for each in read_corpus(tmp_path / "t")] == [
        ("a", {"year": 2020}),
        ("b", {"year": 2021}),
    ]


def test_a_missing_library_sets_its_files_aside_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    write(tmp_path / "notes" / "a.md", "rivers")
    write(tmp_path / "notes" / "c.pdf", "%PDF-1.4")
    with Rejects(tmp_path / "rows.jsonl") as rejects:
        assert [each.id for each in read_corpus(tmp_path / "notes", rejects=rejects)] == ["a.md"]
    assert "pip install 'searchkit[files]'" in json.loads((tmp_path / "rows.jsonl").read_text())["reason"]
    with pytest.raises(MissingExtraError, match=r"c.pdf: reading .pdf needs pypdf: .*--on-error skip"):
        list(read_corpus(tmp_path / "notes"))


# --- Markdown


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Programming in C#\n", "Programming in C#"),
        ("# C# #\n", "C#"),
        ("#hashtag\n# Real\n", "Real"),
        ("   # Three spaces\n", "Three spaces"),
        ("    # code\n# Title\n", "Title"),
        ("```\n~~~\n# rm -rf\n```\n# Real title\n", "Real title"),
        ("````\n```\n# x\n````\n# T\n", "T"),
        ("```sh\n# x\n``` not closed\n# y\n```\n# T", "T"),
        ("<!--\n# hidden\n-->\n# Shown\n", "Shown"),
        ("<!-- a --> \n# Shown\n", "Shown"),
        ("```\n<!--\n```\n# T\n", "T"),
        ("Setext\n======\n\nx\n", "Setext"),
        ("two\nlines\n===\n", "two lines"),
        ("- item\n\nA\n=\n", "A"),
        ("para\n\n=====\n# T", "T"),
        ("Second level\n---\n# First\n", "First"),
        ("# **Bold** and `code` in [a link](http://x)\n", "Bold and code in a link"),
        ("# 2 * 3 * 4 and snake_case_name\n", "2 * 3 * 4 and snake_case_name"),
        ('<h1 align="center">\n  <b>Project</b>\n</h1>\n\n## Part\n', "Project"),
        ("#\n# T\n", "T"),
        ("# \\# sharp\n", "# sharp"),
        ("---\n\n# After a rule\n", "After a rule"),
        ("## Part\n", "note"),
    ],
)
def test_a_title_is_the_first_heading_of_level_one(tmp_path, text, title):
    assert next(read_corpus(write(tmp_path / "note.md", text))).title == title


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.rst", "=====\nTitle\n=====\n\nx", "Title"),
        ("a.rst", ".. note:: x\n\nTitle here\n----------\n", "Title here"),
        ("a.org", "#+TITLE: Notes\n* Part", "Notes"),
        ("a.adoc", "// x\n= Guide\n\n== Part", "Guide"),
        ("a.txt", "# not Markdown", "a"),
    ],
)
def test_other_notes_have_titles_of_their_own(tmp_path, name, text, title):
    assert next(read_corpus(write(tmp_path / name, text))).title == title


@pytest.mark.parametrize(
    ("text", "title", "metadata", "body"),
    [
        ("---\ntitle: Log\ntags: [bread, rye]\ndate: 2024-05-01\n---\n\nFeed it.\n", "Log",
         {"tags": ["bread", "rye"], "date": "2024-05-01"}, "Feed it.\n"),
        ("---\nauthor: Ada\n...\n# Heading\n", "Heading", {"author": "Ada"}, "# Heading\n"),
        ('+++\ntitle = "Log"\ndate = 2024-05-01T10:00:00Z\n+++\nx', "Log", {"date": "2024-05-01T10:00:00+00:00"}, "x"),
        ("---\r\ntitle: 2024\r\n---\r\nx", "2024", {}, "x"),
        ("\ufeff---\ntitle: T\n---\nx", "T", {}, "x"),
        ("---\n---\nx", "note", {}, "---\n---\nx"),
        ("---\na line between rules\n---\nx", "note", {}, "---\na line between rules\n---\nx"),
        ("---\n: [\n---\nx", "note", {}, "---\n: [\n---\nx"),
        ("---\na: &a [x]\nb: *a\n---\nx", "note", {}, "---\na: &a [x]\nb: *a\n---\nx"),
        ("---\nno end\n", "note", {}, "---\nno end\n"),
        ("x\n---\ntitle: no\n---\n", "note", {}, "x\n---\ntitle: no\n---\n"),
    ],
)  # fmt: skip
def test_front_matter_is_metadata(tmp_path, text, title, metadata, body):
    document = next(read_corpus(write(tmp_path / "note.md", text)))
    own = {key: value for key, value in document.metadata.items() if key != "modified"}
    assert (document.title, own, document.text) == (title, metadata, body)


def test_the_day_of_a_file_is_not_compared_but_its_own_is(tmp_path):
    first, second = (
        write(tmp_path / name, text) for name, text in (("a.md", "x"), ("b.md", "---\nmodified: now\n---\nx"))
    )
    os.utime(first, (0, 0))
    assert [each.incidental for each in map(next, map(read_corpus, (first, second)))] == [("modified",), ()]


# --- other formats


def test_the_title_of_a_page_comes_before_those_of_its_drawings(tmp_path):
    pytest.importorskip("bs4")
    page = "<body><svg><title>Icon</title></svg><title>Page</title><p>x"
    assert next(read_corpus(write(tmp_path / "a.html", page))).title == "Page"
    page = "<body><svg><title>Icon</title></svg><h1>Heading</h1>"
    assert next(read_corpus(write(tmp_path / "b.html", page))).title == "Heading"


def docx() -> bytes:
    document = pytest.importorskip("docx").Document()
    document.add_heading("Green tea", 1)
    document.add_paragraph("Steep it.")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "cups", "two"
    return saved(document)


def pptx() -> bytes:
    presentation = pytest.importorskip("pptx").Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "Green tea", "Steep it."
    slide.notes_slide.notes_text_frame.text = "Say it slowly."
    return saved(presentation)


def xlsx() -> bytes:
    book = pytest.importorskip("openpyxl").Workbook()
    book.active.title = "Teas"
    book.active.append(["name", "minutes", None])
    book.active.append(["green", 3, datetime.date(2024, 5, 1)])
    book.create_sheet("Empty")
    return saved(book)


def epub() -> bytes:
    pytest.importorskip("bs4")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as book:
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:x"><rootfiles><rootfile full-path="O/c.opf"/></rootfiles></container>',
        )
        book.writestr("O/c.opf", '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
                      "<metadata><dc:title>Green tea</dc:title><dc:creator>Ada</dc:creator></metadata>"
                      '<manifest><item id="b" href="two%20b.xhtml"/><item id="a" href="a.xhtml"/></manifest>'
                      '<spine><itemref idref="a"/><itemref idref="b"/></spine></package>')  # fmt: skip
        book.writestr("O/a.xhtml", "<html><body><h1>Green tea</h1><p>First.</p></body></html>")
        book.writestr("O/two b.xhtml", "<html><body><p>Second.</p></body></html>")
    return buffer.getvalue()


def eml() -> bytes:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["Date"] = "Grüner Tee", "ada@example.org", "Wed, 01 May 2024 10:00:00 +0200"
    mail.set_content("Steep it.\n")
    mail.add_alternative("<p>Steep <b>it</b>.", subtype="html")
    mail.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="x.pdf")
    return mail.as_bytes()


def ipynb() -> bytes:
    cells = [{"cell_type": "code", "source": ["# not a title\n", "x = 1"], "outputs": [{"text": "no"}]}]
    cells += [{"cell_type": "markdown", "source": "# Green tea\n\nSteep it."}]
    return json.dumps({"cells": cells}).encode()


@pytest.mark.parametrize(
    ("make", "title", "text", "metadata"),
    [
        (docx, "Green tea", "Steep it.\ncups | two", {}),
        (pptx, "Green tea", "Steep it.\n\nSay it slowly.", {}),
        (xlsx, "a", "Teas\nname | minutes\ngreen | 3 | 2024-05-01", {}),
        (epub, "Green tea", "First.\n\nSecond.", {"creator": "Ada"}),
        (eml, "Grüner Tee", "Steep it.\n", {"from": "ada@example.org", "date": "2024-05-01T10:00:00+02:00"}),
        (ipynb, "Green tea", "# not a title\nx = 1\n\n# Green tea\n\nSteep it.", {}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_format_is_read(tmp_path, make: Callable[[], bytes], title, text, metadata):
    document = next(read_corpus(write(tmp_path / f"a.{make.__name__}", make())))
    own = {key: value for key, value in document.metadata.items() if key != "modified"}
    assert (document.title, document.text, own) == (title, text, metadata)


@pytest.mark.parametrize("suffix", ["docx", "pptx", "xlsx", "epub", "ipynb", "eml"])
@pytest.mark.parametrize("content", [b"", b"zebra", b"PK\x05\x06" + b"\0" * 18, b"\xff\xfe\x00"])
def test_a_damaged_file_is_one_reject(tmp_path, suffix, content):
    write(tmp_path / "notes" / f"a.{suffix}", content)
    write(tmp_path / "notes" / "b.txt", "tea")
    report = ReadReport()
    with Rejects(tmp_path / "rows.jsonl") as rejects:
        documents = list(read_corpus(tmp_path / "notes", rejects=rejects, report=report))
    assert documents[-1].id == "b.txt"
    assert report.rows == len(documents) + rejects.count == 2


@pytest.mark.parametrize(("suffix", "library"), [("docx", "docx"), ("pptx", "pptx"), ("xlsx", "openpyxl")])
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, suffix, library):
    data = {"docx": docx, "pptx": pptx, "xlsx": xlsx}[suffix]()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"reading .* needs .*: pip install 'searchkit\[files\]'"):
        list(read_corpus(write(tmp_path / f"a.{suffix}", data)))


def test_parquet_values_keep_their_values(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    nanoseconds = 1_714_557_005_123_456_789
    columns = {
        "price": (pa.decimal128(10, 2), Decimal("1.50"), 1.5),
        "count": (pa.decimal128(20, 0), Decimal(12345678901234567890), "12345678901234567890"),
        "exact": (pa.decimal128(38, 20), Decimal("0.12345678901234567891"), "0.12345678901234567891"),
        "score": (pa.float32(), 0.1, 0.1),
        "half": (pa.float16(), 0.1, 0.1),
        "day": (pa.date32(), datetime.date(2024, 5, 1), "2024-05-01"),
        "time": (pa.time64("us"), datetime.time(1, 2), "01:02:00"),
        "utc": (pa.timestamp("s", "UTC"), 1714557005, "2024-05-01T09:50:05+00:00"),
        "ns": (pa.timestamp("ns"), nanoseconds, "2024-05-01T09:50:05.123456789"),
        "ns_utc": (pa.timestamp("ns", "UTC"), nanoseconds, "2024-05-01T09:50:05.123456789+00:00"),
        "category": (pa.string(), "x", "x"),
        "big": (pa.int64(), 2**62, 2**62),
        "missing": (pa.decimal128(5, 1), None, None),
        "floats": (pa.list_(pa.float32()), [0.1, None], [0.1, None]),
        "deep": (
            pa.struct([("x", pa.float16()), ("at", pa.timestamp("ns"))]),
            {"x": 0.1, "at": nanoseconds},
            {"x": 0.1, "at": "2024-05-01T09:50:05.123456789"},
        ),
        "map": (pa.map_(pa.string(), pa.float32()), [("k", 0.1)], {"k": 0.1}),
        "pairs": (pa.map_(pa.int64(), pa.string()), [(1, "x")], [[1, "x"]]),
        "__index_level_0__": (pa.int64(), 7, None),
    }
    arrays = {name: pa.array([value], type) for name, (type, value, _) in columns.items()}
    arrays["category"] = arrays["category"].dictionary_encode()
    pq.write_table(pa.table({"id": ["a"], "text": ["t"], **arrays}), tmp_path / "a.parquet")
    expected = {name: value for name, (_, _, value) in columns.items() if not name.startswith("__")}
    assert next(read_corpus(tmp_path / "a.parquet")).metadata == expected


def test_a_file_that_was_only_touched_is_not_embedded_again(tmp_path, embedder):
    path = write(tmp_path / "notes" / "a.md", "rivers")
    os.utime(path, (0, 0))
    with SearchEngine.create(tmp_path / "x.index", model=embedder) as engine:
        engine.add(read_corpus(tmp_path / "notes"))
        os.utime(path)
        for update in (False, True):
            report = engine.add(read_corpus(tmp_path / "notes"), update=update)
            assert (report.unchanged, report.documents) == (1, 0)
        write(path, "lakes")
        assert engine.add(read_corpus(tmp_path / "notes"), update=True).updated == 1


# --- what cannot be read


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so that it becomes somebody else for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder below which anybody may read, unlike pytest's own."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o777)
    yield place
    for folder in place.rglob("*"):
        folder.chmod(0o755)
    shutil.rmtree(place)


@pytest.mark.parametrize("mode", [0o000, 0o444])  # not listed; listed, but no file in it may be looked at
def test_a_locked_folder_is_a_reject_and_the_rest_is_read(open_folder, mode):
    for name in ("a.md", "locked/b.md", "locked/deep/c.md", "z/d.md", "e.md"):
        write(open_folder / "notes" / name, "tea")
    (open_folder / "notes" / "locked").chmod(mode)
    (open_folder / "notes" / "e.md").chmod(0o000)
    report = ReadReport()
    with Rejects(open_folder / "rows.jsonl") as rejects:
        documents = read_corpus(open_folder / "notes", rejects=rejects, report=report)
        with as_nobody():
            assert [each.id for each in documents] == ["a.md", "z/d.md"]
    reasons = [json.loads(line)["reason"] for line in (open_folder / "rows.jsonl").read_text().splitlines()]
    assert len(reasons) >= 2
    assert all(reason.startswith(("cannot be listed", "cannot be opened")) for reason in reasons)
    assert report.rows == 2 + rejects.count
    with as_nobody(), pytest.raises(CorpusError, match=r"locked: cannot be listed: Permission denied"):
        list(read_corpus(open_folder / "notes" / "locked"))
    names = ("a.md", "e.md", "locked/b.md", "locked/deep/c.md", "gone.md")
    assert [report.is_unread(name) for name in names] == [False, True, True, True, False]


def test_locks_of_office_and_indexes_in_the_folder_are_no_notes(tmp_path):
    for name in ("notes/a.md", "notes/~$report.docx", "notes/x.index/index.db", "notes/x.index/segments/readme.txt"):
        write(tmp_path / name, "tea")
    report = ReadReport()
    assert [each.id for each in read_corpus(tmp_path / "notes", report=report)] == ["a.md"]
    assert report.passed_over == {"index of searchkit": 1}


def test_a_folder_of_tables_says_how_they_are_named(tmp_path):
    write(tmp_path / "notes" / "a.csv", "id,text\n1,tea\n")
    with pytest.raises(CorpusError, match=r"found: 1 \.csv; tables are named one by one, or by a pattern"):
        list(read_corpus(tmp_path / "notes"))
