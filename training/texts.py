"""When two texts count as the same, and what counts as a word."""

from __future__ import annotations

import re
import unicodedata
from hashlib import blake2b

# Thai to Burmese, Khmer, kana and Han are written without spaces: there every character counts as a word.
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def folded(text: str) -> str:
    """A text without case, white space and Unicode compatibility forms."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def fingerprint(text: str) -> bytes:
    """16 bytes that texts share when they are equal once folded."""
    return blake2b(folded(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def words(text: str) -> list[str]:
    """The words of a text in lower case; every character is one in scripts without spaces."""
    return _WORD.findall(text.casefold())
