"""The poolings of :mod:`searchkit.models.pooling`, written operator by operator."""

from __future__ import annotations

from searchkit.training.export.attention import Attention


def write_pooling(attention: Attention, states: str, pooling: str, width: int) -> str:
    """States (tokens, width) of texts that are padded on the right, pooled to (batch, width)."""
    graph = attention.graph
    mask = graph.op("Transpose", graph.op("Cast", attention.mask, to=1), perm=[1, 0])  # (length, batch)
    states = graph.op("Reshape", states, attention.shape(width))  # (length, batch, width)
    first, column = graph.integers(0), graph.integers(2)
    if pooling == "max":
        away = graph.op("Mul", graph.op("Sub", mask, graph.constant(1)), graph.constant(1e30))
        kept = graph.op("Add", states, graph.op("Unsqueeze", away, column))
        return graph.op("ReduceMax", kept, axes=[0], keepdims=0)
    count = graph.op("CumSum", mask, graph.constant(0, "int64"))  # 1, 2, ... down each text
    if pooling == "mean":
        weights = mask
    elif pooling == "weighted-mean":
        weights = graph.op("Mul", count, mask)
    else:  # one token: the first, or that whose number is the length
        last = graph.op("ReduceSum", mask, first, keepdims=1)
        number = last if pooling == "last" else graph.constant(1)
        weights = graph.op("Cast", graph.op("Equal", graph.op("Mul", count, mask), number), to=1)
    weights = graph.op("Div", weights, graph.op("ReduceSum", weights, first, keepdims=1))
    return graph.op("ReduceSum", graph.op("Mul", states, graph.op("Unsqueeze", weights, column)), first, keepdims=0)
