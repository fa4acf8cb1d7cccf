"""When two texts count as the same, and what counts as a word."""

from __future__ import annotations

import unicodedata
from hashlib import blake2b

from searchkit.scripts import WORD


def folded(text: str) -> str:
    """A text without case, white space and Unicode compatibility forms."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def fingerprint(text: str) -> bytes:
    """16 bytes that texts share when they are equal once folded."""
    return blake2b(folded(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def words(text: str) -> list[str]:
    """The words of a text in lower case; every character is one in scripts without spaces."""
    return WORD.findall(text.casefold())
