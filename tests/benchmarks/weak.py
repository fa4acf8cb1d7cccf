"""How often is a match of the MCP tools called weak: relevant ones, which is wrong, and those of queries off the topic?

    python tests/benchmarks/weak.py corpora/intents/:dev scifact/:train nfcorpus/:dev \
        [--model builtin] [--queries 200] [--indexes FOLDER]

Each FOLDER:SPLIT[:TASK] is a BEIR folder, a split of its qrels, and the task whose instruction its queries get; without
one they get none but their own. The queries off the topic are questions of `corpora/kinds` (everyday beliefs), others
than those that the level is measured with; `corpora/intents` has such beliefs too, but not the same ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from fusion import judgements_of

from searchkit.engine import SearchEngine
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.ranking import Mode
from searchkit.readers.corpus import read_corpus
from searchkit.readers.kinds import kinds_rows
from searchkit.records import Hit, Judgements, Query
from searchkit.server.weak import PAIRS, related_similarity, weak_matches

K = 10
MODES: tuple[Mode, ...] = ("hybrid", "dense", "lexical")


def called_weak(
    engine: SearchEngine, queries: Iterable[Query], mode: Mode, level: float
) -> list[list[tuple[Hit, bool]]]:
    """The first K hits of every query, each with whether it is called weak."""
    found = []
    for query in queries:
        hits = engine.search(query, k=K, mode=mode, explain=True)
        found.append(
            list(zip(hits, weak_matches(query.text, hits, engine.settings["language"], lambda: level), strict=True))
        )
    return found


def shares(engine: SearchEngine, judgements: Judgements, mode: Mode, level: float, most: int) -> dict[str, Any]:
    """Matches called weak and all, of several kinds: (weak, all)."""
    qrels: Mapping[str, Mapping[str, int]] = judgements.qrels
    queries = [
        Query(q.id, q.text, q.instruction or judgements.instruction or None)
        for q in islice((q for q in judgements.queries if q.id in qrels), most)
    ]
    on = called_weak(engine, queries, mode, level)
    others = [Query("", topic["question"]) for topic in kinds_rows("topics")[PAIRS:]]
    strange = called_weak(engine, others[:most], mode, level)
    kinds = {
        "relevant": [
            weak
            for query, hits in zip(queries, on, strict=True)
            for hit, weak in hits
            if qrels[query.id].get(hit.id, 0) > 0
        ],
        "not judged relevant": [
            weak
            for query, hits in zip(queries, on, strict=True)
            for hit, weak in hits
            if qrels[query.id].get(hit.id, 0) <= 0
        ],
        "off the topic": [weak for hits in strange for _, weak in hits],
        "off the topic, first": [weak for hits in strange for _, weak in hits[:1]],
    }
    return {name: (sum(values), len(values)) for name, values in kinds.items()}


def main() -> None:
    """Measure and print tables, then all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="FOLDER:SPLIT[:TASK]")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--queries", type=int, default=200, help="of each set, and off the topic")
    parser.add_argument("--indexes", type=Path, help="keep the indexes here, each as NAME.index")
    arguments = parser.parse_args()
    embedder = Embedder(arguments.model)
    level = related_similarity(embedder)
    results: dict[str, dict[str, Any]] = {mode: {} for mode in MODES}
    with tempfile.TemporaryDirectory() as temporary:
        for text in arguments.sets:
            folder, judgements = judgements_of(text)
            path = (arguments.indexes or Path(temporary)) / f"{folder.resolve().name}.index"
            with SearchEngine.create(path, model=embedder, chunk_tokens=0, exist_ok=True) as engine:
                engine.add(read_corpus(folder))
                for mode in MODES:
                    results[mode][text] = shares(engine, judgements, mode, level, arguments.queries)
    for mode, found in results.items():
        rows = next(iter(found.values()))
        print(f"| {mode}: called weak | {' | '.join(found)} |\n|{'---|' * (len(found) + 1)}")
        for name in rows:
            cells = [f"{weak} of {every}" for weak, every in (shares[name] for shares in found.values())]
            print(f"| {name} | {' | '.join(cells)} |")
        print()
    print(json.dumps({"model": arguments.model, "level": round(level, 4), "results": results}))


if __name__ == "__main__":
    main()
