"""What a linear map fitted to an index's pairs gives, instead of `searchkit adapt`, which trains all weights.

    python tests/benchmarks/adapt_head.py INDEX beir-folder/ [--split test] (--pairs pairs.jsonl | --train-split train)

INDEX holds the folder's documents, embedded by the built-in model in one passage each; their vectors are frozen. The
map (384 by 384, after pooling) learns by InfoNCE which document belongs to each query, among all documents, held near
the identity. Vectors before and after it are measured on the split, dense and hybrid, with paired tests.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
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
from searchkit.records import Document, Judgements
from searchkit.significance import compare_paired

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


def stored(index: Path, documents: Sequence[Document]) -> np.ndarray:
    """(documents, dim) unit rows, as the index holds them."""
    with SearchEngine.open(index) as engine:
        table = engine.store.documents
        rows = {}
        for position in table.positions_of([document.id for document in documents]):
            first, document = table.document(position)
            if len(document.spans) != 1:
                raise SystemExit(f"{document.id} has {len(document.spans)} passages in {index}; expected one")
            rows[document.id] = first
        return engine.vectors_of(np.array([rows[document.id] for document in documents]))


def measure(
    documents: list[Document], rows: np.ndarray, judgements: Judgements, vectors: np.ndarray
) -> list[Evaluation]:
    """Dense and hybrid search with given vectors of documents and queries."""
    queries = [replace(query, vector=vector) for query, vector in zip(judgements.queries, vectors, strict=True)]
    with (
        tempfile.TemporaryDirectory() as folder,
        SearchEngine.create(Path(folder) / "index", dim=rows.shape[1]) as engine,
    ):
        engine.add(replace(document, vector=row) for document, row in zip(documents, rows, strict=True))
        return evaluate(engine, replace(judgements, queries=queries), modes=["dense", "hybrid"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=Path, help="JSON lines of query and positive_id")
    parser.add_argument("--train-split", help="or a split whose relevant documents are the pairs")
    parser.add_argument("--unseen", action="store_true", help="leave out pairs of documents that the split asks for")
    arguments = parser.parse_args()
    documents = [document for document in read_corpus(arguments.folder) if document.text.strip()]
    places = {document.id: place for place, document in enumerate(documents)}
    if arguments.pairs:
        rows = [json.loads(line) for line in arguments.pairs.read_text(encoding="utf-8").splitlines()]
        pairs = [(row["query"], row["positive_id"]) for row in rows]
    else:
        queries, qrels = read_beir_split(arguments.folder, arguments.train_split)
        pairs = [(query.text, id) for query in queries for id, gain in qrels[query.id].items() if gain > 0]
    judged, qrels = read_beir_split(arguments.folder, arguments.split)
    known = {query.text for query in judged}
    pairs = [(query, id) for query, id in pairs if id in places and query not in known]
    if arguments.unseen:
        wanted = {id for judged_documents in qrels.values() for id, gain in judged_documents.items() if gain > 0}
        pairs = [(query, id) for query, id in pairs if id not in wanted]
    judgements = Judgements(arguments.split, judged, qrels)

    model = Embedder()
    rows = torch.from_numpy(stored(arguments.index, documents))
    asked, judging = (
        torch.from_numpy(model.encode_queries(texts, ""))
        for texts in ([query for query, _ in pairs], [query.text for query in judged])
    )
    began = time.monotonic()
    matrix = fit(asked, rows, torch.tensor([places[id] for _, id in pairs]))
    print(f"{len(pairs)} pairs, fitted in {time.monotonic() - began:.0f} s")
    before, after = (
        measure(documents, rows.numpy(), judgements, judging.numpy())
        for rows, judging in (
            (rows, judging),
            (F.normalize(rows @ matrix, dim=1), F.normalize(judging @ matrix, dim=1)),
        )
    )
    print("| nDCG@10 | before | after | p |\n|---|---|---|---|")
    for old, new in zip(before, after, strict=True):
        ids = sorted(old.per_query["ndcg@10"])
        values = [np.array([each.per_query["ndcg@10"][id] for id in ids]) for each in (old, new)]
        test = compare_paired(*values)
        print(f"| {old.mode} | {values[0].mean():.4f} | {values[1].mean():.4f} | {test.p_randomisation:.4f} |")


if __name__ == "__main__":
    main()
