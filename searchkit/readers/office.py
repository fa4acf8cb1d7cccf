"""Text of Word, PowerPoint and Excel files, of e-books, e-mail and notebooks."""

from __future__ import annotations

import datetime
import email
import email.policy
import json
import posixpath
import zipfile
from collections.abc import Iterable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from searchkit.errors import ExtractionError, MissingExtraError
from searchkit.readers.html import html_text
from searchkit.readers.markdown import markdown_title

Parts = tuple[str, str, dict[str, Any]]
"""Title, text and metadata."""

_DC = "{http://purl.org/dc/elements/1.1/}"
_OPF = "{http://www.idpf.org/2007/opf}"


def _needs(suffix: str, library: str, error: ImportError) -> MissingExtraError:
    return MissingExtraError(f"reading {suffix} needs {library}: pip install 'searchkit[files]'", name=error.name)


def docx(path: Path) -> Parts:
    """Paragraphs and tables in order; the title is the document's own or its first heading."""
    try:
        from docx import Document
        from docx.table import Table
    except ImportError as error:
        raise _needs(".docx", "python-docx", error) from error
    document = Document(str(path))
    lines: list[str] = []
    heading = ""
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            lines += _rows([cell.text for cell in row.cells] for row in block.rows)
        else:
            style = (block.style and block.style.name) or ""
            if not heading and style.lower() in ("title", "heading 1"):
                heading = block.text.strip()
            lines.append(block.text)
    return document.core_properties.title or heading, _joined(lines), {}


def pptx(path: Path) -> Parts:
    """Texts, tables and notes, slide by slide; the title is the presentation's own or the first slide's."""
    try:
        from pptx import Presentation
    except ImportError as error:
        raise _needs(".pptx", "python-pptx", error) from error
    presentation = Presentation(str(path))
    lines: list[str] = []
    heading = ""
    for slide in presentation.slides:
        shape = slide.shapes.title
        heading = heading or (shape.text_frame.text.strip() if shape is not None else "")
        lines += [*_shapes(slide.shapes), ""]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            lines += [slide.notes_slide.notes_text_frame.text, ""]
    return presentation.core_properties.title or heading, _joined(lines), {}


def _shapes(shapes: Iterable[Any]) -> Iterator[str]:
    for shape in shapes:
        if hasattr(shape, "shapes"):  # a group
            yield from _shapes(shape.shapes)
        elif getattr(shape, "has_table", False):
            yield from _rows([cell.text for cell in row.cells] for row in shape.table.rows)
        elif shape.has_text_frame:
            yield shape.text_frame.text


def xlsx(path: Path) -> Parts:
    """Rows as lines of cells between bars, sheet by sheet under its name; formulas as their last values."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise _needs(".xlsx", "openpyxl", error) from error
    workbook = load_workbook(path, read_only=True, data_only=True)
    try:
        lines: list[str] = []
        for sheet in workbook.worksheets:
            rows = list(_rows([_cell_text(cell) for cell in row] for row in sheet.values))
            if rows:
                lines += [sheet.title, *rows, ""]
        return workbook.properties.title or "", _joined(lines), {}
    finally:
        workbook.close()


def epub(path: Path) -> Parts:
    """The chapters in reading order; title, creator, language and date from the book's own description."""
    with zipfile.ZipFile(path) as book:
        container = ElementTree.fromstring(book.read("META-INF/container.xml"))
        package = next(each.attrib["full-path"] for each in container.iter() if each.tag.endswith("}rootfile"))
        description = ElementTree.fromstring(book.read(package))
        files = {item.attrib["id"]: item.attrib["href"] for item in description.iter(f"{_OPF}item")}
        texts = []
        for item in description.iter(f"{_OPF}itemref"):
            if item.attrib.get("idref") in files:
                name = posixpath.normpath(
                    posixpath.join(posixpath.dirname(package), unquote(files[item.attrib["idref"]]))
                )
                texts.append(html_text(book.read(name), "utf-8")[1])
        found = {name: description.findtext(f".//{_DC}{name}") for name in ("title", "creator", "language", "date")}
        known = {name: value.strip() for name, value in found.items() if value and value.strip()}
        return known.pop("title", ""), "\n\n".join(filter(None, texts)), known


def eml(path: Path) -> Parts:
    """The plain body, or else the HTML one; the subject is the title."""
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    body = message.get_body(("plain", "html")) if isinstance(message, EmailMessage) else None
    text = ""
    if body is not None:
        content = body.get_content()
        is_html = body.get_content_type() == "text/html"
        text = html_text(content.encode(), "utf-8")[1] if is_html else content.replace("\r\n", "\n")
    if not text.strip():
        raise ExtractionError("empty text: the mail has no body that can be read")
    date = message["date"].datetime if message["date"] is not None else None
    metadata = {
        "from": str(message["from"] or ""),
        "to": str(message["to"] or ""),
        "date": date.isoformat() if date else "",
    }
    return str(message["subject"] or ""), text, {name: value for name, value in metadata.items() if value}


def ipynb(path: Path) -> Parts:
    """The sources of Markdown and code cells, without their outputs."""
    notebook = json.loads(path.read_bytes())
    cells = notebook.get("cells") or [cell for sheet in notebook.get("worksheets", ()) for cell in sheet["cells"]]
    texts = {"markdown": [""], "all": [""]}
    for cell in cells:
        source = cell.get("source", cell.get("input", ""))
        source = source if isinstance(source, str) else "".join(source)
        texts["all"].append(source)
        if cell.get("cell_type") == "markdown":
            texts["markdown"].append(source)
    return markdown_title("\n\n".join(texts["markdown"])), _joined(texts["all"], "\n\n"), {}


def _rows(rows: Iterable[list[str]]) -> Iterator[str]:
    for row in rows:
        cells = [" ".join(cell.split()) for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield " | ".join(cells)


def _cell_text(value: Any) -> str:
    if isinstance(value, datetime.datetime):  # how a sheet stores a day
        value = value.date() if value.time() == datetime.time() else value.isoformat(" ")
    return "" if value is None else str(value)


def _joined(texts: Iterable[str], between: str = "\n") -> str:
    return between.join(text.rstrip() for text in texts).strip()
