"""Title, text and metadata of one file."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from searchkit.errors import ExtractionError, MissingExtraError
from searchkit.readers import office
from searchkit.readers.encoding import decode_file
from searchkit.readers.html import html_text
from searchkit.readers.markdown import (
    FrontMatter,
    adoc_title,
    front_matter,
    markdown_title,
    org_title,
    rst_title,
    without_title,
)

_SPACE = re.compile(r"\s+")
# What authoring tools write when nobody gave a title.
_NO_TITLE = re.compile(
    r"(untitled|no title|(microsoft )?(word|powerpoint|excel) - .*|.*\.(docx?|odt|rtf|tex|dvi|pdf|pptx?|xlsx?|indd))",
    re.IGNORECASE,
)
_HTML = (".html", ".htm", ".xhtml")
# Plain text, and what finds its title.
_TEXT: dict[str, Callable[[str], str]] = {
    ".txt": lambda text: "",
    ".text": lambda text: "",
    ".md": markdown_title,
    ".markdown": markdown_title,
    ".mdx": markdown_title,
    ".rst": rst_title,
    ".org": org_title,
    ".adoc": adoc_title,
}
_LIBRARIES: dict[str, Callable[[Path], office.Parts]] = {
    ".docx": office.docx,
    ".pptx": office.pptx,
    ".xlsx": office.xlsx,
    ".epub": office.epub,
    ".eml": office.eml,
    ".ipynb": office.ipynb,
}
_ZIPPED = (".docx", ".pptx", ".xlsx", ".epub")
READABLE = (*_TEXT, *_HTML, ".pdf", *_LIBRARIES)


class Extracted(NamedTuple):
    """What a file holds.

    Args:
        title: Falls back to the file's stem.
        text: Without front matter, and without the title where it begins with that.
        metadata: Front matter, and what a mail or a book says of itself.
        flaw: Why the front matter cannot be read, "" if it can or there is none.
    """

    title: str
    text: str
    metadata: dict[str, Any]
    flaw: str = ""


def extract(path: Path, *, encoding: str = "utf-8") -> Extracted:
    """Read a file whose suffix is one of READABLE.

    Args:
        path: The file.
        encoding: Of plain text and Markdown, and of HTML that does not declare one.

    Raises:
        ExtractionError: The file is damaged, locked, wrongly encoded or holds no text.
        MissingExtraError: The library for this suffix is not installed.
    """
    suffix = path.suffix.lower()
    metadata: dict[str, Any] = {}
    flaw = ""
    try:
        if suffix == ".pdf":
            title, text = _pdf(path)
        elif suffix in _HTML:
            title, text = html_text(path.read_bytes(), encoding)
        elif suffix in _LIBRARIES:
            title, text, metadata = _by_library(path, suffix)
        else:
            text = decode_file(path.read_bytes(), encoding).replace("\r\n", "\n")
            title, text, metadata, flaw = _plain_text(text, suffix)
    except OSError as error:
        raise ExtractionError(f"cannot be opened: {error.strerror or error}") from error
    if not text.strip() and not (title and metadata):
        scanned = "; scanned pages need character recognition (OCR) first" if suffix == ".pdf" else ""
        raise ExtractionError(f"empty text: no text in the file{scanned}")
    if suffix != ".eml":  # the body of a mail has no heading
        text = without_title(text, title)
    return Extracted(title or path.stem, text, metadata, flaw)


def _plain_text(text: str, suffix: str) -> Extracted:
    front = front_matter(text) if _TEXT[suffix] is markdown_title else FrontMatter({}, text)
    own = front.values.get("title")
    if own is None or (isinstance(own, str | int | float) and not isinstance(own, bool)):
        front.values.pop("title", None)  # a list, say, is no title, and stays metadata
        own = "" if own is None else str(own).strip()
    else:
        own = ""
    return Extracted(own or _TEXT[suffix](front.text), front.text, front.values, front.fault)


def _by_library(path: Path, suffix: str) -> office.Parts:
    if suffix in _ZIPPED and not zipfile.is_zipfile(path):
        raise ExtractionError(f"not a {suffix} file: it is damaged, encrypted, or of another format")
    try:
        title, text, metadata = _LIBRARIES[suffix](path)
    except (ExtractionError, MissingExtraError, OSError):
        raise
    # A damaged file makes these libraries raise nearly anything: KeyError, BadZipFile, ParseError ...
    except Exception as error:
        raise ExtractionError(f"cannot be read as {suffix}: {type(error).__name__}: {error}") from error
    return _SPACE.sub(" ", _clean(title)).strip(), _clean(text), metadata


def _pdf(path: Path) -> tuple[str, str]:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise MissingExtraError("reading .pdf needs pypdf: pip install 'searchkit[files]'") from error

    with path.open("rb") as stream:
        if b"%PDF-" not in stream.read(1024):
            raise ExtractionError("not a PDF: it does not begin with %PDF-")
    try:
        with _silenced("pypdf"), PdfReader(path) as reader:
            # Many files are encrypted only against editing and open with the empty password.
            if reader.is_encrypted and not reader.decrypt(""):
                raise ExtractionError("encrypted: it opens only with a password; save a copy without one")
            title = str((reader.metadata and reader.metadata.title) or "")
            text = "\n\n".join(page.extract_text() for page in reader.pages)
    except (ExtractionError, OSError):
        raise
    # Broken PDFs make pypdf raise nearly anything: KeyError, RecursionError, struct.error ...
    except Exception as error:
        raise ExtractionError(f"cannot be read as PDF: {type(error).__name__}: {error}") from error
    title = _SPACE.sub(" ", _clean(title)).strip()
    usable = len(title) <= 300 and re.search(r"\w", title) and not _NO_TITLE.fullmatch(title)
    return title if usable else "", _clean(text)


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Keep a library from logging every flaw it works around. By level: a filter does not reach child loggers."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _clean(text: str) -> str:
    """Remove the NULs and lone surrogates that odd fonts leave behind, which the user cannot repair."""
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
