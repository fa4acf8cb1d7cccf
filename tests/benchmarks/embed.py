"""Speed of the built-in model on one thread, beside other ways to embed, and how far its vectors are from float32.

    python tests/benchmarks/embed.py --corpus scifact/ --queries scifact/queries.jsonl [--original FOLDER]
    python tests/benchmarks/embed.py --corpus scifact/ --memory
    python tests/benchmarks/embed.py --corpus scifact/ --decoder FOLDER [--exported FOLDER ...] [--judged scifact/]

The ways take turns on the same texts in one process and are timed by the CPU time of all its threads, so that a busy
machine slows all alike; the ratios, to sentence-transformers turn by turn, are what counts. `--original` is the model
that the exported one was made from; without it, its own weights in float32 stand for them. With `--memory`, the peak
resident size of fresh processes that index 10,000 and 100,000 short documents. With `--decoder`, a trained decoder with
EOS, in the layout of sentence-transformers: that library, transformers, and searchkit in float32, in bfloat16 and with
exports of the model, with the cosine of each to the first; with `--judged`, a BEIR folder, also the nDCG@10 of each of
searchkit's on 80 queries of its dev or train split among 300 documents.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for everybody

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from searchkit.metrics import score
from searchkit.models.batches import unit_rows
from searchkit.models.embedder import Embedder
from searchkit.models.location import find_model
from searchkit.models.onnx_runtime import load_onnxruntime
from searchkit.readers.corpus import read_corpus
from searchkit.records import Document, join_title
from searchkit.training.export import unpack
from searchkit.training.export.traced import trace
from searchkit.training.paper.sets import Collection, dev_collection

PEER = "sentence-transformers, float32"
ODD = [
    "a",
    "!",
    "7",
    "tea",
    "the the the the",
    "word " * 300,
    "0123456789 " * 30,
    "https://example.org/a?b=c#d",
    "茶" * 40,
]


class Session:
    """A traced graph on onnxruntime or OpenVINO, one thread, with tokens as an embedder makes them."""

    def __init__(self, graph: Path, embedder: Embedder, batches: Callable[[list[int]], Iterator[list[int]]]) -> None:
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(graph), options)
        self.run: Callable[[dict[str, np.ndarray]], Any] = lambda feeds: session.run(None, feeds)[0]
        self.embedder, self.batches = embedder, batches

    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit rows, padded batch by padded batch."""
        tokens = self.embedder.tokenize(texts)
        rows = np.empty((len(texts), self.embedder.dim), np.float32)
        for batch in self.batches([len(ids) for ids in tokens]):
            ids = np.zeros((len(batch), max(len(tokens[i]) for i in batch)), np.int64)
            mask = np.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(tokens[i])], mask[row, : len(tokens[i])] = tokens[i], 1
            rows[batch] = self.run({"input_ids": ids, "attention_mask": mask})
        return unit_rows(rows)


def openvino_session(graph: Path, embedder: Embedder, dtype: str) -> Session:
    """The same graph on OpenVINO, in batches of 512 tokens."""
    import openvino

    session = Session(graph, embedder, partial(by_length, budget=512))
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": dtype}
    model = openvino.Core().compile_model(str(graph), "CPU", options)
    session.run = lambda feeds: model(feeds)[0]
    return session


def by_length(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Positions of texts in batches of so many padded tokens, longest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    while order:
        size = max(1, budget // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def in_order(lengths: list[int], size: int) -> Iterator[list[int]]:
    """Positions of texts as they come, so many at a time."""
    yield from (list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size))


def ways(model: str, peer: str, folder: Path) -> tuple[dict[str, Callable[[list[str]], np.ndarray]], list[str]]:
    """What is compared, by name, and what cannot be, with the reason."""
    import onnx
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    ours, skipped = Embedder(model, threads=1), []
    unpack(ours.folder, folder / "unpacked")
    before = Embedder(folder / "unpacked", device="cpu", dtype="float32", conventions=ours.conventions)
    teacher = Embedder(peer, device="cpu", dtype="float32", threads=1)
    sentences = SentenceTransformer(str(find_model(peer)[0]), device="cpu")
    sentences.max_seq_length = teacher.max_length
    graphs = {"before.onnx": (before, "int8"), "peer.onnx": (teacher, "float32")}
    for name, (embedder, dtype) in graphs.items():
        graph = trace(
            Embedder(embedder.folder, device="cpu", dtype="float32").runtime.model, embedder.conventions.pooling, dtype
        )  # type: ignore[attr-defined]
        onnx.save(graph, str(folder / name))
    compared: dict[str, Callable[[list[str]], np.ndarray]] = {
        "searchkit, built-in": ours.encode_passages,
        "searchkit, built-in, as queries": ours.encode_queries,
        "built-in as version 0.1 exported it": Session(
            folder / "before.onnx", before, partial(by_length, budget=4096)
        ).encode,
        PEER: lambda texts: np.asarray(sentences.encode(texts, show_progress_bar=False)),
        "searchkit, MiniLM by torch, float32": teacher.encode_passages,
        "fastembed's way": Session(folder / "peer.onnx", teacher, partial(in_order, size=256)).encode,
    }
    if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        half = Embedder(peer, device="cpu", dtype="bfloat16", threads=1)
        compared["searchkit, MiniLM by torch, bfloat16"] = half.encode_passages
    else:
        skipped.append("bfloat16 by torch: this CPU has no native bfloat16")
    try:
        for dtype in ("f32", "bf16"):
            compared[f"OpenVINO, MiniLM, {dtype}"] = openvino_session(folder / "peer.onnx", teacher, dtype).encode
    except ImportError:
        skipped.append("OpenVINO: pip install openvino")
    return compared, skipped


def embedders_of_decoder(folder: Path, exported: list[Path]) -> dict[str, Embedder]:
    """searchkit's ways to run a decoder, all on the same weights."""
    found = {
        f"searchkit, torch, {dtype}": Embedder(folder, device="cpu", dtype=dtype, threads=1)
        for dtype in ("float32", "bfloat16")
    }
    for each in exported:
        model = Embedder(each, threads=1)
        found[f"searchkit, onnxruntime, {model.dtype}"] = model
    return found


def ways_of_decoder(folder: Path, embedders: dict[str, Embedder]) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """What is compared for a decoder."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    sentences = SentenceTransformer(str(folder), device="cpu")
    exact = embedders["searchkit, torch, float32"]
    compared: dict[str, Callable[[list[str]], np.ndarray]] = {
        PEER: lambda texts: np.asarray(sentences.encode(texts, show_progress_bar=False)),
        "transformers, float32, 32 at once": partial(by_transformers, exact),
    }
    return compared | {name: embedder.encode_passages for name, embedder in embedders.items()}


def by_transformers(embedder: Embedder, texts: list[str]) -> np.ndarray:
    """The last token's states, by transformers alone: padded batches of 32 in the order of the texts."""
    import torch

    runtime: Any = embedder.runtime
    tokens = embedder.tokenize(texts)
    rows = []
    with torch.inference_mode():
        for batch in in_order([len(ids) for ids in tokens], 32):
            longest = max(len(tokens[i]) for i in batch)
            ids = torch.tensor([tokens[i] + [0] * (longest - len(tokens[i])) for i in batch])
            mask = torch.tensor([[1] * len(tokens[i]) + [0] * (longest - len(tokens[i])) for i in batch])
            hidden = runtime.model(input_ids=ids, attention_mask=mask).last_hidden_state
            rows.append(hidden[torch.arange(len(batch)), mask.sum(1) - 1].numpy())
    return unit_rows(np.concatenate(rows))


def quality(embedder: Embedder, collection: Collection) -> float:
    """nDCG@10 of exact search."""
    rows = embedder.encode_passages([join_title(document.title, document.text) for document in collection.documents])
    queries = embedder.encode_queries([query.text for query in collection.queries], collection.instruction)
    ids = [document.id for document in collection.documents]
    run = {
        query.id: dict(zip(ids, scores, strict=True))
        for query, scores in zip(collection.queries, (queries @ rows.T).tolist(), strict=True)
    }
    return round(score(run, collection.qrels)[0]["ndcg@10"], 4)


def race_of_decoder(
    folder: Path, exported: list[Path], texts: list[str], rounds: int, judged: Path | None = None
) -> dict[str, Any]:
    """Speed of each way, the cosine of its vectors to sentence-transformers', and what a search with them finds."""
    embedders = embedders_of_decoder(folder, exported)
    compared = ways_of_decoder(folder, embedders)
    wanted = compared[PEER](texts)
    found = race(compared, texts, rounds)
    for name, encode in compared.items():
        cosines = (encode(texts) * wanted).sum(1)
        found[name] |= {"mean_cosine": round(float(cosines.mean()), 5), "least_cosine": round(float(cosines.min()), 5)}
    if judged and (collection := dev_collection(judged, 80, 300)):
        for name, embedder in embedders.items():
            found[name]["ndcg@10"] = quality(embedder, collection)
    return found


def race(compared: dict[str, Callable[[list[str]], np.ndarray]], texts: list[str], rounds: int) -> dict[str, Any]:
    """Texts a second of each way, and the ratio to sentence-transformers, medians of turns."""
    for encode in compared.values():
        encode(texts[:8])
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(rounds):
        for name, encode in compared.items():
            began = time.process_time()
            encode(texts)
            seconds[name].append(time.process_time() - began)
    return {
        name: {
            "per_second": round(len(texts) / median(taken), 1),
            "ratio": round(median(p / t for p, t in zip(seconds[PEER], taken, strict=True)), 2),
        }
        for name, taken in seconds.items()
    }


def agreement(model: str, original: str | None, texts: list[str]) -> dict[str, Any]:
    """How far the exported model's vectors are from float32, and a text's alone from its own in a crowd."""
    ours = Embedder(model)
    with tempfile.TemporaryDirectory() as folder:
        if original is None:
            unpack(ours.folder, Path(folder) / "unpacked")
        exact = Embedder(original or Path(folder) / "unpacked", device="cpu", dtype="float32")
        wanted = exact.encode_passages(texts)
    crowd = ours.encode_passages(texts)
    alone = np.concatenate([ours.encode_passages([text]) for text in texts])
    cosines = (crowd * wanted).sum(1)
    below = [(round(float(cosines[i]), 5), texts[i][:60]) for i in np.argsort(cosines) if cosines[i] < 0.999]
    return {
        "texts": len(texts),
        "mean_cosine": float(cosines.mean()),
        "least_cosine": float(cosines.min()),
        "below_.999": below,
        "alone_against_crowd": float(np.abs(alone - crowd).max()),
    }


def peak_memory(corpus: Path, model: str, count: int) -> float:
    """Peak MiB of a fresh process that indexes `count` documents."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--corpus", str(corpus), "--model", model, "--child", str(count), folder]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(corpus: Path, model: str, count: int, folder: Path) -> None:
    """Index `count` short documents cut from the corpus, each with an id of its own, and print the peak in MiB."""
    from searchkit.engine import SearchEngine

    def many() -> Iterator[Document]:
        texts = (document.text[:60] for document in cycle_corpus(corpus))
        for number, text in enumerate(islice(texts, count)):
            yield Document(str(number), f"{text} {number}")

    with SearchEngine.create(folder / "index", model=Embedder(model, device="cpu")) as engine:
        engine.add(many())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def cycle_corpus(corpus: Path) -> Iterator[Document]:
    """The corpus again and again."""
    for _ in cycle([0]):
        yield from read_corpus(corpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="any corpus that searchkit index reads")
    parser.add_argument("--queries", type=Path, help="JSON lines with a text each; without them, titles")
    parser.add_argument("--model", default="builtin", help="an exported model")
    parser.add_argument("--peer", default="minilm", help="a model for the other ways")
    parser.add_argument("--original", help="what the exported model was made from")
    parser.add_argument("--texts", type=int, default=100, help="documents, and queries, to race on")
    parser.add_argument("--checked", type=int, default=2000, help="texts to compare vectors of")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure memory for 10k and 100k documents instead")
    parser.add_argument("--decoder", type=Path, help="folder of a trained decoder to race on instead")
    parser.add_argument("--exported", type=Path, action="append", default=[], help="what it was exported to")
    parser.add_argument("--judged", type=Path, help="BEIR folder to judge the decoder's vectors by")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        count, folder = arguments.child
        child(arguments.corpus, arguments.model, int(count), Path(folder))
        return
    if arguments.memory:
        peaks = {count: peak_memory(arguments.corpus, arguments.model, count) for count in (10_000, 100_000)}
        print(json.dumps({"peak_mib": peaks, "ratio": round(peaks[100_000] / peaks[10_000], 3)}))
        return
    documents = list(islice(read_corpus(arguments.corpus), arguments.checked))
    texts = [join_title(document.title, document.text) for document in documents]
    if arguments.decoder:
        found = race_of_decoder(
            arguments.decoder, arguments.exported, texts[: arguments.texts], arguments.rounds, arguments.judged
        )
        print(json.dumps(found, indent=1))
        return
    queries = [document.title or document.text[:60] for document in documents]
    if arguments.queries:
        queries = [json.loads(line)["text"] for line in arguments.queries.open(encoding="utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        compared, skipped = ways(arguments.model, arguments.peer, Path(folder))
        results = {
            "documents": race(compared, texts[: arguments.texts], arguments.rounds),
            "queries": race(compared, queries[: 4 * arguments.texts], arguments.rounds),
            "skipped": skipped,
        }
    short = [*ODD, *queries[: arguments.checked // 2]]
    checked = [*short, *texts[: arguments.checked - len(short)]]
    print(json.dumps({**results, "float32": agreement(arguments.model, arguments.original, checked)}, indent=1))


if __name__ == "__main__":
    main()
