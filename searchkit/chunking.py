"""Long documents into passages of so many tokens, with overlap."""

from __future__ import annotations

import re
from collections.abc import Callable

from searchkit.errors import InputError

_SENTENCE_END = re.compile(r"[.!?\u2026]['\")\]\u201d\u2019]*\s+|[\u3002\uff01\uff1f]\s*|\n\s*")


def chunk(
    text: str, offsets: Callable[[str], list[tuple[int, int]]], *, tokens: int, overlap: int
) -> list[tuple[int, int]]:
    """Cut a text into passages.

    A passage ends after a sentence where one ends in its last quarter, else between words, else between tokens.

    Args:
        text: Any length; blank texts have no passages.
        offsets: Gives each token's (start, stop) in characters.
        tokens: Most tokens of a passage.
        overlap: Tokens that a passage shares with the one before it, at least.

    Returns:
        (start, stop) character spans that together cover the text but for white space at their ends.

    Raises:
        ValueError: The overlap is not smaller than three quarters of a passage.
    """
    if tokens < 1 or not 0 <= overlap < tokens * 3 / 4:
        raise InputError(f"passages of {tokens} tokens with an overlap of {overlap}: the overlap must be under 3/4")
    if not text.strip():
        return []
    places = offsets(text)
    if len(places) <= tokens:
        return [_trim(text, 0, len(text))]
    spans = []
    first = 0
    while True:
        last = min(first + tokens, len(places))  # one past the passage's last token
        if last < len(places):
            # Four tokens to choose from at least: a character may take as many.
            last = _cut(text, places, first + min((tokens * 3) // 4, max(0, tokens - 4)), last)
        start = 0 if first == 0 else places[first][0]
        stop = len(text) if last == len(places) else places[last][0]
        start, stop = _trim(text, start, stop)
        if start < stop:
            spans.append((start, stop))
        if last == len(places):
            return spans
        wanted = max(first + 1, last - overlap)
        reach = max(overlap, 3) if overlap else 0
        first = _boundary(text, places, wanted, max(first + 1, wanted - reach))


def _cut(text: str, places: list[tuple[int, int]], earliest: int, latest: int) -> int:
    """The token to cut before: after the last sentence between the two, else after the last word, else `latest`."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text, places[earliest][0], places[latest][0])]
    if ends:
        # By where tokens stop: byte-level tokens begin with the space before their word, so before the sentence's end.
        return next((n for n in range(earliest + 1, latest) if places[n][1] > ends[-1]), latest)
    return _boundary(text, places, latest, earliest + 1)


def _boundary(text: str, places: list[tuple[int, int]], wanted: int, least: int) -> int:
    """The last token from `wanted` back to `least` that begins a word, else a character, else `wanted`."""
    # A byte-level token may be a part of a character, and then has the whole character's place.
    whole = [n for n in range(wanted, least - 1, -1) if places[n][0] >= places[n - 1][1]]
    return next((n for n in whole if _starts_word(text, places[n][0])), whole[0] if whole else wanted)


def _starts_word(text: str, place: int) -> bool:
    return place == 0 or text[place - 1].isspace() or text[place].isspace()


def _trim(text: str, start: int, stop: int) -> tuple[int, int]:
    stretch = text[start:stop]
    return start + len(stretch) - len(stretch.lstrip()), stop - (len(stretch) - len(stretch.rstrip()))
