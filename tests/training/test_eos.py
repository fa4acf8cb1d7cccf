"""A decoder that pools at the last token is trained, saved and searched with EOS at the end of every text."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ggufs import smollm2
from texts import SENTENCES, TEXTS
from tiny_models import build_model

from searchkit.engine import SearchEngine
from searchkit.models import loading
from searchkit.models.embedder import Embedder
from searchkit.models.gguf import import_gguf
from searchkit.training.config import TrainConfig
from searchkit.training.paper.base import first_layers
from searchkit.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
EOS, SHORT = 2, {"max_steps": 1, "batch_size": 5}


@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
@pytest.mark.parametrize("bos", [True, False])
def test_a_bare_decoder_is_trained_with_eos_and_sentence_transformers_gives_the_same_vectors(
    config: TrainConfig, tmp_path: Path, kind: str, bos: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    base = build_model(tmp_path / "base", kind, bos=bos, eos=False)
    train(replace(config, base=str(base), **SHORT))
    ours = Embedder(config.out, device="cpu", dtype="float32")
    assert ours.conventions.append_eos
    assert Embedder(base).tokenize(["tea"])[0][-1] != EOS
    texts = [*TEXTS, "tea " * 100]  # EOS survives the cut
    assert {ids[-1] for ids in ours.tokenize(texts)} == {EOS}
    assert {ids[-1] for ids in ours.tokenize_queries(SENTENCES, ["Find it"] * len(SENTENCES))} == {EOS}
    theirs = SentenceTransformer(config.out, device="cpu")
    np.testing.assert_allclose(theirs.encode(texts), ours.encode_passages(texts), atol=1e-4)
    np.testing.assert_allclose(theirs.encode(SENTENCES, prompt_name="query"), ours.encode_queries(SENTENCES), atol=1e-4)


def test_an_index_is_bound_to_it(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, base=str(build_model(tmp_path / "base", eos=False)), **SHORT))
    with SearchEngine.create(tmp_path / "x.index", model=config.out) as engine:
        assert engine.settings["model"]["append_eos"]


@pytest.mark.parametrize(
    ("changes", "eos"),
    [({}, True), ({"append_eos": False}, False), ({"pooling": "mean"}, False),
     ({"pooling": "mean", "append_eos": True}, True), ({"attention": "bidirectional"}, True)],
)  # fmt: skip
def test_the_choice_is_kept_in_the_folder(config: TrainConfig, tmp_path: Path, changes: dict, eos: bool) -> None:
    base = build_model(tmp_path / "base", eos=False)
    train(replace(config, base=str(base), **SHORT, **changes))
    trained = Embedder(config.out)
    assert (trained.conventions.append_eos, trained.tokenize(["tea"])[0][-1] == EOS) == (eos, eos)
    again = replace(config, base=config.out, out=str(tmp_path / "again"), **SHORT)
    train(again)  # an embedder keeps what it was trained with
    assert Embedder(again.out).conventions.append_eos == eos


def edited(folder: Path, **changes: object) -> Path:
    """A model folder whose tokenizer_config.json says something else; None removes a setting."""
    file = folder / "tokenizer_config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [{"pad_token": None}, {"padding_side": "left"}, {"eos_token": {"content": "</s>", "__type": "AddedToken"}},
     {"tokenizer_class": "LlamaTokenizer", "pad_token": None}],
    ids=["no padding token", "padding on the left", "EOS as a record", "a Llama tokenizer"],
)  # fmt: skip
@pytest.mark.parametrize("eos", [True, False])
def test_whatever_the_tokenizer_s_own_settings(config: TrainConfig, tmp_path: Path, changes: dict, eos: bool) -> None:
    from sentence_transformers import SentenceTransformer

    base = edited(build_model(tmp_path / "base", "llama", eos=eos), **changes)
    train(replace(config, base=str(base), **SHORT))
    ours = Embedder(config.out, device="cpu", dtype="float32")
    texts = [*TEXTS, "tea " * 100]
    assert {tuple(ids[-2:]).count(EOS) for ids in ours.tokenize(texts)} == {1}
    theirs = SentenceTransformer(config.out, device="cpu")
    np.testing.assert_allclose(theirs.encode(texts), ours.encode_passages(texts), atol=1e-4)


def test_a_chat_model_ends_with_the_end_of_a_turn(config: TrainConfig, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    base = build_model(tmp_path / "base", "qwen2", bos=False, eos=False)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    names = json.dumps(tokenizer).replace("<unk>", "<|im_start|>").replace("</s>", "<|im_end|>")
    (base / "tokenizer.json").write_text(names)
    edited(base, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<s>", unk_token=None)
    train(replace(config, base=str(base), **SHORT))
    ours = Embedder(config.out, device="cpu", dtype="float32")
    assert {ids[-1] for ids in ours.tokenize(TEXTS)} == {ours.runtime.tokenizer.token_to_id("<|im_end|>")} == {EOS}
    theirs = SentenceTransformer(config.out, device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), ours.encode_passages(TEXTS), atol=1e-4)


def test_the_adapter_on_the_base_gives_the_same_vectors(config: TrainConfig, tmp_path: Path) -> None:
    base = build_model(tmp_path / "base", eos=False)
    train(replace(config, base=str(base), **SHORT))
    adapted = Embedder(base, adapter=Path(config.out) / "adapter", device="cpu", dtype="float32")
    assert adapted.tokenize(["tea"])[0][-1] == EOS
    merged = Embedder(config.out, device="cpu", dtype="float32")
    np.testing.assert_allclose(adapted.encode_passages(TEXTS), merged.encode_passages(TEXTS), atol=1e-4)


def test_a_real_language_model_gets_its_eos(config: TrainConfig, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    pytest.importorskip("gguf", reason="reading GGUF files needs gguf")
    import_gguf(smollm2(), tmp_path / "smollm2")
    first_layers(tmp_path / "smollm2", tmp_path / "base", 2)  # quick, with the real tokenizer
    train(replace(config, base=str(tmp_path / "base"), **SHORT))
    ours = Embedder(config.out, device="cpu", dtype="float32")
    assert {ids[-1] for ids in ours.tokenize(TEXTS)} == {ours.runtime.tokenizer.token_to_id("<|im_end|>")}
    theirs = SentenceTransformer(config.out, device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), ours.encode_passages(TEXTS), atol=1e-4)


def test_a_family_s_name_does_not_overrule_a_folder_that_says_no(config: TrainConfig, tmp_path: Path) -> None:
    base = build_model(tmp_path / "e5-mistral-tiny", eos=False)
    out = tmp_path / "my-e5-mistral"
    train(replace(config, base=str(base), out=str(out), append_eos=False, **SHORT))
    assert not Embedder(out).conventions.append_eos
    settings = out / "config_sentence_transformers.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "append_eos": "yes"}))
    with pytest.raises(ValueError, match="append_eos 'yes'; expected true or false"):
        Embedder(out)


def test_an_untrained_decoder_is_warned_about_once(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loading._warn_untrained.cache_clear()
    bare = build_model(tmp_path / "bare", eos=False)
    with caplog.at_level(logging.WARNING):
        train(replace(config, base=str(bare), **SHORT))  # which is the cure
        Embedder(config.out)
        Embedder(build_model(tmp_path / "bert", "bert"))
        Embedder(build_model(tmp_path / "tiny-qwen3-embedding", "qwen3"))
        assert "not trained to embed" not in caplog.text
        for _ in range(2):
            Embedder(bare)
    assert caplog.text.count(f"{bare} is a language model that was not trained to embed") == 1
