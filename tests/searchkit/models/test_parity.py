"""The same vectors as sentence-transformers, on small random models of the architectures of known families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from texts import TEXTS
from tiny_models import build_model

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.models.conventions import fingerprint
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.training.export import export, unpack
from searchkit.training.export.dense import replace_dense

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

QUERIES = [*TEXTS[:4], "tea", "a longer question about nothing much"]
PASSAGES = [*TEXTS[:8], "a long passage about nothing much " * 6, "x"]
WEB = "Given a web search query, retrieve relevant passages that answer the query"
SEARCHING = "Represent this sentence for searching relevant passages: "


def pipeline(
    folder: Path, out: Path, pooling: str, *, query: str = "", document: str = "", dense: tuple[Any, ...] = (),
    include_prompt: bool = True, normalize: bool = True,
) -> Any:  # fmt: skip
    """A model folder as a saved sentence-transformers pipeline, and that pipeline."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    modules = [
        Transformer(str(folder), max_seq_length=250),
        Pooling(64, pooling_mode=pooling, include_prompt=include_prompt),
        *dense,
        *([Normalize()] if normalize else []),
    ]
    SentenceTransformer(modules=modules, prompts={"query": query, "document": document}).save(str(out))
    return SentenceTransformer(str(out), device="cpu")


def layers(*shapes: tuple[int, int], **settings: Any) -> tuple[Any, ...]:
    from sentence_transformers.models import Dense

    return tuple(Dense(*shape, **settings) for shape in shapes)


def compare(model: Embedder, oracle: Any) -> None:
    """Compare with unit rows: sentence-transformers normalises only where a module says so."""
    for ours, theirs in (
        (model.encode_queries(QUERIES), oracle.encode_query(QUERIES, normalize_embeddings=True)),
        (model.encode_passages(PASSAGES), oracle.encode_document(PASSAGES, normalize_embeddings=True)),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def load(folder: Path, **options: Any) -> Embedder:
    return Embedder(folder, device="cpu", dtype="float32", **options)


class Published(NamedTuple):
    """What a family's own sentence-transformers folder says; for the table, which has it from there."""

    name: str
    kind: str
    pooling: str
    query: str = ""
    document: str = ""
    dense: bool = False


FAMILIES = [
    Published("e5-mistral-7b-instruct", "mistral", "lasttoken", f"Instruct: {WEB}\nQuery: "),
    Published("Qwen3-Embedding-0.6B", "qwen3", "lasttoken", f"Instruct: {WEB}\nQuery:"),
    Published("gte-Qwen2-1.5B-instruct", "qwen2", "lasttoken", f"Instruct: {WEB}\nQuery: "),
    Published("embeddinggemma-300m", "gemma3", "mean", "task: search result | query: ", "title: none | text: ", True),
    Published("multilingual-e5-large-instruct", "xlm-roberta", "mean", f"Instruct: {WEB}\nQuery: "),
    Published("multilingual-e5-small", "bert", "mean", "query: ", "passage: "),
    Published("bge-m3", "xlm-roberta", "cls"),
    Published("bge-base-en-v1.5", "bert", "cls", SEARCHING),
    Published("nomic-embed-text-v1.5", "nomic", "mean", "search_query: ", "search_document: "),
    Published("snowflake-arctic-embed-m", "bert", "cls", SEARCHING),
    Published("snowflake-arctic-embed-l-v2.0", "xlm-roberta", "cls", "query: "),
    Published("multi-qa-mpnet-base-cos-v1", "mpnet", "mean"),
    Published("msmarco-distilbert-cos-v5", "distilbert", "mean"),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_s_vectors_are_those_of_its_own_folder(tmp_path: Path, family: Published) -> None:
    bare = build_model(tmp_path / family.name, family.kind)
    dense = layers((64, 96), (96, 64), bias=False, activation_function=None) if family.dense else ()
    oracle = pipeline(
        bare, tmp_path / "saved", family.pooling, query=family.query, document=family.document, dense=dense
    )
    compare(load(tmp_path / "saved"), oracle)  # by what the folder says
    if not family.dense:  # which a bare folder cannot have
        compare(load(bare), oracle)  # by the table


@pytest.mark.parametrize("name", [family.name for family in FAMILIES if family.dense])
def test_the_table_has_the_prompts_of_families_with_dense_modules(tmp_path: Path, name: str) -> None:
    bare = build_model(tmp_path / name, "gemma3")
    (family,) = (family for family in FAMILIES if family.name == name)
    compare(load(bare), pipeline(bare, tmp_path / "st", family.pooling, query=family.query, document=family.document))


# Dense modules


@pytest.mark.parametrize(
    ("shapes", "settings"),
    [
        ([(64, 96), (96, 64)], {"bias": False, "activation_function": None}),
        ([(64, 32)], {}),  # bias and tanh
        ([(64, 64)], {"use_residual": True}),
        ([(64, 48)], {"use_residual": True}),
    ],
)
def test_dense_modules_are_applied(tmp_path: Path, shapes: list[tuple[int, int]], settings: dict[str, Any]) -> None:
    bare = build_model(tmp_path / "bare", "bert")
    oracle = pipeline(bare, tmp_path / "st", "mean", dense=layers(*shapes, **settings), normalize=False)
    model = load(tmp_path / "st")
    assert model.dim == shapes[-1][1]
    compare(model, oracle)
    assert np.abs(load(bare).encode_passages(["tea"])[0, :32] - model.encode_passages(["tea"])[0, :32]).max() > 0.01


def edited(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation_function": "os.system"}, "has the activation os.system; expected one of torch.nn's"),
        ({"activation_function": "torch.nn.modules.sparse.Embedding"}, "has the activation torch.nn"),
        ({"module_input_name": "token_embeddings"}, "expected a Dense module on the pooled sentence_embedding"),
    ],
)
def test_other_dense_modules_are_refused(tmp_path: Path, values: dict[str, str], message: str) -> None:
    bare = build_model(tmp_path / "bare", "bert")
    pipeline(bare, tmp_path / "st", "mean", dense=layers((64, 32)))
    edited(tmp_path / "st" / "2_Dense" / "config.json", **values)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "st")


def test_dense_weights_are_in_the_fingerprint(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bare = build_model(tmp_path / "bare", "bert")
    pipeline(bare, tmp_path / "st", "mean", dense=layers((64, 32)))
    before, file = fingerprint(tmp_path / "st"), tmp_path / "st" / "2_Dense" / "model.safetensors"
    with SearchEngine.create(tmp_path / "x.index", model=load(tmp_path / "st")) as engine:
        engine.add([Document("a", "tea")])
    weights = load_file(file)
    weights["linear.weight"][3, 4] += 1
    save_file(weights, file)
    assert fingerprint(tmp_path / "st") != before
    with pytest.raises(StoreError, match="which differs from its present version"):
        SearchEngine.open(tmp_path / "x.index", model=load(tmp_path / "st"))


# Prompts that are not pooled


@pytest.mark.parametrize("query", ["query: ", f"Instruct: {WEB}\nQuery:"])
@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("qwen3", "mean"), ("bert", "cls"), ("bert", "max")])
def test_the_prompt_is_left_out_of_pooling(tmp_path: Path, kind: str, pooling: str, query: str) -> None:
    bare = build_model(tmp_path / "bare", kind)
    oracle = pipeline(bare, tmp_path / "st", pooling, query=query, document="passage: ", include_prompt=False)
    model = load(tmp_path / "st")
    compare(model, oracle)
    edited(tmp_path / "st" / "1_Pooling" / "config.json", include_prompt=True)
    assert np.abs(load(tmp_path / "st").encode_queries(QUERIES) - model.encode_queries(QUERIES)).max() > 0.01


def test_a_truncated_prompt_leaves_something_to_pool(tmp_path: Path) -> None:
    bare = build_model(tmp_path / "bare", "bert")
    pipeline(bare, tmp_path / "st", "mean", document="a passage of many words: ", include_prompt=False)
    found = load(tmp_path / "st", max_length=8).encode_passages(["tea", "coffee"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


# Exported


def test_what_an_exported_graph_does_not_do_is_refused(tmp_path: Path) -> None:
    bare = build_model(tmp_path / "bare", "bert")
    pipeline(bare, tmp_path / "prompt", "mean", query="q: ", include_prompt=False)
    with pytest.raises(InputError, match="include_prompt: false"):
        export(tmp_path / "prompt", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("distilbert", "GELU"), *[("bert", name) for name in ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")]],
)
def test_dense_modules_are_exported_and_come_back(tmp_path: Path, kind: str, activation: str) -> None:
    from torch import nn

    bare = build_model(tmp_path / "bare", kind, layers=1)  # distilbert is traced, which takes seconds for each layer
    two = (*layers((64, 48), use_residual=True, activation_function=getattr(nn, activation)()), *layers((48, 40)))
    oracle = pipeline(bare, tmp_path / "st", "mean", dense=two)
    export(tmp_path / "st", tmp_path / "out", dtype="float32")
    unpack(tmp_path / "out", tmp_path / "back")
    for folder in ("out", "back"):
        model = load(tmp_path / folder) if folder == "back" else Embedder(tmp_path / folder)
        assert model.dim == 40
        compare(model, oracle)


def test_dense_modules_of_an_exported_folder_are_replaced(tmp_path: Path) -> None:
    bare = build_model(tmp_path / "bare", "bert")
    pipeline(bare, tmp_path / "plain", "mean")
    oracle = pipeline(bare, tmp_path / "st", "mean", dense=layers((64, 64)))
    export(tmp_path / "plain", tmp_path / "without")
    replace_dense(tmp_path / "without", tmp_path / "with", [tmp_path / "st" / "2_Dense"])
    cosines = (Embedder(tmp_path / "with").encode_passages(PASSAGES) * oracle.encode(PASSAGES)).sum(1)
    assert cosines.min() > 0.999
    replace_dense(tmp_path / "with", tmp_path / "again", [])
    first, again = ((tmp_path / name / "model.onnx").read_bytes() for name in ("without", "again"))
    assert first == again, "nothing else has changed"
