"""What 100 million and a billion passages take: bytes, cores, hours and costs, from figures measured up to ten million.

    python tests/benchmarks/arithmetic.py [--documents 100_000_000 1_000_000_000] [--dims 384 1024 4096] [--hours 24]

Formulae are those of `docs/scale.md`, which holds what this prints. Measured figures come from `scale.py`; prices and
GPUs are assumptions, to be replaced by one's own (see --help).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

GB = 1e9

# Measured by scale.py at 10,000,000 passages of 18 words with five metadata keys, CPU seconds of one core.
DATABASE, LEXICAL, COLUMNS = 486, 47, 13
"""Bytes a passage."""
STORING = 170e-6
"""Seconds a passage: checking, SQLite, the lexical index, columns, writing and merging segments."""
FLOPS = 64e9
"""Floating point operations a second of one core, as FAISS compares vectors with centroids."""
CODE = 0.8e-9
"""Seconds to look up a byte of a code."""
EXACT = 1e-9
"""Seconds to read and multiply one dimension of a half-precision vector that is in memory."""
FUSING = 2.5e-3
"""Seconds of a hybrid search that depend on nothing here: fusing, fetching the hits."""
BM25, BM25_GROWTH = 2.8e-3, 0.5
"""Seconds of a lexical search of a million passages, and the power of their number by which it grows."""

ITERATIONS, PER_LIST, RERANK, DEPTH = 10, 39, 10, 100
"""Of k-means; vectors a list that it is trained on; candidates for each one that is returned; of hybrid search."""


@dataclass(frozen=True)
class Index:
    """An index of ivf-pq with an eighth of a byte for each dimension, re-ranked by half-precision vectors.

    Args:
        passages: How many.
        dim: Dimensions.
        parts: How many machines it is cut into for searching.
    """

    passages: float
    dim: int
    parts: int = 1

    @property
    def each(self) -> float:
        """Passages of a part."""
        return self.passages / self.parts

    @property
    def lists(self) -> int:
        """IVF lists of a part."""
        return int(4 * math.sqrt(self.each))

    @property
    def code(self) -> float:
        """Bytes of a passage that a search goes through: its code, its number, its document."""
        return self.dim / 8 + 8 + 8

    @property
    def disk(self) -> float:
        """Bytes of a passage."""
        return self.code + 2 * self.dim + DATABASE + LEXICAL + COLUMNS

    @property
    def memory(self) -> float:
        """Bytes of a part that have to stay in memory: codes, centroids, lexical index and columns."""
        return self.each * (self.code + LEXICAL + COLUMNS) + 4 * self.lists * self.dim

    @property
    def training(self) -> float:
        """Core seconds of k-means, once for all parts."""
        return PER_LIST * self.lists * self.lists * self.dim * 2 * ITERATIONS / FLOPS

    @property
    def indexing(self) -> float:
        """Core seconds of a passage, besides embedding: storing it, finding its list, encoding it."""
        return STORING + (self.lists + 256) * self.dim * 2 / FLOPS + 3e-9 * self.dim

    @property
    def hybrid(self) -> float:
        """Core seconds of a hybrid search of one part."""
        probes = math.sqrt(self.lists)
        scanned = probes * self.each / self.lists * self.dim / 8 * CODE
        lexical = BM25 * (self.each / 1e6) ** BM25_GROWTH
        exact = max(RERANK * DEPTH, math.sqrt(self.each / 10)) * self.dim * EXACT
        return FUSING + lexical + self.lists * self.dim * 2 / FLOPS + scanned + exact


MODELS = {384: ("the built-in model", 0), 1024: ("a model of .6 billion parameters", 0.6e9), 4096: ("one of 7", 7e9)}
"""What embeds at a width, and its parameters where it needs a GPU."""
BUILTIN = 70.0
"""Passages of 256 tokens a second and core: 140 on two cores, measured by `searchkit index` on SciFact."""


def seconds_of_embedding(passages: float, dim: int, tokens: int, flops: float) -> tuple[float, str]:
    """(seconds on one core or one GPU, which of them)."""
    parameters = MODELS[dim][1]
    if not parameters:
        return passages * tokens / 256 / BUILTIN, "core"
    return passages * tokens * 2 * parameters / flops, "GPU"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """To two digits."""
    if value <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def report(arguments: argparse.Namespace) -> str:
    sizes, building, serving = [], [], []
    for passages in arguments.documents:
        for dim in arguments.dims:
            parts = max(1, math.ceil(Index(passages, dim).memory / (arguments.memory * GB)))
            index = Index(passages, dim, parts)
            name = [f"{passages / 1e6:,.0f}M", str(dim)]
            sizes.append(
                [
                    *name,
                    number(passages * dim * 4 / GB),
                    number(passages * index.code / GB),
                    number(passages * 2 * dim / GB),
                    number(passages * index.disk / GB),
                    number(index.memory * parts / GB),
                    str(parts),
                ]
            )
            seconds, unit = seconds_of_embedding(passages, dim, arguments.tokens, arguments.gpu_tflops * 1e12)
            hours, indexing = seconds / 3600, (passages * index.indexing + index.training) / 3600
            price = arguments.core_hour if unit == "core" else arguments.gpu_hour
            building.append(
                [
                    *name,
                    f"{number(hours)} {unit} hours",
                    f"{number(hours / arguments.hours)} {unit}s",
                    number(index.training / 3600),
                    number(indexing),
                    number(indexing / arguments.hours),
                    number(hours * price + indexing * arguments.core_hour),
                ]
            )
            month = 730 * parts * arguments.machine_hour + passages * index.disk / GB * arguments.disk_month
            raw = passages * dim * 4 / GB
            serving.append(
                [
                    *name,
                    str(index.lists),
                    number(1e3 * index.hybrid),
                    number(1 / index.hybrid),
                    str(parts),
                    number(month),
                    number(passages * dim * 1.1 / GB),
                    number(raw * 1.1),
                ]
            )
    hours = f"for {arguments.hours:g} hours"
    return "\n\n".join(
        [
            table(
                [
                    "passages",
                    "dim",
                    "float32, GB",
                    "codes, GB",
                    "half precision, GB",
                    "disk, GB",
                    "memory, GB",
                    "parts",
                ],
                sizes,
            ),
            table(
                [
                    "passages",
                    "dim",
                    "embedding",
                    hours,
                    "training, core hours",
                    "indexing, core hours",
                    f"cores {hours}",
                    "cost, $",
                ],
                building,
            ),
            table(
                [
                    "passages",
                    "dim",
                    "lists",
                    "hybrid, core ms",
                    "searches a second and core",
                    "machines",
                    "$ a month",
                    "Milvus IVF_SQ8, GB",
                    "Milvus HNSW, GB",
                ],
                serving,
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", nargs="+", type=float, default=[1e8, 1e9], help="passages")
    parser.add_argument("--dims", nargs="+", type=int, choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a passage [default: 256]")
    parser.add_argument("--hours", type=float, default=24, help="in which it is to be built [default: 24]")
    parser.add_argument("--memory", type=float, default=200, help="GB of a machine that searches [default: 200]")
    parser.add_argument("--gpu-tflops", type=float, default=300, help="that a GPU reaches in bfloat16 [default: 300]")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core hour [default: .04 $]")
    parser.add_argument("--gpu-hour", type=float, default=3, help="price of a GPU hour [default: 3 $]")
    parser.add_argument("--machine-hour", type=float, default=2, help="of a machine that searches [default: 2 $]")
    parser.add_argument("--disk-month", type=float, default=0.08, help="of a GB of fast disk a month [default: .08 $]")
    print(report(parser.parse_args()))


if __name__ == "__main__":
    main()
