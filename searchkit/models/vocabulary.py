"""What a model's vocabulary does not have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from searchkit.scripts import UNSPACED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from searchkit.models.remote.pieces import PieceTokenizer

UNREADABLE = 1 / 3
"""Share of unknown tokens above which a text counts as unreadable to the model."""
_UNSPACED = re.compile(f"[{UNSPACED}]")
_FEW_CHARACTERS = 2000  # a newspaper takes as many in Japanese, and more in Chinese


def unknown_ids(tokenizer: Tokenizer | PieceTokenizer) -> frozenset[int]:
    """Tokens that stand for what is not in the vocabulary: the unknown one, and single letters.

    Words of a script of which the vocabulary has only the letters fall apart into them. Those that may begin a word do
    not count, nor do ASCII letters. In scripts without spaces one character may be a word, so that single characters
    count only in a vocabulary that has too few to write any of their languages.
    """
    vocabulary = tokenizer.get_vocab()
    wordpiece = "##s" in vocabulary  # it marks what continues a word; the others mark what begins one
    names = {getattr(getattr(tokenizer, "model", None), "unk_token", None), "<unk>", "[UNK]"}
    unspaced = []
    for token in vocabulary:
        if len(token) > 3 or token.isascii():
            continue
        letter = token.removeprefix("##" if wordpiece else "\u2581")
        if len(letter) == 1 and _UNSPACED.match(letter):
            unspaced.append(token)
        elif len(letter) == 1 and letter.isalpha() and (letter != token if wordpiece else letter == token):
            names.add(token)
    if len(unspaced) < _FEW_CHARACTERS:
        names.update(unspaced)
    return frozenset(vocabulary[name] for name in names if name in vocabulary)
