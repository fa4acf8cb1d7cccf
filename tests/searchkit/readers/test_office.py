"""Word, mail and books: nothing that a reader would see is left out."""

from __future__ import annotations

import email.message
import email.policy
import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from files import saved

from searchkit.errors import CorpusError
from searchkit.readers.corpus import read_corpus
from searchkit.records import Document

_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def read(path: Path, content: bytes) -> Document:
    path.write_bytes(content)
    return next(read_corpus(path))


def test_docx_has_its_controls_insertions_links_boxes_and_nested_tables(tmp_path):
    docx = pytest.importorskip("docx")
    from docx.oxml import parse_xml

    document = docx.Document()
    paragraph = document.add_paragraph("See ")._p
    for inner in (
        f"<w:hyperlink {_W}><w:r><w:t>the link</w:t></w:r></w:hyperlink>",
        f'<w:ins {_W} w:id="1" w:author="a"><w:r><w:tab/><w:t>inserted</w:t></w:r></w:ins>',
        f'<w:del {_W} w:id="2" w:author="a"><w:r><w:delText>deleted</w:delText></w:r></w:del>',
        f"<w:r {_W}><w:pict><w:txbxContent><w:p><w:r><w:t>in a box</w:t></w:r></w:p></w:txbxContent></w:pict></w:r>",
    ):
        paragraph.append(parse_xml(inner))
    control = f"<w:sdt {_W}><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    document.element.body.insert(0, parse_xml(control))
    table = document.add_table(2, 3)
    table.cell(0, 0).merge(table.cell(0, 2)).text = "merged"
    table.cell(1, 0).text = "x"
    table.cell(1, 1).add_table(1, 1).cell(0, 0).text = "nested"
    text = read(tmp_path / "a.docx", saved(document)).text
    assert text == "in a control\nSee the link\tinserted\nin a box\nmerged\nx | nested"


def test_docx_has_its_footnotes(tmp_path):
    docx = pytest.importorskip("docx")
    from docx.opc.constants import RELATIONSHIP_TYPE
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part

    document = docx.Document()
    document.add_paragraph("Body.")
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    xml = f'<w:footnotes {_W}><w:footnote w:id="2"><w:p><w:r><w:t>A note.</w:t></w:r></w:p></w:footnote></w:footnotes>'
    part = Part(PackURI("/word/footnotes.xml"), kind, xml.encode(), document.part.package)
    document.part.relate_to(part, RELATIONSHIP_TYPE.FOOTNOTES)
    assert read(tmp_path / "a.docx", saved(document)).text == "Body.\nA note."


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Subject: Grüner Tee\n", "Café".encode()),  # neither says that it is UTF-8
        ("Subject: =?utf-8?q?Gr=C3=BCner?= Tee\nContent-Type: text/plain; charset=us-ascii\n", "Café".encode()),
        ("Subject: =?utf-8?q?Gr=C3=BCner?= Tee\nContent-Type: text/plain; charset=iso-8859-1\n", b"Caf\xe9"),
        ("Subject: Grüner Tee\nContent-Type: text/html; charset=utf-8\n", "<p>Café</p>".encode()),
        ("Subject: Grüner Tee\nContent-Type: text/plain; charset=klingon\n", "Café".encode()),
    ],
)
def test_a_mail_is_decoded_and_never_guessed(tmp_path, head, body):
    pytest.importorskip("bs4")
    document = read(tmp_path / "a.eml", head.encode() + b"Date: yesterday\n\n" + body)
    assert (document.title, document.text, document.metadata["date"]) == ("Grüner Tee", "Café", "yesterday")


def test_a_mail_has_every_piece_of_its_text_once(tmp_path):
    pytest.importorskip("bs4")
    mail = email.message.EmailMessage()
    mail.set_content("Before the picture.\n")
    mail.add_alternative("<p>Before the picture, set in HTML.</p>", subtype="html")
    mail.add_attachment(b"...", maintype="image", subtype="png", filename="tea.png", disposition="inline")
    mail.attach(email.message_from_string("\nAfter it.\n", policy=email.policy.default))
    mail.add_attachment("A file's text.", filename="notes.txt")
    assert read(tmp_path / "a.eml", bytes(mail)).text == "Before the picture.\n\nAfter it.\n"


def test_a_blank_plain_body_gives_way_to_the_html_one(tmp_path):
    pytest.importorskip("bs4")
    mail = email.message.EmailMessage()
    mail.set_content(" \n")
    mail.add_alternative("<p>Green tea is here.</p>", subtype="html")
    assert read(tmp_path / "a.eml", bytes(mail)).text == "Green tea is here."


@pytest.mark.parametrize("dimension", ["A1", "A1:XFD1048576"])  # too small, and one that was never finished
def test_a_sheet_is_read_whatever_size_it_claims(tmp_path, dimension):
    book = pytest.importorskip("openpyxl").Workbook()
    for row in (["tea", "minutes"], ["green", 3]):
        book.active.append(row)
    with zipfile.ZipFile(io.BytesIO(saved(book))) as old, zipfile.ZipFile(tmp_path / "a.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(
                name, old.read(name).replace(b'dimension ref="A1:B2"', f'dimension ref="{dimension}"'.encode())
            )
    assert read(tmp_path / "a.xlsx", (tmp_path / "a.xlsx").read_bytes()).text == "Sheet\ntea | minutes\ngreen | 3"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed in /proc on Linux")
def test_a_damaged_sheet_is_not_left_open(tmp_path):
    book = pytest.importorskip("openpyxl").Workbook()
    with zipfile.ZipFile(io.BytesIO(saved(book))) as old, zipfile.ZipFile(tmp_path / "a.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"<" if name == "xl/workbook.xml" else old.read(name))
    with pytest.raises(CorpusError, match=r"cannot be read as \.xlsx") as failure:
        read(tmp_path / "a.xlsx", (tmp_path / "a.xlsx").read_bytes())
    assert failure.tb  # which still holds openpyxl's frames, and with them its file
    opened = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert str(tmp_path / "a.xlsx") not in opened


def test_a_mail_that_cannot_be_decoded_is_a_reject(tmp_path):
    with pytest.raises(CorpusError, match=r"a.eml: its body is neither ascii, as it says, nor utf-8"):
        read(tmp_path / "a.eml", b"Subject: x\n\ncaf\xe9\n")


def epub(spine: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as book:
        rootfile = '<rootfiles><rootfile full-path="c.opf"/></rootfiles>'
        book.writestr("META-INF/container.xml", f'<container xmlns="urn:x">{rootfile}</container>')
        book.writestr("c.opf", '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
                      "<metadata><dc:title>Tea</dc:title><dc:creator>Ada</dc:creator><dc:creator>Bo</dc:creator></metadata>"
                      '<manifest><item id="a" href="a.xhtml"/><item id="gone" href="gone.xhtml"/></manifest>'
                      f"<spine>{spine}</spine></package>")  # fmt: skip
        book.writestr("a.xhtml", "<html><body><p>First.</p></body></html>")
    return buffer.getvalue()


def test_a_book_without_its_package_says_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.epub", "w") as book:
        book.writestr(
            "META-INF/container.xml", '<container><rootfiles><rootfile full-path="x.opf"/></rootfiles></container>'
        )
    with pytest.raises(CorpusError, match=r"damaged: META-INF/container.xml names x.opf, which is missing"):
        read(tmp_path / "a.epub", (tmp_path / "a.epub").read_bytes())


def test_a_book_names_all_its_authors_and_a_chapter_that_is_missing(tmp_path):
    pytest.importorskip("bs4")
    document = read(tmp_path / "a.epub", epub('<itemref idref="a"/>'))
    assert (document.text, document.metadata["creator"]) == ("First.", "Ada, Bo")
    with pytest.raises(CorpusError, match=r"b.epub: damaged: its chapter gone.xhtml is missing"):
        read(tmp_path / "b.epub", epub('<itemref idref="a"/><itemref idref="gone"/>'))


@pytest.mark.parametrize("content", [b"{", b"[]", json.dumps({"cells": []}).encode()])
def test_what_is_no_notebook_says_so(tmp_path, content):
    with pytest.raises(CorpusError, match=r"a.ipynb: (not a notebook|empty text)"):
        read(tmp_path / "a.ipynb", content)
