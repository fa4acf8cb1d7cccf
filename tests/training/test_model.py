"""The model under training: its attention, its adapters, what is saved of it."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from texts import TEXTS
from tiny_models import build_model, build_tokenizer

from searchkit.models.embedder import Embedder
from searchkit.models.torch_runtime import sees_ahead
from searchkit.training.config import TrainConfig
from searchkit.training.model import ATTENTION, attach_lora, lay_out, prepare, save, torch_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

WAYS = [("mistral", "bidirectional"), ("qwen3", "bidirectional"), ("llama", "bidirectional"), ("bert", "causal")]


def build(folder: Path, kind: str) -> Path:
    if kind != "llama":
        return build_model(folder, kind)
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(folder)
    build_tokenizer(folder)
    return folder


def prepared(base: Path, work: Path, **settings: Any) -> Embedder:
    config = TrainConfig(sources=("none",), base=str(base), out="out", max_length=64, **settings)
    lay_out(config, work)
    return prepare(config, work, device="cpu")


def adapt(embedder: Embedder) -> None:
    """Put adapters on that change something."""
    runtime: Any = embedder.runtime
    runtime.model = attach_lora(runtime.model, 4, None)
    for name, weights in runtime.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    runtime.model.eval()


@pytest.fixture(scope="module", params=WAYS, ids=[f"{kind}-{attention}" for kind, attention in WAYS])
def changed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Embedder, str]:
    """A base, the same with the other attention, and which that is."""
    kind, attention = request.param
    folder = tmp_path_factory.mktemp(kind)
    base = build(folder / "base", kind)
    return base, prepared(base, folder / "work", attention=attention), attention


def first_state(model: Any, last: int, *, padding: int = 0) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8, last, *[0] * padding]])
    with torch.inference_mode():
        states: torch.Tensor = model(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state[0, 0]
    return states


@pytest.mark.parametrize("padding", [0, 3])
def test_the_first_token_sees_the_last_one_or_does_not(changed: tuple[Path, Embedder, str], padding: int) -> None:
    base, other, attention = changed
    for embedder, sees in [(Embedder(base, device="cpu", dtype="float32"), attention == "causal"),
                           (other, attention == "bidirectional")]:  # fmt: skip
        model = torch_model(embedder)
        same = torch.allclose(first_state(model, 9, padding=padding), first_state(model, 10, padding=padding))
        assert same != sees
        assert sees_ahead(model) == sees
        assert embedder.runtime.decoder != sees


def test_saved_and_loaded_it_gives_the_same_vectors_here_and_in_sentence_transformers(
    changed: tuple[Path, Embedder, str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    base, embedder, attention = changed
    save(embedder, tmp_path / "out", card="", default_instruction=None, dims=(), attention=attention)
    expected = embedder.encode_passages(TEXTS)
    loaded = Embedder(tmp_path / "out", device="cpu", dtype="float32")
    np.testing.assert_allclose(loaded.encode_passages(TEXTS), expected, atol=1e-5)
    assert loaded.runtime.decoder == (attention == "causal")
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, expected, atol=1e-4)
    own = Embedder(base, device="cpu", dtype="float32", conventions=loaded.conventions).encode_passages(TEXTS)
    assert np.abs(own - expected).max() > 0.05


def test_padding_sides_and_company_make_no_difference(changed: tuple[Path, Embedder, str]) -> None:
    _, embedder, _ = changed
    crowd = embedder.encode_passages(["tea", *TEXTS])
    np.testing.assert_allclose(embedder.encode_passages(["tea"])[0], crowd[0], atol=1e-5)
    conventions = embedder.conventions
    embedder.conventions = replace(conventions, padding_side="left")
    np.testing.assert_allclose(embedder.encode_passages(["tea", *TEXTS]), crowd, atol=1e-5)
    embedder.conventions = conventions


def test_attention_is_all_that_changes(changed: tuple[Path, Embedder, str]) -> None:
    base, embedder, attention = changed
    eos = attention == "bidirectional"  # as with every decoder that is trained
    assert embedder.conventions == replace(Embedder(base, device="cpu").conventions, max_length=64, append_eos=eos)


def test_an_adapter_brings_its_attention_to_the_base(
    mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = prepared(mistral, tmp_path / "work", attention="bidirectional")
    adapt(embedder)
    # the built-in model's name is no folder, and no hub is asked about it
    torch_model(embedder).peft_config["default"].base_model_name_or_path = "builtin"
    asked: list[str] = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda name, *_: asked.append(name))
    expected = embedder.encode_passages(TEXTS)
    save(embedder, tmp_path / "out", card="", default_instruction=None, dims=(), attention="bidirectional")
    adapter = tmp_path / "out" / "adapter"
    assert not asked
    assert json.loads((adapter / "base_config.json").read_text()) == ATTENTION["bidirectional"]
    adapted = Embedder(mistral, adapter=adapter, device="cpu", dtype="float32", conventions=embedder.conventions)
    np.testing.assert_allclose(adapted.encode_passages(TEXTS), expected, atol=1e-4)


def test_an_adapter_brings_its_settings_to_the_base(mistral: Path, tmp_path: Path) -> None:
    embedder = prepared(mistral, tmp_path / "work", pooling="mean", query_repeats=2)
    adapt(embedder)
    save(embedder, tmp_path / "out", card="", default_instruction="Find tea", dims=(32,))
    whole = Embedder(tmp_path / "out", device="cpu", dtype="float32")
    adapted = Embedder(mistral, adapter=tmp_path / "out" / "adapter", device="cpu", dtype="float32")
    assert adapted.frame == whole.frame
    assert adapted.conventions == whole.conventions
    texts = [*TEXTS, "tea " * 100]
    np.testing.assert_allclose(adapted.encode_passages(texts), whole.encode_passages(texts), atol=1e-4)
    np.testing.assert_allclose(adapted.encode_queries(["tea"]), whole.encode_queries(["tea"]), atol=1e-4)


def test_dense_modules_go_along_as_they_are(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    bare = build_model(tmp_path / "bare", "bert")
    modules = [Transformer(str(bare), max_seq_length=64), Pooling(64, pooling_mode="mean"), Dense(64, 48)]
    SentenceTransformer(modules=modules).save(str(tmp_path / "base"))
    embedder = prepared(tmp_path / "base", tmp_path / "work")
    assert embedder.encode_passages(["tea"]).shape == (1, 48)
    adapt(embedder)
    expected = embedder.encode_passages(TEXTS)
    save(embedder, tmp_path / "out", card="", default_instruction=None, dims=())
    whole = Embedder(tmp_path / "out", device="cpu", dtype="float32")
    adapted = Embedder(tmp_path / "base", adapter=tmp_path / "out" / "adapter", device="cpu", dtype="float32")
    for model in (whole, adapted):
        np.testing.assert_allclose(model.encode_passages(TEXTS), expected, atol=1e-4)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, expected, atol=1e-4)


def test_a_model_that_does_not_support_the_attention_is_refused(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=512, dim=32, n_layers=1, n_heads=2, hidden_dim=32, initializer_range=0.3)
    DistilBertModel(config).save_pretrained(tmp_path / "base")
    build_tokenizer(tmp_path / "base")
    with pytest.raises(ValueError, match=r"causal|padding only"):
        prepared(tmp_path / "base", tmp_path / "work", attention="causal")


def test_a_folder_whose_attention_this_transformers_ignores_is_refused(
    mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = prepared(mistral, tmp_path / "work", attention="bidirectional")
    save(embedder, tmp_path / "out", card="", default_instruction=None, dims=())
    monkeypatch.setattr("searchkit.models.torch_runtime.sees_ahead", lambda _: False)
    with pytest.raises(ValueError, match=r"leaves MistralModel causal.*transformers>=5.2"):
        Embedder(tmp_path / "out", device="cpu")


def test_weights_are_not_copied_to_change_the_attention(mistral: Path, tmp_path: Path) -> None:
    prepared(mistral, tmp_path / "work", attention="bidirectional")
    assert (tmp_path / "work" / "base" / "model.safetensors").is_symlink()
    assert "is_causal" not in json.loads((mistral / "config.json").read_text())


def test_an_end_that_the_model_s_family_wants_is_in_the_saved_tokenizer(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    base = build_model(tmp_path / "tiny-e5-mistral", eos=False)
    embedder = prepared(base, tmp_path / "work")
    assert embedder.tokenize(["tea"])[0][-1] == 2
    save(embedder, tmp_path / "out", card="", default_instruction=None, dims=())
    expected = embedder.encode_passages(TEXTS)
    loaded = Embedder(tmp_path / "out", device="cpu", dtype="float32")
    assert loaded.tokenize(TEXTS) == embedder.tokenize(TEXTS)
    np.testing.assert_allclose(loaded.encode_passages(TEXTS), expected, atol=1e-5)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, expected, atol=1e-4)


def test_users_see_no_warnings_and_bars_of_the_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = build_model(tmp_path / "base", "llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        embedder = prepared(base, tmp_path / "work")
        embedder.runtime.model = attach_lora(torch_model(embedder), 2, None)
    capsys.readouterr()
    save(embedder, tmp_path / "out", card="", default_instruction=None, dims=())
    assert capsys.readouterr() == ("", "")
