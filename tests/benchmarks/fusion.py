"""Ways of fusing dense and lexical search: nDCG@10 of each, and what a query costs.

    python tests/benchmarks/fusion.py corpora/intents/:dev scifact/:train scifact/:train:scifact nfcorpus/:dev \
        [--model builtin] [--indexes FOLDER]

Each FOLDER:SPLIT[:TASK] is a BEIR folder, a split of its qrels, and the task whose instruction its queries get; without
one they get none but their own. Documents are indexed whole, in --indexes if that is given, where a second run finds
them again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import DEFAULT_MODEL
from searchkit.ranking import SearchOptions
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import Judgements
from searchkit.tasks import get_task

FUSIONS = {
    "dense alone": ("dense", SearchOptions()),
    "BM25 alone": ("lexical", SearchOptions()),
    "reciprocal rank, k 60": ("hybrid", SearchOptions(fusion="rrf")),
    "weighted, .5": ("hybrid", SearchOptions(fusion="weighted")),
    "weighted, .7": ("hybrid", SearchOptions(fusion="weighted", dense_weight=0.7)),
    "adaptive": ("hybrid", SearchOptions(fusion="adaptive")),
}


def measure(engine: SearchEngine, judgements: Judgements) -> dict[str, tuple[float, float]]:
    """(nDCG@10, milliseconds a query) of every fusion."""
    scores = {}
    for name, (mode, options) in FUSIONS.items():
        (result,) = evaluate(engine, judgements, modes=[mode], options=options)
        scores[name] = result.metrics["ndcg@10"], 1000 * result.seconds_per_query
    return scores


def judgements_of(text: str) -> tuple[Path, Judgements]:
    """The folder and the judgements that FOLDER:SPLIT[:TASK] names."""
    folder, split, *task = text.split(":")
    queries, qrels = read_beir_split(folder, split)
    return Path(folder), Judgements(text, queries, qrels, get_task(task[0]).instruction if task else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="FOLDER:SPLIT[:TASK]")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--indexes", type=Path, help="keep the indexes here, each as NAME.index")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for text in arguments.sets:
            folder, judgements = judgements_of(text)
            path = (arguments.indexes or Path(temporary)) / f"{folder.resolve().name}.index"
            with SearchEngine.create(path, model=arguments.model, chunk_tokens=0, exist_ok=True) as engine:
                engine.add(read_corpus(folder))
                results[text] = measure(engine, judgements)
    for unit, number in (("nDCG@10", 0), ("ms a query", 1)):
        print(f"| {unit} | {' | '.join(results)} |\n|{'---|' * (len(results) + 1)}")
        for name in FUSIONS:
            values = [f"{scores[name][number]:.{4 if number == 0 else 1}f}" for scores in results.values()]
            print(f"| {name} | {' | '.join(values)} |")
        print()
    print(json.dumps({"model": arguments.model, "results": results}))


if __name__ == "__main__":
    main()
