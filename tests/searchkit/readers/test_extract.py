"""Titles and texts of files."""

from __future__ import annotations

import logging

import pytest
from files import write

from searchkit.errors import CorpusError
from searchkit.readers.corpus import read_corpus


def pdf(text: str, title: str = "") -> bytes:
    """The smallest PDF of one page that shows ``text``."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        f"<< /Title ({title}) >>".encode(),
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    entries = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R /Info 6 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    return out + head + entries + trailer % (len(objects) + 1, len(out))


@pytest.mark.parametrize(
    ("text", "title"),
    [("intro\n# Green tea #\nx", "Green tea"), ("```\n# comment\n```\n# Tea\n", "Tea"), ("## Part\nx", "note")],
)
def test_markdown_takes_its_first_heading_as_title(tmp_path, text, title):
    document = next(read_corpus(write(tmp_path / "note.md", text)))
    assert (document.title, document.text) == (title, text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", "# Green tea\n\nSteep it."),
        ("a.md", "---\ntitle: Green tea\n---\n# Green tea\nSteep it."),
        ("a.rst", "Green tea\n=========\n\nSteep it."),
        ("a.adoc", "= Green tea\n\nSteep it."),
        ("a.org", "#+title: Green tea\n\nSteep it."),
        ("a.html", "<title>Green tea</title><h1>Green <i>tea</i></h1><p>Steep it."),
        ("a.html", "<h1>Green<br>tea</h1><p>Steep it."),
        ("a.ipynb", '{"cells": [{"cell_type": "markdown", "source": "# Green tea\\nSteep it."}]}'),
        ("a.pdf", pdf("Green tea\\) Tj 0 -20 Td \\(Steep it.".replace("\\", ""), "Green tea")),
    ],
)
def test_a_title_that_is_the_first_heading_is_indexed_once(tmp_path, name, content):
    document = next(read_corpus(write(tmp_path / name, content)))
    assert (document.title, document.text.strip()) == ("Green tea", "Steep it.")


def test_html_is_read_block_by_block(tmp_path):
    pytest.importorskip("bs4")
    page = """<!doctype html><html><head><title> Green
      tea </title><style>p {}</style></head><body><nav>Home</nav><!-- note --><h1>Tea</h1><p>Hot <b>wa</b>ter
      and <a href=x>leaves</a>.<br>Steep.<script>x()</script><ul><li>one<li>two</ul>
      <table><tr><td>a</td><td>b</td></tr></table><pre>x\n  y</pre><noscript>no</noscript></body></html>"""
    document = next(read_corpus(write(tmp_path / "a.html", page)))
    assert document.title == "Green tea"
    assert document.text == "Tea\nHot water and leaves.\nSteep.\none\ntwo\na b\nx\ny"


@pytest.mark.parametrize(
    ("page", "title"),
    [
        ("<h1>Tea <i>time</i></h1>x", "Tea time"),
        ("<h1> </h1><h1>Tea</h1>", "Tea"),
        ("<title> </title><h1>T</h1>", "T"),
        ("a.txt", "page"),
    ],
)
def test_html_without_a_title_takes_its_first_heading_or_its_name(tmp_path, page, title):
    pytest.importorskip("bs4")
    assert next(read_corpus(write(tmp_path / "page.htm", page))).title == title


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("<meta charset=windows-1251><p>чай".encode("cp1251"), "utf-8"),
        ("<p>чай".encode(), "utf-8"),
        ("<p>чай".encode("cp1251"), "cp1251"),
        ("<p>чай".encode("utf-16"), "utf-8"),
        ("<?xml version='1.0' encoding='utf-8'?><html><p>чай</p></html>".encode(), "utf-8"),
        ("<meta charset=iso-8859-1><p>чай".encode(), "utf-8"),  # declared wrongly, as templates do
        ("<meta charset=nonsense><p>чай".encode(), "utf-8"),
    ],
)
def test_html_is_decoded_as_it_declares(tmp_path, data, encoding):
    pytest.importorskip("bs4")
    assert next(read_corpus(write(tmp_path / "a.html", data), encoding=encoding)).text == "чай"


def test_html_in_latin_1_is_read_as_browsers_do_and_never_guessed(tmp_path):
    pytest.importorskip("bs4")
    page = write(tmp_path / "a.html", b"<meta charset=iso-8859-1><p>\x93caf\xe9\x94 \x80 5")  # quotes of Windows
    assert next(read_corpus(page)).text == "“café” € 5"
    page = write(tmp_path / "b.html", b"<p>caf\xe9")
    with pytest.raises(CorpusError, match="not utf-8: it declares no encoding; name it with --encoding"):
        list(read_corpus(page))
    assert next(read_corpus(page, encoding="latin-1")).text == "café"


def test_html_may_nest_deeper_than_python(tmp_path):
    pytest.importorskip("bs4")
    assert next(read_corpus(write(tmp_path / "a.html", "<div>" * 3000 + "tea"))).text == "tea"


@pytest.mark.parametrize(
    ("title", "read"), [("Green tea", "Green tea"), ("Microsoft Word - x", "a"), ("x.docx", "a"), ("", "a")]
)
def test_pdf_is_read_with_its_title_if_it_is_one(tmp_path, title, read):
    pytest.importorskip("pypdf")
    document = next(read_corpus(write(tmp_path / "a.pdf", pdf("Steep for three minutes.", title))))
    assert (document.title, document.text.strip()) == (read, "Steep for three minutes.")


def test_pdf_nuls_are_cleaned_out(tmp_path):
    pytest.importorskip("pypdf")
    assert next(read_corpus(write(tmp_path / "a.pdf", pdf("te\\000a")))).text.strip() == "tea"


def test_flaws_that_pypdf_mends_are_not_logged(tmp_path, caplog):
    pytest.importorskip("pypdf")
    path = write(tmp_path / "a.pdf", b"junk\n" + pdf("tea"))
    assert next(read_corpus(path)).text.strip() == "tea"
    assert caplog.records == []
    assert logging.getLogger("pypdf").level == logging.NOTSET
