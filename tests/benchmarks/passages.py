"""Passages for measurements at any number of them, the same ones in every run, with their vectors.

Vectors are those of `corpora/` under the built-in model (384 dimensions), repeated with noise: a cosine of .8 to the
one they come from. Texts are drawn from the words of the same passage and from a Zipf vocabulary of real words and
compounds of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from searchkit.readers.corpus import corpus_folder, read_corpus
from searchkit.readers.kinds import kinds_rows
from searchkit.records import Document

NOISE = 0.75
"""Length of the noise that is added to a vector of length 1: the cosine of both is .8."""
BLOCK = 16_384
"""Passages that are drawn together: the same ones in every run."""
VOCABULARY = 300_000
WORDS = (12, 24)
"""Words of a passage."""
QUERIES = 200
K = 10
FILTERS = {"half": {"language": "en"}, "percent": {"topic": "topic 7"}, "few": {"shelf": "shelf 77"}}
"""Filters that 50 %, 1 % and .01 % of the documents pass."""


class Seeds(NamedTuple):
    """What passages are made of: vectors (n, 384), the words of each, and the vocabulary with the share of each."""

    vectors: np.ndarray
    words: list[list[str]]
    vocabulary: np.ndarray
    shares: np.ndarray


def seeds(folder: Path) -> Seeds:
    """Read the corpora, embed them once, and make the vocabulary."""
    texts = [document.text for document in read_corpus(corpus_folder("intents"))]
    texts += [line for line in _strings(kinds_rows("topics")) if len(line) > 40]
    file = folder / "seeds.npy"
    if not file.is_file():
        from searchkit import Embedder

        np.save(file, Embedder().encode_passages(texts))
    real = sorted({word for text in texts for word in text.lower().split() if word.isalpha()})
    rng = np.random.default_rng(1)
    rng.shuffle(real)
    pairs = rng.integers(len(real), size=(VOCABULARY - len(real), 2)).tolist()
    vocabulary = np.array([*real, *(real[one] + real[other] for one, other in pairs)], dtype=object)
    shares = np.cumsum(1 / (50 + np.arange(VOCABULARY)))
    words = [[word for word in text.lower().split() if word.isalpha()] for text in texts]
    return Seeds(np.load(file), words, vocabulary, shares / shares[-1])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def blocks(source: Seeds, start: int, stop: int) -> Iterator[tuple[list[Document], np.ndarray]]:
    """Documents `start` to `stop` with their vectors, (n, 384) float32 unit rows, a block at a time."""
    for first in range(start - start % BLOCK, stop, BLOCK):
        rng = np.random.default_rng([2, first])
        chosen = rng.integers(len(source.vectors), size=BLOCK)
        vectors = rng.standard_normal((BLOCK, source.vectors.shape[1]), dtype=np.float32)
        vectors *= NOISE / math.sqrt(vectors.shape[1])
        vectors += source.vectors[chosen]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        lengths = rng.integers(*WORDS, size=BLOCK, endpoint=True)
        drawn = source.vocabulary[np.searchsorted(source.shares, rng.random((BLOCK, WORDS[1])))]
        numbers = rng.integers(1 << 30, size=(BLOCK, 6)).tolist()
        draws = rng.integers(20_000, size=(BLOCK, 4)).tolist()
        documents = []
        low, high = max(start, first), min(stop, first + BLOCK)
        for n in range(low - first, high - first):
            own = source.words[chosen[n]]
            text = " ".join([*(own[number % len(own)] for number in numbers[n]), *drawn[n, : lengths[n] - 6]])
            language, topic, shelf, year = draws[n]
            metadata = {
                "language": ("en", "de")[language % 2],
                "topic": f"topic {topic % 100}",
                "shelf": f"shelf {shelf % 10_000}",
                "year": 1990 + year % 35,
                "source": f"notes/{shelf % 10_000}/{first + n}.md",
            }
            documents.append(Document(f"p{first + n}", text, metadata=metadata))
        yield documents, vectors[low - first : high - first]


def queries(source: Seeds) -> tuple[list[str], np.ndarray]:
    """Texts of four words of one passage and one of the vocabulary, and vectors near that passage."""
    rng = np.random.default_rng(3)
    chosen = rng.integers(len(source.vectors), size=QUERIES)
    vectors = rng.standard_normal((QUERIES, source.vectors.shape[1]), dtype=np.float32)
    vectors = source.vectors[chosen] + vectors * (NOISE / math.sqrt(vectors.shape[1]))
    texts = []
    for number in chosen:
        own = source.words[number]
        picked = [own[n] for n in rng.integers(len(own), size=4)]
        texts.append(" ".join([*picked, source.vocabulary[np.searchsorted(source.shares, rng.random())]]))
    return texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
