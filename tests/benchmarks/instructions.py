"""Does the instruction matter? Scores with the right instruction, without one, and with a wrong one.

    python tests/benchmarks/instructions.py [--model FOLDER] [--split test] [--mode dense]
    python tests/benchmarks/instructions.py --set kinds
    python tests/benchmarks/instructions.py --general nfcorpus/:dev [--index nfcorpus.index]

Runs on `corpora/intents`. The wrong instruction of a query is that of another query with the same text if there is one,
else that of the next kind of task.

With `--set kinds`, on the development data in `corpora/kinds`: 24 topics, and 42 instructions in words that were never
trained on, which are short, long, excluding ("no counterarguments please") or unusual. The wrong instruction is then
another of the same style, which asks for other passages.

With `--general`, on a BEIR folder: without an instruction, and with each of those in `corpora/kinds` for development
that only say to search, in words that were never trained on. They should change nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import DEFAULT_MODEL
from searchkit.readers.corpus import corpus_folder, read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.readers.kinds import kinds_rows, worded_instructions
from searchkit.records import Document, Judgements, Qrels, Query
from searchkit.training.builtin.data import general as general_instructions

KINDS = ("support", "refute", "define", "duplicate", "answer")
"""Passages of a topic."""


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


def kinds_dev() -> tuple[list[Document], list[Query], Qrels, dict[str, str], list[Query]]:
    """The development data of `corpora/kinds`.

    Returns:
        Passages, queries with their instruction, judgements, {query id: style of its instruction}, and the queries with
        a wrong instruction.
    """
    instructions = [row for row in worded_instructions("dev") if row["right"]]
    others = []  # of each instruction, the next of its style that asks for none of the same passages
    for place, row in enumerate(instructions):
        following = instructions[place + 1 :] + instructions[:place]
        others.append(next(o for o in following if o["style"] == row["style"] and not {*o["right"]} & {*row["right"]}))
    documents, queries, swapped, styles = [], [], [], {}
    qrels: dict[str, Mapping[str, int]] = {}
    for number, topic in enumerate(kinds_rows("dev")):
        documents += [Document(f"{topic['topic']}-{kind}", topic[kind]) for kind in KINDS]
        for place, row in enumerate(instructions):
            text = topic[row["query"][(number + place) % len(row["query"])]]
            query = Query(f"{topic['topic']}-{place}", text, row["instruction"])
            queries.append(query)
            swapped.append(replace(query, instruction=others[place]["instruction"]))
            styles[query.id] = row["style"]
            qrels[query.id] = {f"{topic['topic']}-{kind}": 1 for kind in row["right"]}
    return documents, queries, qrels, styles, swapped


def general(name: str, index: Path | None, model: str, mode: str) -> dict[str, float]:
    """{instruction: nDCG@10} on FOLDER:SPLIT, "" being none."""
    folder, _, split = name.partition(":")
    queries, qrels = read_beir_split(folder, split)
    scores = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = index or Path(temporary) / "index"
        with SearchEngine.create(place, model=model, chunk_tokens=0, exist_ok=True) as engine:
            engine.add(read_corpus(folder))
            for instruction in ("", *general_instructions(worded_instructions("dev"))):
                (report,) = evaluate(engine, Judgements(name, queries, qrels, instruction), modes=[mode])
                scores[instruction] = report.metrics["ndcg@10"]
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--set", default="intents", choices=["intents", "kinds"])
    parser.add_argument("--split", default="test", choices=["dev", "test"], help="of intents; kinds is dev")
    parser.add_argument("--mode", default="dense", choices=["dense", "hybrid"])
    parser.add_argument(
        "--general", metavar="FOLDER:SPLIT", help="a BEIR folder, for instructions that only say search"
    )
    parser.add_argument("--index", type=Path, help="keep its index here")
    arguments = parser.parse_args()
    if arguments.general:
        scores = general(arguments.general, arguments.index, arguments.model, arguments.mode)
        told = [score for instruction, score in scores.items() if instruction]
        row = {"model": arguments.model, "set": arguments.general, "mode": arguments.mode, "ndcg@10": scores}
        print(json.dumps(row | {"none": scores[""], "mean": sum(told) / len(told), "lowest": min(told)}, indent=1))
        return
    styles: dict[str, str] = {}
    if arguments.set == "kinds":
        arguments.split = "dev"
        documents, queries, qrels, styles, swapped = kinds_dev()
    else:
        corpus = corpus_folder("intents")
        documents = list(read_corpus(corpus))
        queries, qrels = read_beir_split(corpus, arguments.split)
        swapped = wrong(queries)
    variants = {
        "right": queries,
        "none": [replace(query, instruction="") for query in queries],
        "wrong": swapped,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        SearchEngine.create(Path(folder) / "index", model=arguments.model, chunk_tokens=0) as engine,
    ):
        engine.add(documents)
        reports = {
            name: evaluate(engine, Judgements(name, asked, qrels), modes=[arguments.mode])[0]
            for name, asked in variants.items()
        }
    scores = {name: report.metrics["ndcg@10"] for name, report in reports.items()}
    row = {"model": arguments.model, "set": arguments.set, "mode": arguments.mode, "split": arguments.split}
    print(json.dumps(row | {"ndcg@10": scores}))
    for style in dict.fromkeys(styles.values()):
        by_query = {name: report.per_query["ndcg@10"] for name, report in reports.items()}
        means = {
            name: sum(values[id] for id in values if styles[id] == style) / sum(styles[id] == style for id in values)
            for name, values in by_query.items()
        }
        print(json.dumps({"style": style, "ndcg@10": means}))


if __name__ == "__main__":
    main()
