"""Which words of a query and its hits lexical search takes for the same, so that a page can mark them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

from searchkit.indexer.analysis import Analyzer

MOST_TEXTS = 20
"""Passages worth looking through; more cost milliseconds and bring few new spellings."""


def matched_words(language: str, query: str, texts: Iterable[str]) -> list[str]:
    """The words that share a term with a query, sorted, each in every spelling that occurs.

    Args:
        language: Of the lexical index; says what a term is.
        query: The query; its own words are among them, unless they are stop words.
        texts: Passages with their titles.

    Returns:
        Words in lower case and in Unicode's form NFKC. Of scripts without spaces, letters and pairs of letters.
    """
    analyzer = Analyzer(language)
    wanted = set(analyzer.analyze_query(query))
    words = {word for text in [query, *texts] for word in _words(text)}
    matched: set[str] = set()
    for word in words:
        sought = set(analyzer.analyze_query(word))
        if sought and sought <= wanted:
            matched.add(word)
        if len(terms := set(analyzer.analyze(word))) > 1:
            matched |= terms & wanted
    return sorted(matched)


def _words(text: str) -> list[str]:
    return _pattern().findall(unicodedata.normalize("NFKC", text).lower())


@cache
def _pattern() -> re.Pattern[str]:
    # Python's \w leaves out marks, which are inside of words in Indic and other scripts.
    marks = "".join(mark for mark in map(chr, range(0x300, 0x1E00)) if unicodedata.category(mark)[0] == "M")
    return re.compile(rf"(?:[^\W_]|[{marks}])+")
