"""FAISS on GPUs and on the CPU: are the results equal, and how many queries per second does each answer?

    python tests/benchmarks/gpu.py [--vectors 1000000] [--dim 384] [--recipes flat fp16 ...] [--device cuda]
    python tests/benchmarks/gpu.py --tiny     # the same code without a GPU, with copies on the CPU in its place

Every recipe that FAISS searches on a GPU is built once, copied, and searched for the same queries on both sides.
Build times are of training and encoding. Without a GPU, or if FAISS sees none, the script says so and does nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))

from stored import InMemory

from searchkit.indexer.vectors import faiss_copies as copies
from searchkit.indexer.vectors import faiss_gpu as gpu
from searchkit.indexer.vectors.devices import device_numbers
from searchkit.indexer.vectors.faiss_index import FaissBackend
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import RECIPES, Plan, default_tuning, plan
from searchkit.indexer.vectors.search import search

BATCHES = (1, 64, 1024)


def around_centres(count: int, dim: int, seed: int) -> np.ndarray:
    """(count, dim) float32 unit rows; the centres are the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((1000, dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(len(centres), size=count)] + 0.7 * rng.standard_normal((count, dim), dtype=np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def seconds(work: Callable[[], Any]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def build(chosen: Plan, vectors: np.ndarray, devices: list[int]) -> tuple[float, Any]:
    """(seconds, index) of training and encoding on the first device, or on the CPU if there is none."""
    backend = gpu.GpuBackend(devices) if devices else FaissBackend()
    began = time.perf_counter()
    template = backend.train(chosen, vectors[: max(chosen.wanted, chosen.needed)])
    index = backend.build(template, [vectors], len(vectors))
    return time.perf_counter() - began, index


def compare(
    recipe: str, vectors: np.ndarray, queries: np.ndarray, k: int, devices: list[int], rounds: int, tiny: bool = False
) -> Any:
    """One recipe on both sides; with `tiny`, a copy on the CPU stands in for the one on a GPU."""
    chosen = plan(recipe, vectors.shape[1], len(vectors))
    if reason := gpu.unsupported(chosen):
        return {"recipe": chosen.spelling, "left out": reason}
    on_cpu, index = build(chosen, vectors, [])
    found: dict[str, Any] = {"recipe": chosen.spelling}
    if not tiny and (chosen.lists or chosen.code or chosen.recipe == "cagra"):
        on_gpu, _ = build(chosen, vectors, devices)
        found["build: CPU over GPU"] = round(on_cpu / on_gpu, 2)
    copied = {"gpu": gpu.GpuIndex(chosen, index.raw, devices[:1])}
    if tiny:
        copied["gpu"]._copy, copied["gpu"]._tried = faiss_module().clone_index(index.raw), True
    if len(devices) > 1:
        copied[f"{len(devices)} shares"] = gpu.GpuIndex(chosen, index.raw, devices)
        copied[f"{len(devices)} replicas"] = gpu.GpuIndex(chosen, index.raw, devices, replicate=True)
    here = InMemory(index)
    tuning = default_tuning(chosen, keep_vectors=False)

    def ask(segment: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return search([segment], rows, k, tuning=tuning)

    expected, expected_scores = ask(here, queries)
    for name, copy in copied.items():
        if copy.copy is None:
            found[name] = "stayed on the CPU, see the log"
            continue
        there = InMemory(copy)
        rows, scores = ask(there, queries)
        same = np.mean([len(set(a) & set(b)) / k for a, b in zip(rows.tolist(), expected.tolist(), strict=True)])
        line: dict[str, Any] = {
            "rows in common": round(float(same), 4),
            "largest difference of scores": float(np.abs(scores - expected_scores).max()),
        }
        for batch in BATCHES:
            taken: dict[str, list[float]] = {"cpu": [], "gpu": []}
            for _ in range(rounds):
                for side, segment in (("cpu", here), ("gpu", there)):
                    taken[side].append(seconds(lambda segment=segment, batch=batch: ask(segment, queries[:batch])))
            rates = {side: round(batch / median(each)) for side, each in taken.items()}
            line[f"queries a second, {batch} at once"] = rates
        found[name] = line
    return found


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int, device: int, chunk: int) -> dict[str, Any]:
    """Exact search over half-precision vectors, a chunk on the GPU at a time, against the CPU."""
    faiss = faiss_module()
    half = vectors.astype(np.float16)
    knn = copies.gpu_knn(device)
    copies.exact(half[:1000], queries, k, knn)  # warms up
    taken = seconds(lambda: copies.exact(half, queries, k, knn, chunk))
    _, rows = copies.exact(half, queries, k, knn, chunk)
    _, expected = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    same = np.mean([len(set(a) & set(b)) / k for a, b in zip(rows.tolist(), expected.tolist(), strict=True)])
    return {"rows in common": round(float(same), 4), "queries a second": round(len(queries) / taken)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--recipes", nargs="+", default=[name for name in RECIPES if RECIPES[name].gpu])
    parser.add_argument("--device", default="cuda", help="cuda is every GPU; cuda:1 or cuda:0,1 are those")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="3,000 vectors, no GPU: is this script sound?")
    arguments = parser.parse_args()
    if arguments.tiny:
        vectors, queries = around_centres(3000, 32, 1), around_centres(64, 32, 2)
        for recipe in ("flat", "int8", "ivf-int8"):
            print(json.dumps(compare(recipe, vectors, queries, arguments.k, [0], 1, tiny=True)), flush=True)
        return
    devices = device_numbers(arguments.device)
    if not devices:
        print("FAISS sees no GPU here: nothing is measured", file=sys.stderr)
        return
    vectors = around_centres(arguments.vectors, arguments.dim, 1)
    queries = around_centres(max(BATCHES), arguments.dim, 2)
    for recipe in arguments.recipes:  # a line each, so that an interrupted run keeps its results
        found = compare(recipe, vectors, queries, arguments.k, devices, arguments.rounds)
        print(json.dumps(found), flush=True)
    print(json.dumps({"exact from float16": brute_force(vectors, queries, arguments.k, devices[0], 1 << 18)}))


if __name__ == "__main__":
    main()
