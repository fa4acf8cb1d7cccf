"""Text of Word, PowerPoint and Excel files, of e-books, e-mail and notebooks."""

from __future__ import annotations

import datetime
import email
import email.policy
import json
import posixpath
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing
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
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_OPF = "{http://www.idpf.org/2007/opf}"


def _needs(suffix: str, library: str, error: ImportError) -> MissingExtraError:
    return MissingExtraError(f"reading {suffix} needs {library}: pip install 'searchkit[files]'", name=error.name)


def docx(path: Path) -> Parts:
    """Paragraphs, tables, text boxes and notes in order; the title is the document's own or its first heading.

    Read from the XML: python-docx leaves out content controls, tracked insertions and text boxes.
    """
    try:
        from docx import Document
    except ImportError as error:
        raise _needs(".docx", "python-docx", error) from error
    document = Document(str(path))
    heading = next(
        (each.text.strip() for each in document.paragraphs if _style(each) in ("title", "heading 1") and each.text), ""
    )
    bodies = [document.element.body]
    for part in (relation.target_part for relation in document.part.rels.values() if not relation.is_external):
        if part.content_type.endswith((".footnotes+xml", ".endnotes+xml")):
            bodies.append(ElementTree.fromstring(part.blob))
    return document.core_properties.title or heading, _joined(line for body in bodies for line in _blocks(body)), {}


def _style(paragraph: Any) -> str:
    return ((paragraph.style and paragraph.style.name) or "").lower()


def _blocks(element: Any) -> Iterator[str]:
    """A line for every paragraph and every row of a table below an element of WordprocessingML."""
    for child in element:
        if child.tag == f"{_W}p":
            yield _run_text(child)
            for box in _boxes(child):
                yield from _blocks(box)
        elif child.tag == f"{_W}tbl":
            for row in _inside(child, f"{_W}tr"):
                yield from _rows([[" ".join(_blocks(cell)) for cell in _inside(row, f"{_W}tc")]])
        elif child.tag not in (f"{_W}del", f"{_W}sectPr"):  # a content control, an insertion, a note
            yield from _blocks(child)


def _inside(element: Any, tag: str) -> Iterator[Any]:
    """The rows of a table, or the cells of a row: children, some within content controls."""
    for child in element:
        if child.tag == tag:
            yield child
        elif child.tag in (f"{_W}sdt", f"{_W}sdtContent", f"{_W}ins"):
            yield from _inside(child, tag)


def _run_text(element: Any) -> str:
    """The text of a paragraph, without what was deleted from it and without the boxes anchored in it."""
    pieces: list[str] = []
    for child in element:
        name = child.tag.removeprefix(_W) if isinstance(child.tag, str) else ""
        if name == "t":
            pieces.append(child.text or "")
        elif name in ("tab", "br", "cr"):
            pieces.append("\t" if name == "tab" else "\n")
        elif name == "noBreakHyphen":
            pieces.append("-")
        elif name not in ("del", "pPr", "rPr", "drawing", "pict") and not child.tag.endswith("}AlternateContent"):
            pieces.append(_run_text(child))
    return "".join(pieces)


def _boxes(paragraph: Any) -> list[Any]:
    """The text boxes anchored in a paragraph, each once: a drawing comes again in an older form, as a fallback."""
    fallbacks = {
        box for each in paragraph.iter() if str(each.tag).endswith("}Fallback") for box in each.iter(f"{_W}txbxContent")
    }
    return [box for box in paragraph.iter(f"{_W}txbxContent") if box not in fallbacks]


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
    # Opened here, since openpyxl leaves a damaged file open.
    with path.open("rb") as stream, closing(load_workbook(stream, read_only=True, data_only=True)) as workbook:
        lines: list[str] = []
        for sheet in workbook.worksheets:
            # Some programs write wrong ones: cells outside would be lost, and too large ones filled with empty rows.
            sheet.reset_dimensions()
            rows = list(_rows([_cell_text(cell) for cell in row] for row in sheet.values))
            if rows:
                lines += [sheet.title, *rows, ""]
        return workbook.properties.title or "", _joined(lines), {}


def epub(path: Path) -> Parts:
    """The chapters in reading order; title, creator, language and date from the book's own description."""
    with zipfile.ZipFile(path) as book:
        if "META-INF/container.xml" not in book.namelist():
            raise ExtractionError("not an e-book: it has no META-INF/container.xml")
        container = ElementTree.fromstring(book.read("META-INF/container.xml"))
        packages = [each.get("full-path", "") for each in container.iter() if each.tag.rpartition("}")[2] == "rootfile"]
        package = next(iter(packages), "")
        if package not in book.namelist():
            raise ExtractionError(f"damaged: META-INF/container.xml names {package or 'no package'}, which is missing")
        description = ElementTree.fromstring(book.read(package))
        files = {item.attrib["id"]: item.attrib["href"] for item in description.iter(f"{_OPF}item")}
        texts = []
        for item in description.iter(f"{_OPF}itemref"):
            if item.attrib.get("idref") in files:
                name = posixpath.normpath(
                    posixpath.join(posixpath.dirname(package), unquote(files[item.attrib["idref"]]))
                )
                if name not in book.namelist():
                    raise ExtractionError(f"damaged: its chapter {name} is missing")
                texts.append(html_text(book.read(name), "utf-8")[1])
        known = {}
        for name in ("title", "creator", "language", "date"):
            if values := [text for each in description.iter(f"{_DC}{name}") if (text := (each.text or "").strip())]:
                known[name] = ", ".join(values) if name == "creator" else values[0]
        return known.pop("title", ""), "\n\n".join(filter(None, texts)), known


def eml(path: Path) -> Parts:
    """All parts of the body, plain or else HTML; the subject is the title."""
    data = path.read_bytes()
    message = email.message_from_bytes(data, policy=email.policy.default)
    text = _mail_body(message) if isinstance(message, EmailMessage) else ""
    if not text.strip():
        raise ExtractionError("empty text: the mail has no body that can be read")
    try:
        # Headers in plain UTF-8, which RFC 6532 allows, come out as replacement characters if read as bytes.
        headers = email.message_from_string(data.decode(), policy=email.policy.default)
    except UnicodeDecodeError:
        headers = message
    date = headers["date"]
    metadata = {
        "from": str(headers["from"] or ""),
        "to": str(headers["to"] or ""),
        "date": "" if date is None else date.datetime.isoformat() if date.datetime else str(date),
    }
    return str(headers["subject"] or ""), text, {name: value for name, value in metadata.items() if value}


def _mail_body(part: EmailMessage) -> str:
    """What a reader sees of a part: mailers put pictures and files between pieces of text."""
    kind = part.get_content_type()
    parts = [each for each in part.iter_parts() if isinstance(each, EmailMessage)]
    if part.is_attachment():
        return ""
    if kind == "multipart/alternative":  # newsletters may leave the plain one blank
        parts.sort(key=lambda each: each.get_content_type() != "text/plain")
        return next((text for each in parts if (text := _mail_body(each)).strip()), "")
    if kind == "multipart/related":  # the others belong to the first
        return _mail_body(parts[0]) if parts else ""
    if part.get_content_maintype() == "multipart":
        return "\n".join(text for each in parts if (text := _mail_body(each)).strip())
    content = part.get_payload(decode=True)
    if kind not in ("text/plain", "text/html") or not isinstance(content, bytes):
        return ""
    charset = part.get_content_charset()
    if kind == "text/html":
        return html_text(content, charset or "utf-8")[1]
    return _mail_text(content, charset).replace("\r\n", "\n")


def _mail_text(content: bytes, charset: str | None) -> str:
    """A plain body; one that names no charset, or a wrong one, may still be UTF-8."""
    for name in (charset or "utf-8", "utf-8"):
        try:
            return content.decode(name)
        except (LookupError, UnicodeDecodeError):
            continue
    raise ExtractionError(f"its body is neither {charset or 'ascii'}, as it says, nor utf-8")


def ipynb(path: Path) -> Parts:
    """The sources of Markdown and code cells, without their outputs."""
    try:
        notebook = json.loads(path.read_bytes())
    except ValueError as error:
        raise ExtractionError(f"not a notebook: {error}") from error
    if not isinstance(notebook, dict):
        raise ExtractionError("not a notebook: expected a JSON object with cells")
    cells = notebook.get("cells") or [cell for sheet in notebook.get("worksheets", ()) for cell in sheet["cells"]]
    texts = {"markdown": [""], "all": [""]}
    for cell in cells:
        source = cell.get("source", cell.get("input")) or ""
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
