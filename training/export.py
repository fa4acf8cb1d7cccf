"""A trained model as one ONNX file for onnxruntime, in float32 or int8, and back again for training."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from searchkit.errors import InputError
from searchkit.models.conventions import SETTINGS
from searchkit.models.embedder import Embedder
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.models.pooling import POOLINGS
from searchkit.models.torch_runtime import TorchRuntime
from searchkit.training.layout import write_layout

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "int8")
_KEPT = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", SETTINGS,
    "sentence_bert_config.json", "README.md", "training.json",
)  # fmt: skip
_BLOCK = 32
_PREFIX = "model."  # of parameter names inside the exported graph


def export(model: str | Path, out: Path, *, dtype: str = "int8") -> None:
    """Write `out`: model.onnx with pooling inside, the tokenizer, and the settings of the sentence-transformers layout.

    int8 keeps every linear layer's weights in 8 bits with a scale for each block of 32, and every embedding with a
    scale for each row; activations are quantised as they come, row by row.

    Args:
        model: A transformers model, or a sentence-transformers folder around one, as :class:`Embedder` takes it.
        out: A new folder.
        dtype: One of :data:`DTYPES`.

    Raises:
        ValueError: The dtype is unknown, `out` is not empty, or the model is an exported one.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder")
    import onnx

    embedder = Embedder(model, device="cpu", dtype="float32")
    assert isinstance(embedder.runtime, TorchRuntime)  # exported models are not float32 to order
    weights, pooling = embedder.runtime.model, embedder.conventions.pooling
    weights.set_attn_implementation("eager")  # exports to plain operators, which every onnxruntime has
    graph = _trace(weights, pooling)
    aliases = _name_weights(graph, dict(weights.named_parameters()))
    if dtype == "int8":
        graph = _quantize(graph)
    about = {"pooling": pooling, "dtype": dtype, "decoder": str(embedder.runtime.decoder).lower()}
    for key, value in {**about, "aliases": json.dumps(aliases)}.items():
        graph.metadata_props.add(key=key, value=value)
    _copy_settings(embedder.folder, out)
    # What the model is known to want by its name has to be said in a folder of another name.
    write_layout(embedder, out, default_instruction=embedder.conventions.default_instruction)
    onnx.save(graph, str(out / MODEL_FILE))


def compare(model: str | Path, exported: Path) -> tuple[float, float]:
    """(least, mean) cosine between both models' vectors, over the passages of the corpus that comes with searchkit."""
    from itertools import islice

    from searchkit.readers.corpus import corpus_folder, read_corpus
    from searchkit.records import join_title

    documents = islice(read_corpus(corpus_folder("intents")), 100)
    texts = [join_title(document.title, document.text) for document in documents]
    rows = Embedder(model, device="cpu", dtype="float32").encode_passages(texts)
    cosines = (rows * Embedder(exported).encode_passages(texts)).sum(1)
    return float(cosines.min()), float(cosines.mean())


def unpack(folder: Path, out: Path) -> None:
    """Write the weights of an exported model as a float32 transformers folder, to train or to run with torch.

    Args:
        folder: What `export` wrote; int8 weights come back as what they stand for.
        out: A new folder.
    """
    import onnx
    from onnx import numpy_helper
    from safetensors.numpy import save_file

    model = onnx.load(str(folder / MODEL_FILE))
    graph = model.graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    transposed = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    weights: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if not name.startswith(_PREFIX) or name.endswith(("_scale", "_scales")):
            continue
        base = name.removesuffix("_Q8").removesuffix("_quantized")
        value = array
        if name.endswith("_Q8"):  # (outputs, blocks, block) around 128
            scales = arrays[f"{base}_scales"].reshape(array.shape[0], -1, 1)
            inputs = next(node for node in graph.node if name in node.input).attribute
            width = next(item.i for item in inputs if item.name == "K")
            value = ((array.astype(np.float32) - 128) * scales).reshape(array.shape[0], -1)[:, :width]
        elif name.endswith("_quantized"):
            value = array.astype(np.float32) * arrays[f"{base}_scale"]
        weights[base.removeprefix(_PREFIX)] = np.ascontiguousarray(value.T if name in transposed else value)
    for alias, name in json.loads({item.key: item.value for item in model.metadata_props}["aliases"]).items():
        weights[alias] = weights[name].copy()
    _copy_settings(folder, out)
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})


def _trace(model: Any, pooling: str) -> Any:
    import torch

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return POOLINGS[pooling](hidden, attention_mask)

    ids = torch.arange(3 * 17).reshape(3, 17) + 1
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    batch, tokens = torch.export.Dim("batch", min=1, max=1 << 16), torch.export.Dim("tokens", min=2, max=1 << 16)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest:
        tokens = torch.export.Dim("tokens", min=2, max=int(longest))
    shape = {0: batch, 1: tokens}
    with _quiet():
        program = torch.onnx.export(
            Pooled().eval(),
            (ids, mask),
            dynamo=True,
            dynamic_shapes={"input_ids": shape, "attention_mask": shape},
            input_names=["input_ids", "attention_mask"],
            output_names=["pooled"],
            opset_version=21,
        )
    if program is None:
        raise InputError("torch could not export the model")
    return program.model_proto


def _copy_settings(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        if (folder / name).is_file():
            shutil.copy2(folder / name, out / name)
    for pooling in folder.glob("*_Pooling"):
        shutil.copytree(pooling, out / pooling.name, dirs_exist_ok=True)


def _name_weights(graph: Any, parameters: dict[str, torch.Tensor]) -> dict[str, str]:
    """Give folded, transposed weights their parameters' names again, so that `unpack` finds them.

    Returns:
        For parameters that the exporter joined, because they were equal: whose values they have.
    """
    from onnx import numpy_helper

    known = {item.name: item for item in graph.graph.initializer}
    missing = {name: value.detach().numpy() for name, value in parameters.items() if _PREFIX + name not in known}
    renamed: dict[str, str] = {}
    for item in graph.graph.initializer:
        if item.name.startswith(_PREFIX) or len(item.dims) != 2:
            continue
        array = numpy_helper.to_array(item)
        for name, value in missing.items():
            if value.T.shape == array.shape and np.array_equal(value.T, array):
                renamed[item.name] = _PREFIX + name
                item.name = _PREFIX + name
                missing.pop(name)
                break
    for node in graph.graph.node:
        for position, name in enumerate(node.input):
            if name in renamed:
                node.input[position] = renamed[name]
    aliases = {}
    for name, value in missing.items():
        for other, theirs in parameters.items():
            if other not in missing and theirs.shape == value.shape and np.array_equal(theirs.detach().numpy(), value):
                aliases[name] = other
                break
    return aliases


def _quantize(model: Any) -> Any:
    """Embeddings by row, here; linear layers by blocks of 32 weights, by onnxruntime's own tool.

    Its older tool (quantize_dynamic) scales activations by the whole batch, so a text's vector depends on its company:
    cosine .988 between alone and in a crowd, where blocks give 1.0000, and .9946 to float32 where they give .9997.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    _quantize_embeddings(model.graph)
    with _quiet():
        # accuracy_level 4: activations become int8 too, each row in blocks with scales of their own.
        quantizer = MatMulNBitsQuantizer(model, bits=8, block_size=_BLOCK, is_symmetric=True, accuracy_level=4)
        quantizer.process()
    return quantizer.model.model


def _quantize_embeddings(graph: Any) -> None:
    """Gather(table, ids) becomes Cast(Gather(int8 table, ids)) * Gather(scales, ids)."""
    from onnx import TensorProto, helper, numpy_helper

    tables = {item.name: item for item in graph.initializer if len(item.dims) == 2 and item.dims[0] > 1000}
    nodes = []
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in tables:
            nodes.append(node)
            continue
        name, ids = node.input
        table = numpy_helper.to_array(tables[name])
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
        small = np.rint(table / scale).astype(np.int8)
        graph.initializer.remove(tables[name])
        graph.initializer.append(numpy_helper.from_array(small, f"{name}_quantized"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        parts = [f"{name}_rows", f"{name}_float", f"{name}_scales"]
        nodes += [
            helper.make_node("Gather", [f"{name}_quantized", ids], [parts[0]], axis=0),
            helper.make_node("Cast", [parts[0]], [parts[1]], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scale", ids], [parts[2]], axis=0),
            helper.make_node("Mul", parts[1:], list(node.output)),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' chatter; what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
