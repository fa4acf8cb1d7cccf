"""Title and text of one file: plain text, Markdown, HTML, PDF."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from searchkit.errors import ExtractionError, MissingExtraError

READABLE = (".txt", ".md", ".html", ".htm", ".pdf")

_SPACE = re.compile(r"\s+")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_DROPPED = frozenset(("script", "style", "noscript", "template", "nav", "title"))
_INLINE = frozenset(
    """a abbr acronym b bdi bdo big cite code data del dfn em font i img input ins kbd label mark q rp rt ruby s samp
    small span strike strong sub sup time tt u var wbr""".split()  # noqa: SIM905
)
# What word processors and typesetters write when nobody gave a title.
_NO_TITLE = re.compile(
    r"(untitled|no title|(microsoft )?(word|powerpoint|excel) - .*|.*\.(docx?|odt|rtf|tex|dvi|pdf|pptx?|xlsx?|indd))",
    re.IGNORECASE,
)


def extract(path: Path, *, encoding: str = "utf-8") -> tuple[str, str]:
    """Return (title, text) of a file whose suffix is one of READABLE; the title falls back to the file's stem.

    Args:
        path: The file.
        encoding: Of text and Markdown, and of HTML that does not declare one.

    Raises:
        ExtractionError: The file is damaged, locked, wrongly encoded or holds no text.
        ImportError: The library for this suffix is not installed.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".pdf":
            title, text = _pdf(path)
        elif suffix in (".html", ".htm"):
            title, text = _html(path.read_bytes(), encoding)
        else:
            text = decode(path.read_bytes(), encoding).replace("\r\n", "\n")
            title = _heading(text) if suffix == ".md" else ""
    except OSError as error:
        raise ExtractionError(f"cannot be opened: {error.strerror or error}") from error
    if not text.strip():
        scanned = "; scanned pages need character recognition (OCR) first" if suffix == ".pdf" else ""
        raise ExtractionError(f"empty text: no text in the file{scanned}")
    return title or path.stem, text


def decode(data: bytes, encoding: str, unit: str = "file") -> str:
    """Decode strictly, without a byte order mark; ``unit`` names what the byte position is counted in."""
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ExtractionError(
            f"not {encoding}: {error.reason} 0x{data[error.start]:02x} at byte {error.start} of the {unit}; "
            "name its encoding with --encoding"
        ) from error


def _heading(text: str) -> str:
    """The first level-one heading of Markdown outside code, or ""."""
    fenced = False
    for line in text.splitlines():
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced and line.startswith("# "):
            return line.strip("# \t")
    return ""


def _html(data: bytes, encoding: str) -> tuple[str, str]:
    try:
        from bs4 import BeautifulSoup
        from bs4.dammit import EncodingDetector, UnicodeDammit
        from bs4.element import NavigableString, PreformattedString, Tag
    except ImportError as error:
        raise MissingExtraError("reading .html needs beautifulsoup4: pip install 'searchkit[files]'") from error

    # Left to itself UnicodeDammit asks chardet, where installed, before it tries UTF-8.
    declared = EncodingDetector.find_declared_encoding(data, is_html=True)
    decoded = UnicodeDammit(data, user_encodings=[declared or encoding, "utf-8"], is_html=True)
    if decoded.unicode_markup is None or decoded.contains_replacement_characters:
        raise ExtractionError(
            f"not {declared or encoding}, and no other encoding fits; declare one by <meta charset=...>"
        )
    with warnings.catch_warnings():
        # bs4 warns when a page looks like XML, a file name or an address; an .html file is HTML all the same.
        warnings.simplefilter("ignore")
        soup = BeautifulSoup(decoded.unicode_markup, "html.parser")

    pieces: list[str] = []
    # A stack, not recursion: pages nest deeper than Python does. Plain strings on it are the edges of blocks.
    stack: list[object] = [soup]
    while stack:
        node = stack.pop()
        if isinstance(node, Tag):
            if node.name == "pre":
                pieces += ["\n", node.get_text(), "\n"]
            elif node.name not in _DROPPED:
                edge = "" if node.name in _INLINE else " " if node.name in ("td", "th") else "\n"
                pieces.append(edge)
                stack += [edge, *reversed(node.contents)]
        elif isinstance(node, NavigableString):
            if not isinstance(node, PreformattedString):  # comments and declarations
                pieces.append(_SPACE.sub(" ", node))
        elif isinstance(node, str):
            pieces.append(node)
    lines = (" ".join(line.split()) for line in "".join(pieces).splitlines())
    text = "\n".join(filter(None, lines))

    titles = (" ".join(tag.get_text().split()) for tag in (soup.title, soup.h1) if tag)
    title = next(filter(None, titles), "")
    return title, text


def _pdf(path: Path) -> tuple[str, str]:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise MissingExtraError("reading .pdf needs pypdf: pip install 'searchkit[files]'") from error

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
    """Keep a library from logging every flaw it mends; a level, since a filter does not reach child loggers."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _clean(text: str) -> str:
    """Without the NULs and lone surrogates that odd fonts leave behind; the user cannot mend those."""
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
