"""A model to an exported folder: the graph, the tokenizer and the settings."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.models.conventions import dense_folders
from searchkit.models.embedder import Embedder
from searchkit.models.location import find_model
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.models.torch_runtime import TorchRuntime, sees_ahead
from searchkit.new_folder import check_new, new_folder
from searchkit.readers.corpus import corpus_folder, read_corpus
from searchkit.records import join_title
from searchkit.training.export.calibration import observe
from searchkit.training.export.dense import append_dense
from searchkit.training.export.families import can_write, fold, write_states
from searchkit.training.export.graph import Graph
from searchkit.training.export.int4_graph import Int4Graph
from searchkit.training.export.int8_graph import Int8Graph
from searchkit.training.export.pooling import write_pooling
from searchkit.training.export.rounding import round_layers
from searchkit.training.export.unpack import copy_settings
from searchkit.training.layout import write_layout

logger = logging.getLogger(__name__)

DTYPES = ("float32", "int8", "int4")
_LARGEST = 2**31  # bytes of one ONNX file, which is a protocol buffer
_WEIGHT = {"float32": 4.0, "int8": 1.0, "int4": 0.625}  # bytes, in int4 with a scale and a zero for each block


def export(model: str | Path, out: Path, *, dtype: str = "int8") -> None:
    """Write `out`: model.onnx with pooling inside, the tokenizer, and the settings of the sentence-transformers layout.

    In int8, every linear layer's weights have 8 bits and a scale for each output, embeddings a scale for each row, and
    activations a scale for each token, found as they come; a text's vector does not depend on the rest of its batch.
    int4 has 4 bits for the weights of linear layers, in blocks of 32, and needs onnxruntime 1.22.
    Dense modules after pooling become part of the graph, in float32.

    Args:
        model: A transformers model, or a sentence-transformers folder around one, as :class:`Embedder` takes it.
        out: A new folder, which gets its name when it is complete.
        dtype: One of :data:`DTYPES`.

    Raises:
        InputError: The dtype is unknown, `out` is not empty, or the model is an exported one, on a server, too large,
            or pools without the prompt.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    check_new(out)
    folder, name = find_model(str(model))  # a model on a server cannot be exported, and this says so
    if (folder / MODEL_FILE).is_file():
        raise InputError(f"{name} is exported already; export the model that it was exported from")
    import onnx

    embedder = Embedder(model, device="cpu", dtype="float32")
    assert isinstance(embedder.runtime, TorchRuntime)  # exported models do not take a dtype
    if not embedder.conventions.pool_prompt:
        raise InputError(
            f"{model} has pooling without the prompt (include_prompt: false), which an exported graph does not do; use "
            "the model as it is"
        )
    torch_model = embedder.runtime.model
    check_size(str(model), sum(weights.numel() for weights in torch_model.parameters()), dtype)
    graph = _write(torch_model, embedder, dtype) if can_write(torch_model.config) else None
    if graph is None:
        from searchkit.training.export.traced import trace

        logger.info("%s is traced: its graph will be slower than a written one", type(torch_model).__name__)
        graph = trace(torch_model, embedder.conventions.pooling, dtype)
    append_dense(graph, dense_folders(embedder.settings_folder))
    about = {"pooling": embedder.conventions.pooling, "dtype": dtype, "decoder": str(embedder.runtime.decoder).lower()}
    about["width"] = str(embedder.runtime.hidden_size)
    if embedder.runtime.longest:
        about["longest"] = str(embedder.runtime.longest)
    for key, value in about.items():
        graph.metadata_props.add(key=key, value=value)
    with new_folder(out) as new:
        copy_settings(embedder.folder, new)
        # Settings that the model's name implies are written out, since the folder may have any name.
        write_layout(embedder, new, default_instruction=embedder.conventions.default_instruction)
        onnx.save(graph, str(new / MODEL_FILE))


def check_size(model: str, weights: int, dtype: str) -> None:
    """Raise InputError if so many weights of this type do not fit into one ONNX file."""
    size = weights * _WEIGHT[dtype]
    if size >= _LARGEST:
        smaller = next((other for other in DTYPES if weights * _WEIGHT[other] < _LARGEST), None)
        to_do = f"export it with --onnx {smaller}" if smaller else "run it as it is, on torch or on a server"
        raise InputError(
            f"{model} takes {size / 2**30:.1f} GiB in {dtype}, and one ONNX file holds less than 2; {to_do}"
        )


def compare(model: str | Path, exported: Path) -> tuple[float, float]:
    """(least, mean) cosine between both models' vectors of 100 passages of the corpus `intents`."""
    documents = islice(read_corpus(corpus_folder("intents")), 100)
    texts = [join_title(document.title, document.text) for document in documents]
    rows = Embedder(model, device="cpu", dtype="float32").encode_passages(texts)
    cosines = (rows * Embedder(exported).encode_passages(texts)).sum(1)
    return float(cosines.min()), float(cosines.mean())


def _write(model: Any, embedder: Embedder, dtype: str) -> Any:
    """The ONNX model, operator by operator; None if the model has weights that its family does not have."""
    original = {name: value.detach().numpy() for name, value in model.named_parameters() if "pooler." not in name}
    weights = fold(model.config, original)
    causal, pooling = not sees_ahead(model), embedder.conventions.pooling
    graph = Graph(weights)
    attention, states = write_states(graph, model, causal=causal)
    if weights.keys() - graph.parameters.keys():
        return None
    if dtype == "int8":
        layers = {
            names: round_layers(
                [weights[f"{name}.weight"] for name in names], inputs, graph.linear_inputs[names].smoothing
            )
            for names, inputs in observe(graph, embedder).items()
        }
        graph = Int8Graph(weights, layers)
        attention, states = write_states(graph, model, causal=causal)
    elif dtype == "int4":
        graph = Int4Graph(weights)
        attention, states = write_states(graph, model, causal=causal)
    pooled = write_pooling(attention, states, pooling, model.config.hidden_size)
    for name in original.keys() - weights.keys():
        graph.describe(name, zeros=original[name].shape)
    return graph.model([pooled])
