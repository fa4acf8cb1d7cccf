"""Attention written operator by operator: causal in blocks of queries, or bidirectional."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from searchkit.training.export.graph import Graph

_BLOCKS = 4
_LOWEST = np.finfo(np.float32).min


class Attention:
    """What the attention of all layers shares: shapes, masks and positions.

    Causal attention takes four blocks of queries, each against the keys up to its own last one, which leaves out three
    eighths of the products. It needs no padding mask, since padding comes after a text.

    Args:
        graph: Where to write.
        heads: Query heads.
        key_heads: Key and value heads; fewer where several query heads share one.
        width: Of one head.
        causal: Whether a token sees itself and those before it only.
    """

    def __init__(self, graph: Graph, heads: int, key_heads: int, width: int, *, causal: bool) -> None:
        self.graph, self.heads, self.key_heads, self.width = graph, heads, key_heads, width
        self.ids, self.mask = (self._pad(name) for name in ("input_ids", "attention_mask"))  # (batch, length)
        shape = graph.op("Shape", self.ids)
        self._batch = graph.op("Slice", shape, graph.integers(0), graph.integers(1))  # (1,)
        self._length = graph.op("Slice", shape, graph.integers(1), graph.integers(2))  # (1,)
        length = graph.op("Squeeze", self._length, graph.integers(0))
        self.positions = graph.op(
            "Range", graph.constant(0, np.int64), length, graph.constant(1, np.int64)
        )  # (length,)
        self._shapes: dict[tuple[int, ...], str] = {}
        if causal:
            self._blocks = [(*edges, self._ahead(*edges)) for edges in pairwise(map(self._edge, range(_BLOCKS + 1)))]
        else:
            self._blocks = [(graph.integers(0), self._length, self._padding())]

    def shape(self, *sizes: int) -> str:
        """(length, batch, *sizes), to unfold (tokens, ...) with."""
        if sizes not in self._shapes:
            sized = self.graph.integers(*sizes)
            self._shapes[sizes] = self.graph.op("Concat", self._length, self._batch, sized, axis=0)
        return self._shapes[sizes]

    def split(self, x: str, heads: int) -> str:
        """(tokens, heads * width) as (length, batch, heads, width)."""
        return self.graph.op("Reshape", x, self.shape(heads, self.width))

    def attend(self, query: str, key: str, value: str) -> str:
        """(length, batch, heads, width) each to (tokens, heads * width)."""
        graph = self.graph
        key, value = self._repeat(key), self._repeat(value)
        blocks = []
        for number, (start, stop, mask) in enumerate(self._blocks, 1):
            queries, keys, values = query, key, value
            if len(self._blocks) > 1:
                queries = graph.op("Slice", query, start, stop, graph.integers(0))
            if number < len(self._blocks):
                keys, values = (graph.op("Slice", x, graph.integers(0), stop, graph.integers(0)) for x in (key, value))
            # These products read (length, batch, heads, width) as (batch, heads, length, width), without a copy.
            scores = graph.microsoft(
                "FusedMatMul", queries, keys, transBatchA=1, transBatchB=1, transB=1, alpha=self.width**-0.5
            )
            shares = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)  # (batch, heads, queries, keys)
            seen = graph.microsoft("FusedMatMul", shares, values, transBatchB=1)
            blocks.append(graph.op("Transpose", seen, perm=[2, 0, 1, 3]))
        seen = graph.op("Concat", *blocks, axis=0)  # (length, batch, heads, width)
        return graph.op("Reshape", seen, graph.integers(-1, self.heads * self.width))

    def add_bias(self, values: str) -> None:
        """Add (heads, queries, keys) to the scores of all layers; of bidirectional attention."""
        ((start, stop, mask),) = self._blocks
        self._blocks = [(start, stop, self.graph.op("Add", mask, self.graph.op("Unsqueeze", values, start)))]

    def _repeat(self, x: str) -> str:
        """(length, batch, key heads, width) to (length, batch, heads, width)."""
        if self.key_heads == self.heads:
            return x
        group = np.arange(self.heads) // (self.heads // self.key_heads)
        return self.graph.op("Gather", x, self.graph.integers(*group), axis=2)

    def _pad(self, name: str) -> str:
        """An input, padded to a token for each block: onnxruntime crashes on products of nothing."""
        graph = self.graph
        shape = graph.op("Shape", name)
        length = graph.op("Slice", shape, graph.integers(1), graph.integers(2))
        lacking = graph.op("Max", graph.op("Sub", graph.integers(_BLOCKS), length), graph.integers(0))
        return graph.op("Pad", name, graph.op("Concat", graph.integers(0, 0, 0), lacking, axis=0))

    def _edge(self, number: int) -> str:
        """Where block `number` starts, as (1,)."""
        graph = self.graph
        return graph.op("Div", graph.op("Mul", self._length, graph.integers(number)), graph.integers(_BLOCKS))

    def _ahead(self, start: str, stop: str) -> str:
        """The mask of a block: (queries, keys), the lowest number where the key comes after the query."""
        graph = self.graph
        keys = graph.op("Slice", self.positions, graph.integers(0), stop)
        queries = graph.op("Unsqueeze", graph.op("Slice", self.positions, start, stop), graph.integers(1))
        return graph.op("Where", graph.op("Greater", keys, queries), graph.constant(_LOWEST), graph.constant(0))

    def _padding(self) -> str:
        """(batch, 1, 1, keys), the lowest number at padding."""
        graph = self.graph
        mask = graph.op("Unsqueeze", graph.op("Cast", self.mask, to=1), graph.integers(1, 2))
        return graph.op("Mul", graph.op("Sub", graph.constant(1), mask), graph.constant(_LOWEST))


class Rotation:
    """Rotary position embeddings (RoPE), the halves of a head rotated against each other.

    Args:
        attention: Whose heads they are.
        frequencies: (width / 2,) float32.
        scale: Of the rotated vectors.
    """

    def __init__(self, attention: Attention, frequencies: np.ndarray, scale: float) -> None:
        self._graph = graph = attention.graph
        self._half = attention.width // 2
        positions = graph.op("Reshape", graph.op("Cast", attention.positions, to=1), graph.integers(-1, 1, 1, 1))
        angles = graph.op("Mul", positions, graph.constant(frequencies))  # (length, 1, 1, width / 2)
        self._cos, self._sin = (graph.op("Mul", graph.op(op, angles), graph.constant(scale)) for op in ("Cos", "Sin"))

    def rotate(self, x: str) -> str:
        """(length, batch, heads, width), each head turned by its position."""
        graph = self._graph
        zero, half, all_, last = (graph.integers(n) for n in (0, self._half, 2 * self._half, -1))
        left, right = graph.op("Slice", x, zero, half, last), graph.op("Slice", x, half, all_, last)
        turned = (
            graph.op("Sub", graph.op("Mul", left, self._cos), graph.op("Mul", right, self._sin)),
            graph.op("Add", graph.op("Mul", right, self._cos), graph.op("Mul", left, self._sin)),
        )
        return graph.op("Concat", *turned, axis=-1)
