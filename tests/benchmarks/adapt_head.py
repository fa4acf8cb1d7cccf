"""What a linear map fitted to an index's pairs gives, instead of `searchkit adapt`, which trains all weights.

    python tests/benchmarks/adapt_head.py beir-folder/ [--split test] (--pairs pairs.jsonl | --train-split train)

Documents are embedded whole by the built-in model and frozen. The map (384 by 384, after pooling) learns by InfoNCE
which document belongs to each query, among all documents, held near the identity. It becomes a second Dense module of
the built-in model; both models are measured on the split, dense and hybrid, with paired tests, and on
`corpora/intents`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import Evaluation, evaluate
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import Judgements, join_title
from searchkit.significance import compare_paired
from searchkit.training.adaptation.report import out_of_domain
from searchkit.training.builtin.head import write_head
from searchkit.training.export import unpack
from searchkit.training.export.dense import replace_dense

STEPS, BATCH, RATE, TEMPERATURE, STAY = 200, 256, 1e-3, 0.03, 0.1


def fit(queries: Tensor, documents: Tensor, right: Tensor) -> Tensor:
    """The map, (dim, dim), from unit rows and the document of each query."""
    draw = torch.Generator().manual_seed(0)
    start = torch.eye(documents.shape[1])
    matrix = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([matrix])
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        some = torch.randperm(len(queries), generator=draw)[:BATCH]
        scores = F.normalize(queries[some] @ matrix, dim=1) @ F.normalize(documents @ matrix, dim=1).T
        loss = F.cross_entropy(scores / TEMPERATURE, right[some]) + STAY * ((matrix - start) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return matrix.detach()


def measure(model: Embedder, folder: Path, judgements: Judgements, index: Path) -> tuple[list[Evaluation], float]:
    with SearchEngine.create(index, model=model, chunk_tokens=0) as engine:
        engine.add(read_corpus(folder))
        return evaluate(engine, judgements, modes=["dense", "hybrid"]), out_of_domain(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=Path, help="JSON lines of query and positive_id")
    parser.add_argument("--train-split", help="or a split whose relevant documents are the pairs")
    arguments = parser.parse_args()
    documents = {document.id: document for document in read_corpus(arguments.folder)}
    places = {id: place for place, id in enumerate(documents)}
    if arguments.pairs:
        rows = [json.loads(line) for line in arguments.pairs.read_text(encoding="utf-8").splitlines()]
        pairs = [(row["query"], row["positive_id"]) for row in rows]
    else:
        queries, qrels = read_beir_split(arguments.folder, arguments.train_split)
        pairs = [(query.text, id) for query in queries for id, gain in qrels[query.id].items() if gain > 0]
    judged, qrels = read_beir_split(arguments.folder, arguments.split)
    known = {query.text for query in judged}
    pairs = [(query, id) for query, id in pairs if id in places and query not in known]
    judgements = Judgements(arguments.split, judged, qrels)

    model = Embedder()
    vectors = torch.from_numpy(model.encode_passages([join_title(d.title, d.text) for d in documents.values()]))
    asked = torch.from_numpy(model.encode_queries([query for query, _ in pairs], ""))
    began = time.monotonic()
    matrix = fit(asked, vectors, torch.tensor([places[id] for _, id in pairs]))
    seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory() as work:
        unpack(model.folder, Path(work) / "unpacked")
        write_head(matrix, Path(work) / "head")
        dense = [*sorted((Path(work) / "unpacked").glob("*_Dense")), Path(work) / "head"]
        replace_dense(model.folder, Path(work) / "model", dense)
        before, elsewhere = measure(model, arguments.folder, judgements, Path(work) / "before.index")
        after, elsewhere_after = measure(
            Embedder(Path(work) / "model"), arguments.folder, judgements, Path(work) / "after.index"
        )
    print(f"{len(pairs)} pairs, fitted in {seconds:.0f} s")
    print("| nDCG@10 | before | after | p |\n|---|---|---|---|")
    for old, new in zip(before, after, strict=True):
        ids = sorted(old.per_query["ndcg@10"])
        values = [np.array([each.per_query["ndcg@10"][id] for id in ids]) for each in (old, new)]
        test = compare_paired(*values)
        print(f"| {old.mode} | {values[0].mean():.4f} | {values[1].mean():.4f} | {test.p_randomisation:.4f} |")
    print(f"| corpora/intents, instructed | {elsewhere:.4f} | {elsewhere_after:.4f} | |")


if __name__ == "__main__":
    main()
