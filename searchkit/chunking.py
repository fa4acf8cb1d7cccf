"""Cut long documents into passages of at most so many tokens, with overlap."""

from __future__ import annotations

import re
from collections.abc import Callable

from searchkit.errors import InputError

_MARGIN = 16
"""Tokens that a passage by itself may have more than the text has there; one with more room to spare is not counted."""

_SENTENCE_END = re.compile(r"[.!?\u2026]['\")\]\u201d\u2019]*\s+|[\u3002\uff01\uff1f]\s*|\n\s*")


_Spans = list[tuple[int, int]]


def chunk(
    text: str, offsets: Callable[[str], _Spans], *, tokens: int, overlap: int, before: str = ""
) -> list[tuple[int, int]]:
    """Cut a text into passages.

    A passage ends after a sentence if one ends in its last quarter, otherwise between words, otherwise between tokens.

    Args:
        text: Of any length; a blank text has no passages.
        offsets: Returns the (start, stop) of each token in characters.
        tokens: Maximum length of a passage. It holds for the tokens of the passage by itself, which may be more than
            the text has there: a word without the space before it may take one more. Only a single character may
            take more.
        overlap: Tokens that a passage shares with the one before it, at least.
        before: What is put before every passage, and counts towards its length.

    Returns:
        Character spans (start, stop) that together cover the text, except for white space at their ends.

    Raises:
        ValueError: The overlap is not smaller than three quarters of what `before` leaves of a passage.
    """
    room = tokens - len(offsets(before.rstrip()))
    if room < 1 or not 0 <= overlap < room * 3 / 4:
        raise InputError(f"passages of {room} tokens with an overlap of {overlap}: the overlap must be under 3/4")
    if not text.strip():
        return []
    token_spans = offsets(text)
    spans: _Spans = []
    first = 0
    while True:
        last = min(first + room, len(token_spans))  # one past the passage's last token
        if last < len(token_spans):
            last = _cut(text, token_spans, _earliest(first, last), last)
        start, stop = _stretch(text, token_spans, first, last)
        full = first + max(1, room - _MARGIN)
        while last > full and (excess := len(offsets(before + text[start:stop])) - tokens) > 0:
            latest = max(first + 1, last - excess)
            last = _cut(text, token_spans, _earliest(first, latest), latest)
            start, stop = _stretch(text, token_spans, first, last)
        if start < stop:
            spans.append((start, stop))
        if last >= len(token_spans):
            return spans
        wanted = max(first + 1, last - overlap)
        reach = max(overlap, 3) if overlap else 0
        first = _boundary(text, token_spans, wanted, max(first + 1, wanted - reach))


def _earliest(first: int, latest: int) -> int:
    """The token after which a passage from `first` may end: in the last quarter, with four at least to choose from.

    A character may take as many.
    """
    count = latest - first
    return first + min(count * 3 // 4, max(0, count - 4))


def _stretch(text: str, token_spans: _Spans, first: int, last: int) -> tuple[int, int]:
    """The characters of some tokens, without white space at their ends."""
    start = 0 if first == 0 else token_spans[first][0]
    stop = len(text) if last >= len(token_spans) else token_spans[last][0]
    return _trim(text, start, stop)


def _cut(text: str, token_spans: _Spans, earliest: int, latest: int) -> int:
    """The token to cut before: after the last sentence in between, else after the last word, else `latest`."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text, token_spans[earliest][0], token_spans[latest][0])]
    if ends:
        # By their ends: byte-level tokens begin with the space before a word, which is before the sentence's end.
        return next((n for n in range(earliest + 1, latest) if token_spans[n][1] > ends[-1]), latest)
    return _boundary(text, token_spans, latest, earliest + 1)


def _boundary(text: str, token_spans: _Spans, wanted: int, least: int) -> int:
    """The last token from `wanted` back to `least` that begins a word, else a character, else `wanted`."""
    # A byte-level token may be part of a character; its span is then the whole character.
    whole = [n for n in range(wanted, least - 1, -1) if token_spans[n][0] >= token_spans[n - 1][1]]
    return next((n for n in whole if _starts_word(text, token_spans[n][0])), whole[0] if whole else wanted)


def _starts_word(text: str, position: int) -> bool:
    return position == 0 or text[position - 1].isspace() or text[position].isspace()


def _trim(text: str, start: int, stop: int) -> tuple[int, int]:
    stretch = text[start:stop]
    return start + len(stretch) - len(stretch.lstrip()), stop - (len(stretch) - len(stretch.rstrip()))
