"""nDCG@10 on some of a collection's training queries, to choose between models within minutes.

    python tests/benchmarks/reduced.py scifact/ [--split train] [--model FOLDER] [--query-repeats N]

Indexes 400 documents that are relevant to some query of the split and 600 that are relevant to none, and searches for
the queries whose relevant documents are all among them, 554 for SciFact's train split. Without an instruction and with
that of the collection's task, dense and hybrid. Collections with very many relevant documents per query have no such
queries.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path

from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import Judgements
from searchkit.tasks import get_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a BEIR folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--query-repeats", type=int, help="instead of the model's own")
    parser.add_argument("--task", help="the task whose instruction is used [default: the folder's name]")
    arguments = parser.parse_args()
    task = get_task(arguments.task or arguments.folder.resolve().name)
    if arguments.query_repeats is not None and arguments.query_repeats < 1:
        parser.error(f"--query-repeats is {arguments.query_repeats}; expected 1 or more")
    embedder = Embedder(arguments.model)
    if arguments.query_repeats:
        embedder.conventions = replace(embedder.conventions, query_repeats=arguments.query_repeats)

    queries, qrels = read_beir_split(arguments.folder, arguments.split)
    documents = {document.id: document for document in read_corpus(arguments.folder)}
    qrels = {query: {id: gain for id, gain in judged.items() if gain > 0} for query, judged in qrels.items()}
    relevant = sorted({document for judged in qrels.values() for document in judged})
    others = sorted(documents.keys() - set(relevant))
    random.Random(3).shuffle(others)
    kept = {*relevant[:400], *others[:600]}
    qrels = {query: judged for query, judged in qrels.items() if judged and judged.keys() <= kept}
    queries = [query for query in queries if query.id in qrels]
    if not queries:
        raise SystemExit(
            f"no query of {arguments.folder}:{arguments.split} has all its relevant documents among {len(kept)}"
        )

    with (
        tempfile.TemporaryDirectory() as folder,
        SearchEngine.create(Path(folder) / "index", model=embedder, chunk_tokens=0) as engine,
    ):
        engine.add(documents[id] for id in sorted(kept))
        scores = {}
        for name, instruction in (("plain", ""), ("told", task.instruction)):
            instructed = [replace(query, instruction=instruction) for query in queries]
            judgements = Judgements(name, instructed, qrels, drop_self=task.drop_self)
            for report in evaluate(engine, judgements, modes=["dense", "hybrid"]):
                scores[f"{name}, {report.mode}"] = report.metrics["ndcg@10"]
    repeats = embedder.conventions.query_repeats
    print(json.dumps({"model": arguments.model, "query_repeats": repeats, "queries": len(queries), "ndcg@10": scores}))


if __name__ == "__main__":
    main()
