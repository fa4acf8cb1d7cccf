"""Title and text of HTML."""

from __future__ import annotations

import codecs
import re
import warnings

from searchkit.errors import ExtractionError, MissingExtraError
from searchkit.readers.encoding import marked_encoding

_SPACE = re.compile(r"\s+")
_DROPPED = frozenset(("script", "style", "noscript", "template", "nav", "title"))
_INLINE = frozenset(
    """a abbr acronym b bdi bdo big cite code data del dfn em font i img input ins kbd label mark q rp rt ruby s samp
    small span strike strong sub sup time tt u var wbr""".split()  # noqa: SIM905
)


# What browsers read under these names (Encoding Standard, WHATWG): the same characters and more.
_WIDER = {
    "iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932",
    "euc_kr": "cp949", "iso8859-9": "cp1254",
}  # fmt: skip


def html_text(data: bytes, encoding: str) -> tuple[str, str]:
    """(title, text) of a page, decoded as it declares; `encoding` is for one that declares nothing.

    Raises:
        ExtractionError: No encoding fits.
        MissingExtraError: beautifulsoup4 is not installed.
    """
    try:
        from bs4 import BeautifulSoup
        from bs4.dammit import EncodingDetector
        from bs4.element import NavigableString, PreformattedString, Tag
    except ImportError as error:
        raise MissingExtraError("reading .html needs beautifulsoup4: pip install 'searchkit[files]'") from error

    page = _decoded(data, EncodingDetector.find_declared_encoding(data, is_html=True), encoding)
    with warnings.catch_warnings():
        # bs4 warns when a page looks like XML, a file name or an address; an .html file is HTML all the same.
        warnings.simplefilter("ignore")
        soup = BeautifulSoup(page, "html.parser")

    pieces: list[str] = []
    # A stack, not recursion: pages nest deeper than Python allows. Plain strings on it are the edges of blocks.
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

    for line_break in soup.find_all("br"):
        line_break.replace_with(" ")
    own = (tag for tag in soup.find_all("title") if tag.find_parent("svg") is None)  # a drawing has titles too
    titles = (" ".join(tag.get_text().split()) for tag in (*own, *soup.find_all("h1")))
    return next(filter(None, titles), ""), text


def _decoded(data: bytes, declared: str | None, encoding: str) -> str:
    """A page as text by its byte order mark, by what it declares, or else by `encoding`; nothing is guessed."""
    named = marked_encoding(data) or declared or encoding
    try:
        codec = codecs.lookup(named).name
    except LookupError:
        codec = "utf-8"
    tried = [_WIDER.get(codec, codec), codec, "utf-8"]
    if tried[0] == "cp1252":  # it takes nearly any bytes, and is what templates declare; text is hardly UTF-8 by chance
        tried.insert(0, "utf-8")
    for name in tried:
        try:
            return data.decode(name).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
    how = "it is declared wrongly" if declared else "it declares no encoding; name it with --encoding"
    raise ExtractionError(f"not {named}: {how}")
