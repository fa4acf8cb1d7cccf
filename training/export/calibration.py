"""What the inputs of a model's linear layers look like, on texts that come with searchkit and judge nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from searchkit.models.embedder import Embedder
from searchkit.models.onnx_runtime import load_onnxruntime
from searchkit.readers.kinds import kinds_rows
from searchkit.training.export.graph import Graph
from searchkit.training.export.rounding import Inputs

_TOKENS = 32768
_AT_ONCE = 512  # tokens that go through the model together


def observe(graph: Graph, embedder: Embedder) -> dict[tuple[str, ...], Inputs]:
    """Run a float32 graph and keep what its linear layers read, by their names.

    Args:
        graph: Written in full.
        embedder: Makes the tokens, of passages and of queries.
    """
    import onnx

    onnxruntime = load_onnxruntime()
    tensors = [item.tensor for item in graph.linear_inputs.values()]
    observed: dict[tuple[str, ...], Inputs] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        # One file would hold 2 GiB at most.
        onnx.save(graph.model(tensors), str(file), save_as_external_data=True)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for ids in _batches(_token_ids(embedder)):
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            for layers, rows in zip(graph.linear_inputs, session.run(tensors, feeds), strict=True):
                if layers not in observed:
                    observed[layers] = Inputs(rows.shape[1])
                observed[layers].add(rows)
    return observed


def _batches(texts: Iterable[list[int]]) -> Iterator[np.ndarray]:
    """Texts of equal length together, so that none is padded, as (texts, tokens) int64."""
    for length, group in groupby(sorted(texts, key=len), len):
        ids = np.array(list(group))
        size = max(1, _AT_ONCE // length)
        yield from (ids[start : start + size] for start in range(0, len(ids), size))


def _token_ids(embedder: Embedder) -> Iterator[list[int]]:
    """Passages of one sentence and of many from `corpora/kinds`, and queries, until there are :data:`_TOKENS`."""
    count = 0
    for topic in kinds_rows("topics"):
        parts = [topic[kind] for kind in ("claim", "support", "refute", "define", "answer")]
        passages = embedder.tokenize([*parts, " ".join(parts)])
        queries = embedder.tokenize_queries(
            [topic["question"], topic["term"]], ["", topic["aspects"][0]["instruction"]]
        )
        yield from (*passages, *queries)
        count += sum(map(len, (*passages, *queries)))
        if count >= _TOKENS:
            return
