"""Does the instruction matter? Scores with the right instruction, without one, and with a wrong one.

    python tests/benchmarks/instructions.py [--model FOLDER] [--split test] [--mode dense]

Runs on `corpora/intents`. The wrong instruction of a query is that of another query with the same text if there is one,
else that of the next kind of task.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import DEFAULT_MODEL
from searchkit.readers.corpus import corpus_folder, read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import Judgements, Query


def wrong(queries: list[Query]) -> list[Query]:
    """The same queries, each with an instruction for something else."""
    kinds = list(dict.fromkeys(query.instruction for query in queries))
    same_text: dict[str, list[str | None]] = {}
    for query in queries:
        same_text.setdefault(query.text, []).append(query.instruction)
    swapped = []
    for query in queries:
        others = [other for other in same_text[query.text] if other != query.instruction]
        following = kinds[(kinds.index(query.instruction) + 1) % len(kinds)]
        swapped.append(replace(query, instruction=others[0] if others else following))
    return swapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--split", default="test", choices=["dev", "test"])
    parser.add_argument("--mode", default="dense", choices=["dense", "hybrid"])
    arguments = parser.parse_args()
    corpus = corpus_folder("intents")
    queries, qrels = read_beir_split(corpus, arguments.split)
    variants = {
        "right": queries,
        "none": [replace(query, instruction="") for query in queries],
        "wrong": wrong(queries),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        SearchEngine.create(Path(folder) / "index", model=arguments.model, chunk_tokens=0) as engine,
    ):
        engine.add(read_corpus(corpus))
        scores = {
            name: evaluate(engine, Judgements(name, asked, qrels), modes=[arguments.mode])[0].metrics["ndcg@10"]
            for name, asked in variants.items()
        }
    print(json.dumps({"model": arguments.model, "mode": arguments.mode, "split": arguments.split, "ndcg@10": scores}))


if __name__ == "__main__":
    main()
