"""Text to terms for BM25: Unicode, letters and their pairs without spaces, stop words, accents, stemming."""

from __future__ import annotations

import re
import unicodedata
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

RAW, PAIRS, LETTERS = 1, 2, 3
"""Generations of terms: of texts as they are; then normalised, with pairs of letters of scripts without spaces; then
with the letters themselves too."""

FOLD = "+fold"
"""After a language, or "none": accents make no difference."""

_NO_STOP_WORDS = {"arabic", "greek", "romanian", "tamil", "turkish"}  # tantivy has stemmers for these, no stop words

# Scripts that do not separate words. Hangul does, but its words are long compounds: Lucene takes bigrams of it too.
_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff"  # Thai, Lao, Burmese, Khmer
    "\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\uac00-\ud7af"  # Hangul, kana
    "\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "]+"
)


# ASCII folding knows Latin letters. It leaves accents of Greek letters and marks that combine into no single character.
_GREEK = re.compile("[\u0370-\u03ff\u1f00-\u1fff]+")
_MARKS = re.compile("[\u0300-\u036f]")
_LETTERS = str.maketrans("\u0130\u0401\u0451", "I\u0415\u0435")  # I with a dot, io


class Analyzer:
    """Terms of a text: normalised, lower case, without stop words, stemmed.

    Args:
        language: One of :data:`LANGUAGES`, or "none" for neither stop words nor stemming; with "+fold" after it,
            accents are folded as Lucene's ASCIIFoldingFilter does: é becomes e, ä a, ß ss, æ ae, ø o, ł l. Stop words
            are dropped before that, and words are stemmed after it, so that both spellings end as the same term.
        terms: The generation, that of the index.

    Raises:
        InputError: There is no such language.
    """

    def __init__(self, language: str, *, terms: int = LETTERS) -> None:
        name = str(language).removesuffix(FOLD)
        self._folds = name != language
        if name != "none" and name not in LANGUAGES:
            raise InputError(
                f"no stemmer for language {language!r}; known: {', '.join(LANGUAGES)}, or none; "
                f"to ignore accents, each with {FOLD} after it"
            )
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.lowercase())
        if name != "none" and name not in _NO_STOP_WORDS:
            builder = builder.filter(tantivy.Filter.stopword(name))
        if self._folds:
            builder = builder.filter(tantivy.Filter.ascii_fold())
        if name != "none":
            builder = builder.filter(tantivy.Filter.stemmer(name))
        self.tokenizer: tantivy.TextAnalyzer = builder.build()
        """What tantivy does with a text that `prepare` returned."""
        self._terms = terms

    def prepare(self, passage: str) -> str:
        """A passage with one spelling for what reads the same, and spaces between the terms of unspaced scripts."""
        return self._prepared(passage, letters=self._terms >= LETTERS)

    def analyze(self, passage: str) -> list[str]:
        """The terms of a passage, in order."""
        return list(self.tokenizer.analyze(self.prepare(passage)))

    def analyze_query(self, query: str) -> list[str]:
        """The terms that a query looks for, in order: of what a passage has, no letter that is part of a pair."""
        return list(self.tokenizer.analyze(self._prepared(query, letters=False)))

    def _prepared(self, text: str, *, letters: bool) -> str:
        if self._terms == RAW or text.isascii():
            return text
        text = normalised(text)
        return _split(_without_marks(text) if self._folds else text, letters)


def _without_marks(text: str) -> str:
    text = _GREEK.sub(lambda run: unicodedata.normalize("NFD", run[0]), text.translate(_LETTERS))
    return _MARKS.sub("", text)


def _split(text: str, letters: bool) -> str:
    return _UNSPACED.sub(lambda run: f" {_bigrams(run[0], letters)} ", text)


def _bigrams(run: str, letters: bool) -> str:
    """Overlapping pairs of letters, as Lucene's CJK analyzer has them, and the letters if wanted; one letter alone."""
    single = [letter for letter in run if _is_letter(letter)]
    pairs = [first + second for first, second in pairwise(single)]
    return " ".join([*single, *pairs] if letters else pairs or single)


@lru_cache(maxsize=4096)
def _is_letter(character: str) -> bool:
    """Whether tantivy takes a character for part of a word: tone marks and other signs would cut a pair in two."""
    return len(_SIMPLE.analyze(f"a{character}a")) == 1


_SIMPLE = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).build()
