"""Do mteb's evaluator and `searchkit evaluate` agree? Prints a Markdown table.

    python tests/benchmarks/mteb_agreement.py scifact/ nfcorpus/ cranfield/ [--model builtin] [--indexes FOLDER]

Each set is a BEIR folder, indexed with whole documents and measured by `searchkit evaluate`. Then mteb measures it
through both protocols: the index through SearchProtocol, and the model's vectors through EncoderProtocol, with mteb's
own search over every row of the corpus. Its metrics are read before it rounds them to five digits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import evaluate
from searchkit.evaluation.mteb_adapter import MtebEncoder, MtebSearch, index_name
from searchkit.evaluation.mteb_tasks import beir_task
from searchkit.metrics import drop_own
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions
from searchkit.readers.judgements import read_judgements


@dataclass(frozen=True)
class Row:
    """A set, searched in one mode, measured twice."""

    set: str
    protocol: str
    mode: str
    queries: int
    ours: dict[str, float]
    mteb: dict[str, float]

    @property
    def apart(self) -> float:
        """The largest difference of any metric."""
        return max(abs(self.ours[name] - self.mteb[name]) for name in self.ours)


def compared(folder: Path, embedder: Embedder, indexes: Path) -> Iterator[Row]:
    """A row for each mode through SearchProtocol, then one through EncoderProtocol."""
    from mteb.models import SearchEncoderWrapper

    task = beir_task(folder)
    task.load_data()
    (split,) = task.eval_splits
    data = task.dataset["default"][split]
    where = {"task_metadata": task.metadata, "hf_split": split, "hf_subset": "default"}
    arguments = {**where, "encode_kwargs": {"batch_size": 32, "show_progress_bar": False}, "num_proc": None}
    judgements = read_judgements(folder, split=split).for_model(embedder.conventions.default_instruction)
    ours = {}
    for mode in MODES:
        model = MtebSearch(embedder, indexes=indexes, options=SearchOptions(mode=mode))
        model.index(data["corpus"], **arguments)
        run = model.search(data["queries"], top_k=1000, **arguments)
        index = indexes / index_name(task.metadata.name, "default", split)
        with SearchEngine.open(index, model=embedder) as engine:
            (evaluation,) = evaluate(engine, judgements, modes=[mode])
        ours[mode] = evaluation.metrics
        yield Row(task.metadata.name, "search", mode, len(judgements.qrels), ours[mode], judged(task, data, run))
    wrapped = SearchEncoderWrapper(MtebEncoder(embedder))
    wrapped.index(data["corpus"], **arguments)
    run = wrapped.search(data["queries"], top_k=1000, **arguments)
    yield Row(task.metadata.name, "encoder", "dense", len(judgements.qrels), ours["dense"], judged(task, data, run))


def judged(task: Any, data: Any, run: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means of mteb's metrics over the queries that it judges, not rounded."""
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    if task.ignore_identical_ids:
        run = drop_own(run)
    results = calculate_retrieval_scores(run, data["relevant_docs"], [10, 100])
    keys = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}
    scores = results.all_scores.values()
    means = {name: sum(values[key] for values in scores) / len(scores) for name, key in keys.items()}
    return {**means, "mrr@10": results.mrr["MRR@10"]}


def table(rows: list[Row]) -> str:
    """nDCG@10 by either, and the largest difference of any of the four metrics."""
    lines = ["| | mteb's protocol | mode | nDCG@10, searchkit | by mteb | greatest difference |", "|" + "---|" * 6]
    for row in rows:
        figures = f"{row.ours['ndcg@10']:.7f} | {row.mteb['ndcg@10']:.7f} | {row.apart:.1e}"
        lines.append(f"| {row.set} ({row.queries} queries) | {row.protocol} | {row.mode} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--indexes", type=Path, help="keep the indexes here, each as NAME-SPLIT.index")
    parser.add_argument("--report", type=Path, help="file for all figures in JSON")
    arguments = parser.parse_args()
    embedder = Embedder(arguments.model, threads=arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for folder in arguments.sets:
            for row in compared(folder, embedder, arguments.indexes or Path(temporary)):
                print(f"{row.set}: {row.protocol}, {row.mode}: {row.apart:.1e} apart", file=sys.stderr, flush=True)
                rows.append(row)
    print(table(rows))
    if arguments.report:
        arguments.report.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
