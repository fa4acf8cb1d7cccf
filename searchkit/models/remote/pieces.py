"""Texts cut into pieces in place of a tokenizer that only the server has.

Pieces are estimated tokens, on the long side: up to four letters of a word, two digits, or one other character. They
serve for the length of passages and batches. A piece's id is made of its bytes, so that ids can be turned back into
the text, which is what goes over the wire.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from searchkit.errors import InputError

_PIECE = re.compile(r" ?[A-Za-z]{1,4}| ?[0-9]{1,2}|\s{1,4}|.", re.DOTALL)
_MARK = b"\x01"  # before a piece's bytes: leading zeros would be lost, and ids below 256 are left for marks

QUERY, BREAK = 2, 3
"""Ids around the instruction of a query that the server puts together: QUERY instruction BREAK query."""


class Pieces(NamedTuple):
    """Ids of all pieces of a text, and the characters (start, stop) of those that are not white space."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class PieceTokenizer:
    """What :class:`searchkit.models.embedder.Embedder` uses of a tokenizer."""

    def encode(self, text: str, add_special_tokens: bool = False) -> Pieces:
        """The pieces of a text."""
        ids, offsets = [], []
        for match in _PIECE.finditer(text):
            piece = match[0]
            ids.append(_id(piece))
            if not piece.isspace():
                offsets.append((match.start() + piece.startswith(" "), match.end()))
        return Pieces(ids, offsets)

    def encode_batch_fast(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[Pieces]:
        """The pieces of some texts, without offsets."""
        return [Pieces([_id(piece) for piece in _PIECE.findall(text)], []) for text in texts]

    def get_vocab(self) -> dict[str, int]:
        """Empty: which tokens the model does not know, its server alone could tell."""
        return {}


def query_ids(query: list[int], instruction: list[int]) -> list[int]:
    """A query and its instruction as one list."""
    return [QUERY, *instruction, BREAK, *query]


def split_query(ids: list[int]) -> tuple[list[int], list[int]] | None:
    """(query, instruction) of what `query_ids` returned; None for a text that is sent as it is."""
    if ids[:1] != [QUERY]:
        return None
    middle = ids.index(BREAK)
    return ids[middle + 1 :], ids[1:middle]


def text_of(ids: Sequence[int]) -> str:
    """The text that pieces were cut from."""
    return b"".join(id.to_bytes((id.bit_length() + 7) // 8)[1:] for id in ids).decode()


def _id(piece: str) -> int:
    try:
        return int.from_bytes(_MARK + piece.encode())
    except UnicodeEncodeError:
        raise InputError("a text holds a lone surrogate, which is no character; remove it") from None
