"""Filters and facets over many documents: seconds for metadata in ASCII, with accents, and in decomposed Unicode.

    python tests/benchmarks/metadata.py [--documents 100000]

"mixed" has accents, decomposed in one document of a hundred. Each filter is new to its index, so nothing is cached, but
the checksums have been verified before. A facet is counted twice, over the documents that the last filter matched; a
lexical search matches its documents by a word that all of them hold.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.facets import FacetColumns
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.store import Store

DIM = 8
ENGLISH = ["astronomy", "geology", "botany", "history"]
FRENCH = ["météorologie", "géologie", "botanique", "préhistoire"]
COLLECTIONS = {"ascii": (ENGLISH, 0), "accents": (FRENCH, 0), "mixed": (FRENCH, 100), "decomposed": (FRENCH, 1)}
"""Topics, and of how many documents one has them decomposed; 0 for none."""


def documents(topics: list[str], decomposed: int, count: int) -> Iterator[list[NewDocument]]:
    """Documents in commits of 1,024, with metadata of the usual size."""
    for start in range(0, count, 1024):
        commit = []
        for n in range(start, min(start + 1024, count)):
            form = "NFD" if decomposed and n % decomposed == 0 else "NFC"
            written = unicodedata.normalize(form, json.dumps(metadata(topics, n), ensure_ascii=False))
            commit.append(NewDocument(str(n), f"Title {n}", "text", written, "0", [(0, 4)]))
        yield commit


def metadata(topics: list[str], n: int) -> dict[str, Any]:
    topic = topics[n % len(topics)]
    return {
        "year": 1990 + n % 30,
        "topic": topic,
        "tags": [topic, topics[n // 7 % len(topics)]],
        "author": {"name": f"Author {n % 500}", "place": topic},
        "source": f"notes/{topic}/{n}.md",
    }


def measure(folder: Path, topics: list[str], decomposed: int, count: int) -> dict[str, float]:
    """Seconds of every filter, each of which matches a quarter to a half of the documents, and of facets."""
    with Store.create(folder, {"model": {}, "language": "none", "chunk_tokens": 0, "overlap": 0}, dim=DIM) as store:
        for part in documents(topics, decomposed, count):
            store.commit(part, np.eye(DIM, dtype=np.float32)[np.arange(len(part)) % DIM])
    filters = {
        "number": {"year": {"$gte": 2012}},
        "text": {"topic": topics[0]},
        "list": {"tags": topics[0]},
        "nested": {"author.place": topics[0]},
    }
    found = {}
    with Store(folder, writable=False) as store:
        snapshot = store.snapshot()
        store.documents.check_contents()
        for name, where in filters.items():
            began = time.perf_counter()
            docs, _ = store.matching(compile_filter(where), snapshot)
            found[name] = round(time.perf_counter() - began, 3)
            assert count / 5 < len(docs) < count / 2
        matching = np.zeros(snapshot.next_doc, dtype=bool)
        matching[docs] = True
        columns = FacetColumns(store, snapshot)
        for key in ("topic", "tags", "author.place", "source"):
            for name in (f"facet {key}", f"facet {key}, again"):
                began = time.perf_counter()
                assert columns.count(matching, [key]).counts[key]
                found[name] = round(time.perf_counter() - began, 3)
    index = LexicalIndex(folder / "words", "english")
    index.add((row, "a word that all of them hold") for row in range(count))
    began = time.perf_counter()
    assert len(index.matching("word", count)) == count
    found["lexical match"] = round(time.perf_counter() - began, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    arguments = parser.parse_args()
    results = {}
    for name, (topics, decomposed) in COLLECTIONS.items():
        with tempfile.TemporaryDirectory() as temporary:
            results[name] = measure(Path(temporary) / "index", topics, decomposed, arguments.documents)
    print(json.dumps({"documents": arguments.documents, "seconds": results}))


if __name__ == "__main__":
    main()
