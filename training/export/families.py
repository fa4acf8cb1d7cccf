"""The models that are written operator by operator: encoders built like BERT or MPNet, decoders built like Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from searchkit.training.export.attention import Attention, Rotation
from searchkit.training.export.graph import Graph

_BERT = ("bert", "roberta", "xlm-roberta", "camembert")
_MPNET_REACH = 128  # the distance from which on its attention does not tell positions apart
_LLAMA = ("llama", "mistral", "qwen2", "qwen3")
_BERT_ATTENTION = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
_MPNET_ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.o", "LayerNorm")
_GELU = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu"}
_LEAST_GELU = -0.17
# How far outlying dimensions are evened out (see LinearInput). The least cosine to float32 over texts of corpora/kinds
# that calibrate nothing, with the built-in model: .9955 without, .9991 with .75 for both, .9992 with these.
_SMOOTH_ATTENTION, _SMOOTH_MLP = 1.0, 0.7


def can_write(config: Any) -> bool:
    """Whether a model is of a form that can be written, by its transformers config."""
    if config.model_type in _BERT:
        positions = getattr(config, "position_embedding_type", None) or "absolute"
        return config.hidden_act in _GELU and positions == "absolute"
    if config.model_type == "mpnet":
        return config.hidden_act in _GELU
    if config.model_type in _LLAMA:
        window = getattr(config, "sliding_window", None)
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        sees_all = window is None or window >= config.max_position_embeddings
        # Other kinds of RoPE depend on the length of the batch.
        return config.hidden_act == "silu" and sees_all and rope in ("default", "linear", "llama3", "yarn")
    return False


def fold(config: Any, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of the same function in fewer parameters: those that are left out are zero from then on.

    A key's bias adds the same to all scores of a query. A value's bias comes through attention as it is, since shares
    sum to one. All tokens are of type 0.
    """
    folded = dict(weights)
    if config.model_type in _BERT:
        types = folded.pop("embeddings.token_type_embeddings.weight")
        folded["embeddings.position_embeddings.weight"] = folded["embeddings.position_embeddings.weight"] + types[0]
        for number in range(config.num_hidden_layers):
            layer = f"encoder.layer.{number}.attention"
            del folded[f"{layer}.self.key.bias"]
            through = folded[f"{layer}.output.dense.weight"] @ folded.pop(f"{layer}.self.value.bias")
            folded[f"{layer}.output.dense.bias"] = folded[f"{layer}.output.dense.bias"] + through
    return folded


def write_states(graph: Graph, model: Any, *, causal: bool) -> tuple[Attention, str]:
    """Write all from token ids to the last layer's states.

    Args:
        graph: Holds the weights that `fold` gave.
        model: The transformers model, for its config and the frequencies of RoPE.
        causal: Whether its tokens see themselves and those before them only.

    Returns:
        The attention, for its shapes, and the states, (tokens, width).
    """
    config = model.config
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = Attention(graph, heads, key_heads, width, causal=causal)
    ids = graph.op("Reshape", graph.op("Transpose", attention.ids, perm=[1, 0]), graph.integers(-1))  # (tokens,)
    if config.model_type in _BERT:
        return attention, _bert(graph, config, attention, ids)
    if config.model_type == "mpnet":
        attention.add_bias(_relative_bias(graph, model, attention))
        return attention, _bert(graph, config, attention, ids)
    frequencies = model.rotary_emb.inv_freq.float().numpy()
    return attention, _llama(
        graph, config, attention, ids, Rotation(attention, frequencies, model.rotary_emb.attention_scaling)
    )


def _bert(graph: Graph, config: Any, attention: Attention, ids: str) -> str:
    width, epsilon = config.hidden_size, config.layer_norm_eps
    # RoBERTa and its kin, MPNet too, count positions from the one after the padding token's.
    first = {"bert": 0, "mpnet": 2}.get(config.model_type, (config.pad_token_id or 0) + 1)
    rows = graph.op("Add", attention.positions, graph.constant(first, np.int64))
    places = graph.op("Gather", graph.parameter("embeddings.position_embeddings.weight"), rows)  # (length, width)
    words = graph.op("Reshape", graph.embedding("embeddings.word_embeddings.weight", ids), attention.shape(width))
    x = graph.op("Add", words, graph.op("Unsqueeze", places, graph.integers(1)))  # (length, batch, width)
    x = graph.op("Reshape", x, graph.integers(-1, width))  # (tokens, width), as all x from here on
    x = graph.layer_norm(x, "embeddings.LayerNorm", epsilon)
    names = _MPNET_ATTENTION if config.model_type == "mpnet" else _BERT_ATTENTION
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        *inputs, dense, norm = (f"{layer}.attention.{name}" for name in names)
        parts = graph.linear(x, *inputs, smoothing=_SMOOTH_ATTENTION)
        seen = attention.attend(*(attention.split(part, attention.heads) for part in parts))
        (seen,) = graph.linear(seen, dense)
        x = graph.layer_norm(graph.op("Add", seen, x), norm, epsilon)
        (wide,) = graph.linear(x, f"{layer}.intermediate.dense", bias=False, smoothing=_SMOOTH_MLP)
        bias = graph.parameter(f"{layer}.intermediate.dense.bias")
        wide = graph.microsoft(_GELU[config.hidden_act], wide, bias)
        (back,) = graph.linear(wide, f"{layer}.output.dense", least=_LEAST_GELU)
        x = graph.layer_norm(graph.op("Add", back, x), f"{layer}.output.LayerNorm", epsilon)
    return x


def _relative_bias(graph: Graph, model: Any, attention: Attention) -> str:
    """What MPNet adds to the scores of each head by how far the key is from the query, (heads, queries, keys)."""
    import torch

    distances = torch.arange(-_MPNET_REACH, _MPNET_REACH + 1)[None]
    buckets = model.encoder.relative_position_bucket(
        distances, num_buckets=model.config.relative_attention_num_buckets, max_distance=_MPNET_REACH
    )[0]
    table = graph.parameter("encoder.relative_attention_bias.weight")
    by_distance = graph.op("Gather", table, graph.integers(*buckets.tolist()))  # (distances, heads)
    keys, queries = (graph.op("Unsqueeze", attention.positions, graph.integers(axis)) for axis in (0, 1))
    away = graph.op("Sub", keys, queries)  # (queries, keys)
    limits = (graph.constant(limit, np.int64) for limit in (-_MPNET_REACH, _MPNET_REACH))
    rows = graph.op("Add", graph.op("Clip", away, *limits), graph.constant(_MPNET_REACH, np.int64))
    return graph.op("Transpose", graph.op("Gather", by_distance, rows), perm=[2, 0, 1])


def _llama(graph: Graph, config: Any, attention: Attention, ids: str, rotation: Rotation) -> str:
    epsilon = config.rms_norm_eps
    x = graph.embedding("embed_tokens.weight", ids)  # (tokens, width)
    for number in range(config.num_hidden_layers):
        layer = f"layers.{number}"
        own, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        normed = graph.rms_norm(x, f"{layer}.input_layernorm", epsilon)
        parts = graph.linear(normed, f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj", smoothing=_SMOOTH_ATTENTION)
        heads = (attention.heads, attention.key_heads, attention.key_heads)
        query, key, value = map(attention.split, parts, heads)
        if f"{own}.q_norm.weight" in graph.weights:
            query, key = graph.rms_norm(query, f"{own}.q_norm", epsilon), graph.rms_norm(key, f"{own}.k_norm", epsilon)
        seen = attention.attend(rotation.rotate(query), rotation.rotate(key), value)
        (seen,) = graph.linear(seen, f"{own}.o_proj")
        x = graph.op("Add", seen, x)
        normed = graph.rms_norm(x, f"{layer}.post_attention_layernorm", epsilon)
        gate, up = graph.linear(normed, f"{mlp}.gate_proj", f"{mlp}.up_proj", smoothing=_SMOOTH_MLP)
        gate = graph.op("Mul", gate, graph.op("Sigmoid", gate))
        (back,) = graph.linear(graph.op("Mul", gate, up), f"{mlp}.down_proj")
        x = graph.op("Add", back, x)
    return graph.rms_norm(x, "norm", epsilon)
