"""Title and text of HTML."""

from __future__ import annotations

import re
import warnings

from searchkit.errors import ExtractionError, MissingExtraError

_SPACE = re.compile(r"\s+")
_DROPPED = frozenset(("script", "style", "noscript", "template", "nav", "title"))
_INLINE = frozenset(
    """a abbr acronym b bdi bdo big cite code data del dfn em font i img input ins kbd label mark q rp rt ruby s samp
    small span strike strong sub sup time tt u var wbr""".split()  # noqa: SIM905
)


def html_text(data: bytes, encoding: str) -> tuple[str, str]:
    """(title, text) of a page, decoded as it declares; `encoding` is for one that declares nothing.

    Raises:
        ExtractionError: No encoding fits.
        MissingExtraError: beautifulsoup4 is not installed.
    """
    try:
        from bs4 import BeautifulSoup
        from bs4.dammit import EncodingDetector, UnicodeDammit
        from bs4.element import NavigableString, PreformattedString, Tag
    except ImportError as error:
        raise MissingExtraError("reading .html needs beautifulsoup4: pip install 'searchkit[files]'") from error

    # Left to itself UnicodeDammit tries chardet, where installed, before UTF-8.
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

    own = (tag for tag in soup.find_all("title") if tag.find_parent("svg") is None)  # a drawing has titles too
    titles = (" ".join(tag.get_text().split()) for tag in (*own, soup.h1) if tag)
    return next(filter(None, titles), ""), text
