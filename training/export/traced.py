"""Models that are not written operator by operator: the graph that torch traces, in float32 or in blocks of int8."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from searchkit.errors import InputError
from searchkit.models.onnx_runtime import load_onnxruntime
from searchkit.models.pooling import POOLINGS
from searchkit.training.export.int8_graph import round_rows

if TYPE_CHECKING:
    import torch

_BLOCK = 32
_BITS = {"int8": 8, "int4": 4}
_PREFIX = "model."  # of parameter names inside the traced graph


def trace(model: Any, pooling: str, dtype: str) -> Any:
    """The ONNX model of a transformers model with pooling.

    int8 keeps each linear layer's weights in 8 bits with a scale for each block of 32, and each embedding with a scale
    for each row, and int4 has 4 bits in place of 8. onnxruntime reads that from 1.22 on.
    """
    model.set_attn_implementation("eager")  # exports to plain operators, which every onnxruntime has
    graph = _trace(model, pooling)
    aliases, folded = _name_weights(graph, dict(model.named_parameters()))
    if dtype in _BITS:
        graph = _quantize(graph, _BITS[dtype])
    graph.graph.initializer.extend(folded)  # no node reads them, and onnxruntime drops them when it loads
    graph.metadata_props.add(key="aliases", value=json.dumps(aliases))
    return graph


def unpack_traced(graph: Any, arrays: dict[str, np.ndarray], aliases: dict[str, str]) -> dict[str, np.ndarray]:
    """The parameters of a traced model by name, float32.

    Args:
        graph: The ONNX graph.
        arrays: Its initializers.
        aliases: Parameters that the exporter merged with others of the same values.
    """
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
    for alias, name in aliases.items():
        weights[alias] = weights[name].copy()
    return weights


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


def _name_weights(graph: Any, parameters: dict[str, torch.Tensor]) -> tuple[dict[str, str], list[Any]]:
    """Give folded, transposed weights their parameters' names again, so that `unpack` finds them.

    Returns:
        For parameters that the exporter joined, because they were equal: whose values they have; and, as tensors,
        those it computed something from, such as one plus the weights of Gemma's norms.
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
    aliases, folded = {}, []
    for name, value in missing.items():
        for other, theirs in parameters.items():
            if other not in missing and theirs.shape == value.shape and np.array_equal(theirs.detach().numpy(), value):
                aliases[name] = other
                break
        else:
            folded.append(numpy_helper.from_array(np.ascontiguousarray(value), _PREFIX + name))
    return aliases, folded


def _quantize(model: Any, bits: int) -> Any:
    """Embeddings by row, here; linear layers by blocks of 32 weights, by onnxruntime's own tool.

    Its older tool (quantize_dynamic) scales activations by the whole batch, so a text's vector depends on its company:
    cosine .988 between alone and in a crowd, where blocks give 1.0000, and .9946 to float32 where they give .9997.
    """
    load_onnxruntime()  # before anything of it is imported
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    _quantize_embeddings(model.graph)
    with _quiet():
        # accuracy_level 4: activations become int8 too, each row in blocks with scales of their own.
        quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=_BLOCK, is_symmetric=bits == 8, accuracy_level=4)
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
        codes, scales = round_rows(numpy_helper.to_array(tables[name]))
        graph.initializer.remove(tables[name])
        graph.initializer.append(numpy_helper.from_array(codes, f"{name}_quantized"))
        graph.initializer.append(numpy_helper.from_array(scales[:, None], f"{name}_scale"))
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
