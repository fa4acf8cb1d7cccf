"""Ways of making one ranking of two: nDCG@10 of each, on splits that nothing is reported on.

    python tests/benchmarks/fusion.py scifact/:train nfcorpus/:dev [--model minilm] [--indexes FOLDER]

Each FOLDER:SPLIT is a BEIR folder. Its documents are indexed whole, in --indexes if that is given, where a second run
finds them again. Both sides put up 100 documents a query, and every fusion sees the same ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.indexer.fusion import Ranking, reciprocal_rank, weighted
from searchkit.metrics import DEPTH, score
from searchkit.ranking import SearchOptions
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split


def scaled(ranking: Ranking) -> Ranking:
    """From 0 for the lowest to 1 for the highest of the list."""
    low, high = min(ranking.values(), default=0.0), max(ranking.values(), default=0.0)
    return {item: (value - low) / (high - low) if high > low else 1.0 for item, value in ranking.items()}


def standardised(ranking: Ranking) -> Ranking:
    """Standard deviations above the mean of the list."""
    spread = pstdev(ranking.values()) or 1.0
    middle = fmean(ranking.values())
    return {item: (value - middle) / spread for item, value in ranking.items()}


def half_and_half(dense: Ranking, lexical: Ranking) -> Ranking:
    return {item: dense.get(item, 0.0) + lexical.get(item, 0.0) for item in dense | lexical}


# Each takes the 100 most similar, the 100 best by BM25, and the similarity of them all.
FUSIONS: dict[str, Callable[[Ranking, Ranking, Ranking], Ranking]] = {
    "dense alone": lambda dense, lexical, exact: dense,
    "BM25 alone": lambda dense, lexical, exact: lexical,
    "reciprocal rank, k 60": lambda dense, lexical, exact: reciprocal_rank((dense, lexical), 60),
    "weighted, each list scaled by itself": lambda dense, lexical, exact: half_and_half(scaled(dense), scaled(lexical)),
    "weighted, exact similarity for every candidate": lambda dense, lexical, exact: weighted(exact, lexical, 0.5),
    "standardised scores": lambda dense, lexical, exact: half_and_half(
        standardised(exact), standardised({item: lexical.get(item, 0.0) for item in exact})
    ),
}


def measure(engine: SearchEngine, folder: Path, split: str) -> dict[str, float]:
    """nDCG@10 of every fusion."""
    queries, qrels = read_beir_split(folder, split)
    queries = [query for query in queries if query.id in qrels]
    sides = [engine.rank(queries, k=DEPTH, options=SearchOptions(mode=mode)) for mode in ("dense", "lexical")]
    ids = engine.ids_of(ranking for side in sides for ranking in side)
    runs: dict[str, dict[str, dict[str, float]]] = {name: {} for name in FUSIONS}
    for query, vector, by_vector, by_words in zip(queries, engine.embed(queries), *sides, strict=True):
        dense, lexical = ({item.doc: item.score for item in side} for side in (by_vector, by_words))
        rows = np.array([item.row for item in by_words if item.doc not in dense], dtype=np.int64)
        missing = [item.doc for item in by_words if item.doc not in dense]
        exact = dense | dict(zip(missing, engine.similarities(vector, rows).tolist(), strict=True))
        for name, fuse in FUSIONS.items():
            runs[name][query.id] = {ids[doc]: value for doc, value in fuse(dense, lexical, exact).items()}
    return {name: score(run, qrels)[0]["ndcg@10"] for name, run in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="FOLDER:SPLIT")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--indexes", type=Path, help="keep the indexes here, each as NAME.index")
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for text in arguments.sets:
            folder, split = Path(text.rpartition(":")[0]), text.rpartition(":")[2]
            place = (arguments.indexes or Path(temporary)) / f"{folder.resolve().name}.index"
            with SearchEngine.create(place, model=arguments.model, chunk_tokens=0, exist_ok=True) as engine:
                engine.add(read_corpus(folder))
                found[text] = measure(engine, folder, split)
    print(f"| nDCG@10 | {' | '.join(arguments.sets)} | mean |\n|{'---|' * (len(arguments.sets) + 2)}")
    for name in FUSIONS:
        values = [scores[name] for scores in found.values()]
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in (*values, fmean(values)))} |")
    print(json.dumps({"model": arguments.model, "ndcg@10": found}))


if __name__ == "__main__":
    main()
