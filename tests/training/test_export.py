from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import TEXTS
from tiny_models import build_model

from searchkit.errors import InputError
from searchkit.models.embedder import Embedder
from searchkit.models.pooling import POOLINGS
from searchkit.training.export import calibration, compare, export, traced, unpack
from searchkit.training.export.dense import replace_dense
from searchkit.training.export.export import check_size
from searchkit.training.export.int4_graph import round_blocks
from searchkit.training.layout import write_layout

LONG = "a long passage about nothing much " * 9
WRITTEN = ["mistral", "llama", "qwen2", "qwen3", "bert", "causal-bert", "roberta", "mpnet"]


def make(folder: Path, kind: str, pooling: str | None = None) -> Path:
    """A tiny model whose biases and norms are random too, with weights small enough for rounding to matter little."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(build_model(folder, kind))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
        else:
            parameter.data *= 0.4
    model.save_pretrained(folder)
    if pooling:
        embedder = Embedder(folder, device="cpu", dtype="float32")
        embedder.conventions = replace(embedder.conventions, pooling=pooling)
        write_layout(embedder, folder / "pooled", default_instruction=None)
        model.save_pretrained(folder := folder / "pooled")
    return folder


def vectors(model: Path, texts: Sequence[str] = (*TEXTS, LONG, "x")) -> np.ndarray:
    kind = {} if (model / "model.onnx").is_file() else {"dtype": "float32"}
    return Embedder(model, device="cpu", **kind).encode_passages(texts)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """torch takes six seconds to trace a model: one of the same weights is traced once. int8 is calibrated on less."""
    graphs: dict[tuple[str, str], Any] = {}
    trace_anew = traced._trace

    def trace_once(model: Any, pooling: str) -> Any:
        weights = b"".join(value.detach().numpy().tobytes() for value in model.state_dict().values())
        known = f"{model.config}{sha256(weights).hexdigest()}", pooling
        if known not in graphs:
            graphs[known] = trace_anew(model, pooling)
        return deepcopy(graphs[known])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced, "_trace", trace_once)
        patch.setattr(calibration, "_TOKENS", 4096)
        yield


@pytest.fixture(scope="module", params=[*WRITTEN, "distilbert"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("export") / request.param, request.param)


@pytest.fixture(scope="module")
def int8(model: Path) -> Path:
    export(model, model.parent / "int8", dtype="int8")
    return model.parent / "int8"


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose graph is traced, since each token sees the last sixteen only."""
    model = build_model(tmp_path_factory.mktemp("export") / "sliding")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "sliding_window": 16}))
    return model


@pytest.fixture(scope="module")
def mistral_int8(mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    export(mistral, folder := tmp_path_factory.mktemp("export") / "int8")
    return folder


def test_float32_gives_torch_s_vectors(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "onnx", dtype="float32")
    np.testing.assert_allclose(vectors(tmp_path / "onnx"), vectors(model), atol=1e-5)


def test_int8_stays_close(model: Path, int8: Path) -> None:
    cosines = (vectors(int8) * vectors(model)).sum(1)
    assert cosines.mean() > 0.999
    assert cosines.min() > 0.998
    least, mean = compare(model, int8)
    assert 0.9 < least <= mean <= 1.0001
    assert Embedder(int8).dtype == "int8"


def test_weights_of_4_bits_give_what_they_stand_for(model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    export(model, tmp_path / "int4", dtype="int4")
    rounded = AutoModel.from_pretrained(model)
    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear):
            codes, scales, zeros = round_blocks(module.weight.detach().numpy())
            values = (codes.astype(np.float32) - zeros[:, :, None]) * scales[:, :, None]
            module.weight.data = torch.from_numpy(values.reshape(len(codes), -1)[:, : module.in_features])
    shutil.copytree(model, tmp_path / "rounded", ignore=shutil.ignore_patterns("int8"))
    rounded.save_pretrained(tmp_path / "rounded")
    cosines = (vectors(tmp_path / "int4") * vectors(tmp_path / "rounded")).sum(1)
    assert cosines.min() > (0.99 if model.name != "distilbert" else 0.95)  # there onnxruntime rounds in its own way
    alone = Embedder(tmp_path / "int4").encode_passages([LONG])[0]
    np.testing.assert_allclose(alone, vectors(tmp_path / "int4")[-2], atol=1e-5)
    with pytest.raises(InputError, match="weights of 4 bits, which do not come back"):
        unpack(tmp_path / "int4", tmp_path / "back")


def test_a_text_embeds_alone_as_in_a_crowd(int8: Path) -> None:
    texts = ["tea", LONG, *TEXTS]
    embedder = Embedder(int8)
    alone = np.concatenate([embedder.encode_passages([text]) for text in texts])
    np.testing.assert_allclose(alone, embedder.encode_passages(texts), atol=1e-6)


def test_its_weights_come_back_for_training(model: Path, int8: Path, tmp_path: Path) -> None:
    unpack(int8, tmp_path / "back")
    assert (vectors(tmp_path / "back") * vectors(model)).sum(1).min() > 0.999
    export(tmp_path / "back", tmp_path / "again")
    assert (vectors(tmp_path / "again") * vectors(int8)).sum(1).min() > 0.999


def test_weights_that_a_traced_graph_computes_with_come_back(tmp_path: Path) -> None:
    gemma = make(tmp_path / "model", "causal-gemma3")  # adds one to the weights of its norms
    export(gemma, tmp_path / "int8")
    assert (vectors(tmp_path / "int8") * vectors(gemma)).sum(1).min() > 0.998
    unpack(tmp_path / "int8", tmp_path / "back")
    assert (vectors(tmp_path / "back") * vectors(gemma)).sum(1).min() > 0.999


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["mistral", "bert"])
def test_every_pooling_is_torch_s(kind: str, pooling: str, tmp_path: Path) -> None:
    model = make(tmp_path / "model", kind, pooling)
    export(model, tmp_path / "onnx", dtype="float32")
    np.testing.assert_allclose(vectors(tmp_path / "onnx"), vectors(model), atol=1e-5)


@pytest.mark.parametrize("kind", ["mistral", "bert"])
def test_a_single_token_is_embedded(kind: str, tmp_path: Path) -> None:
    model = build_model(tmp_path / "model", kind, bos=False, eos=False)
    export(model, tmp_path / "onnx", dtype="float32")
    np.testing.assert_allclose(vectors(tmp_path / "onnx", ["x"]), vectors(model, ["x"]), atol=1e-5)


def test_a_sliding_window_is_kept(sliding: Path, tmp_path: Path) -> None:
    export(sliding, tmp_path / "onnx", dtype="float32")
    np.testing.assert_allclose(vectors(tmp_path / "onnx"), vectors(sliding), atol=1e-5)


def test_a_cpu_whose_products_saturate_keeps_seven_bits(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = make(tmp_path / "model", "causal-bert")
    export(model, tmp_path / "int8")
    graph = onnx.load(tmp_path / "int8" / "model.onnx")
    probe = next(node for node in graph.graph.node if node.op_type == "Equal" and "ReduceMin" in node.input[0])
    expected = next(item for item in graph.graph.initializer if item.name == probe.input[1])
    before = vectors(tmp_path / "int8")
    expected.CopyFrom(numpy_helper.from_array(np.array(1, np.int32), expected.name))  # as if the product were wrong
    onnx.save(graph, tmp_path / "int8" / "model.onnx")
    after = vectors(tmp_path / "int8")
    assert not np.array_equal(after, before)
    assert (after * vectors(model)).sum(1).min() > 0.998


def test_a_folder_exported_by_version_0_1_is_read(sliding: Path, mistral_int8: Path, tmp_path: Path) -> None:
    import onnx

    shutil.copytree(mistral_int8, tmp_path / "old")
    shutil.copy(sliding / "config.json", tmp_path / "old")
    graph = traced.trace(Embedder(sliding, device="cpu", dtype="float32").runtime.model, "last", "int8")
    for key, value in {"pooling": "last", "dtype": "int8", "decoder": "true"}.items():
        graph.metadata_props.add(key=key, value=value)
    onnx.save(graph, tmp_path / "old" / "model.onnx")
    unpack(tmp_path / "old", tmp_path / "back")
    for folder in ("old", "back"):
        assert (vectors(tmp_path / folder) * vectors(sliding)).sum(1).min() > 0.95


@pytest.mark.parametrize("name", ["tiny-e5-base", "tiny-e5-mistral", "tiny-qwen3-embedding"])
def test_what_a_model_is_known_to_want_by_its_name_goes_along(name: str, tmp_path: Path) -> None:
    model = build_model(tmp_path / name, "bert" if name == "tiny-e5-base" else "mistral", eos=False)
    export(model, tmp_path / "onnx", dtype="float32")
    wanted, found = Embedder(model, device="cpu", dtype="float32"), Embedder(tmp_path / "onnx")
    assert (found.frame, found.conventions.smallest_dim) == (wanted.frame, wanted.conventions.smallest_dim)
    np.testing.assert_allclose(found.encode_passages(TEXTS), wanted.encode_passages(TEXTS), atol=1e-5)
    for instruction in (None, "", "Find the tea"):
        queries = [embedder.encode_queries(["tea"], instruction) for embedder in (found, wanted)]
        np.testing.assert_allclose(*queries, atol=1e-5)


def test_an_exported_model_is_not_exported_again(mistral_int8: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is exported already; export the model that it was exported from"):
        export(mistral_int8, tmp_path / "again")


def test_torch_is_not_imported_to_run_it(mistral_int8: Path) -> None:
    code = (
        "import sys; from searchkit.models.embedder import Embedder; "
        f"Embedder({str(mistral_int8)!r}).encode_queries(['tea'], 'Find it'); "
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("options", [{"device": "mps"}, {"dtype": "bfloat16"}])
def test_what_an_exported_model_cannot_do_is_said(mistral_int8: Path, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"is an exported model: .* or use the model that it was exported from"):
        Embedder(mistral_int8, **options)


def test_another_pooling_than_it_was_exported_with_is_refused(mistral_int8: Path) -> None:
    conventions = replace(Embedder(mistral_int8).conventions, pooling="mean")
    with pytest.raises(ValueError, match="exported with last pooling"):
        Embedder(mistral_int8, conventions=conventions).encode_passages(["tea"])


@pytest.mark.parametrize(
    ("weights", "dtype", "to_do"),
    [(600_000_000, "float32", r"takes 2\.2 GiB in float32, .* holds less than 2; export it with --onnx int8"),
     (2_500_000_000, "int8", "--onnx int4"), (7_000_000_000, "int8", "run it as it is")],
)  # fmt: skip
def test_what_one_file_cannot_hold_is_refused_at_once(weights: int, dtype: str, to_do: str) -> None:
    with pytest.raises(InputError, match=to_do):
        check_size("a model", weights, dtype)
    check_size("a model", 500_000_000, dtype)


def test_a_model_too_large_for_a_file_is_not_exported(
    mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["searchkit.training.export.export"], "_LARGEST", 100_000)
    with pytest.raises(InputError, match="in float32, and one ONNX file"):
        export(mistral, tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_not_written_over(mistral: Path, mistral_int8: Path) -> None:
    with pytest.raises(ValueError, match="is not an empty folder; name a new one"):
        export(mistral, mistral_int8)


@pytest.mark.parametrize("kind", ["export", "unpack", "replace_dense"])
def test_an_interrupted_export_leaves_nothing_and_can_be_tried_again(
    mistral: Path, mistral_int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out = tmp_path / "out"

    def write() -> None:
        if kind == "export":
            export(mistral, out, dtype="float32")
        elif kind == "unpack":
            unpack(mistral_int8, out)
        else:
            replace_dense(mistral_int8, out, [])

    def half(_: Any, file: str, **__: Any) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onnx.save", half)
        patch.setattr("safetensors.numpy.save_file", half)
        with pytest.raises(KeyboardInterrupt):
            write()
    assert [*tmp_path.iterdir()] == []
    write()
    assert [*tmp_path.iterdir()] == [out]
