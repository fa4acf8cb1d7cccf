"""Text to terms for BM25: Unicode normalisation, bigrams where a script has no spaces, stop words, stemming."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

import tantivy

from searchkit.indexer.errors import InputError
from searchkit.indexer.unicode import normalised

LANGUAGES = (
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian",
    "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish",
)  # fmt: skip
"""Languages with a Snowball stemmer; "none" does without stemming and stop words."""

_NO_STOP_WORDS = {"arabic", "greek", "romanian", "tamil", "turkish"}  # tantivy has stemmers for these, no stop words

# Scripts that do not separate words. Hangul does, but its words are long compounds: Lucene takes bigrams of it too.
_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff"  # Thai, Lao, Burmese, Khmer
    "\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\uac00-\ud7af"  # Hangul, kana
    "\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "]+"
)


class Analyzer:
    """Terms of a text: normalised, lower case, without stop words, stemmed.

    Args:
        language: One of :data:`LANGUAGES`, or "none" for neither stop words nor stemming.
        normalised: Normalise Unicode and split unspaced scripts; False for indexes that were built without.

    Raises:
        InputError: There is no such language.
    """

    def __init__(self, language: str, *, normalised: bool = True) -> None:
        if language != "none" and language not in LANGUAGES:
            raise InputError(f"no stemmer for language {language!r}; known: {', '.join(LANGUAGES)}, or none")
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.lowercase())
        if language != "none":
            if language not in _NO_STOP_WORDS:
                builder = builder.filter(tantivy.Filter.stopword(language))
            builder = builder.filter(tantivy.Filter.stemmer(language))
        self.tokenizer: tantivy.TextAnalyzer = builder.build()
        """What tantivy does with a text that `prepare` returned."""
        self._normalised = normalised

    def prepare(self, text: str) -> str:
        """The text with one spelling for what reads the same, and spaces between the bigrams of unspaced scripts."""
        return _split(normalised(text)) if self._normalised else text

    def analyze(self, text: str) -> list[str]:
        """The terms of a text, in order."""
        return list(self.tokenizer.analyze(self.prepare(text)))


def _split(text: str) -> str:
    return text if text.isascii() else _UNSPACED.sub(lambda run: f" {_bigrams(run[0])} ", text)


def _bigrams(run: str) -> str:
    """Overlapping pairs of letters, as Lucene's CJK analyzer has them; a single letter is a term of its own."""
    letters = [letter for letter in run if _is_letter(letter)]
    pairs = [first + second for first, second in pairwise(letters)]
    return " ".join(pairs or letters)


@lru_cache(maxsize=4096)
def _is_letter(character: str) -> bool:
    """Whether tantivy takes a character for part of a word: tone marks and other signs would cut a pair in two."""
    return len(_SIMPLE.analyze(f"a{character}a")) == 1


_SIMPLE = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).build()
