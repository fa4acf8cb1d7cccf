from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import searchkit
from searchkit.models import conventions as module
from searchkit.models.conventions import FAMILIES, Conventions, conventions_of, fingerprint
from searchkit.tasks import WEB_SEARCH


def saved(
    folder: Path,
    pooling: dict[str, Any] | None = None,
    *,
    kinds: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
    settings: dict[str, Any] | None = None,
    files: dict[str, Any] | None = None,
) -> Path:
    """A folder as sentence-transformers lays it out, without the weights."""
    modules = []
    for number, kind in enumerate(kinds):
        path = "" if kind == "Transformer" else f"{number}_{kind}"
        (folder / path).mkdir(parents=True, exist_ok=True)
        modules.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
    (folder / "modules.json").write_text(json.dumps(modules))
    if "Pooling" in kinds:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode": "mean"}))
    if settings is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    for name, values in (files or {}).items():
        (folder / name).write_text(json.dumps(values))
    return folder


def read(folder: Path, name: str = "a/model", *, decoder: bool = False) -> Conventions:
    return conventions_of(folder, name, decoder=decoder)


# Pooling


@pytest.mark.parametrize(
    ("mode", "meant"), [("lasttoken", "last"), ("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", "max"),
                        ("mean_sqrt_len_tokens", "mean"), ("weightedmean_tokens", "weighted-mean")],
)  # fmt: skip
def test_the_old_pooling_form_is_one_flag_a_mode(tmp_path: Path, mode: str, meant: str) -> None:
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    flags = {f"pooling_mode_{other}": other == mode for other in modes}
    folder = saved(tmp_path, {"word_embedding_dimension": 64, **flags, "include_prompt": True})
    assert read(folder).pooling == meant


@pytest.mark.parametrize(
    ("mode", "meant"),
    [("lasttoken", "last"), ("cls", "cls"), ("mean", "mean"), ("weightedmean", "weighted-mean"), (["max"], "max")],
)
def test_the_new_pooling_form_names_the_mode(tmp_path: Path, mode: Any, meant: str) -> None:
    assert read(saved(tmp_path, {"embedding_dimension": 64, "pooling_mode": mode})).pooling == meant


@pytest.mark.parametrize(
    "pooling",
    [{"pooling_mode": ["cls", "mean"]}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
     {"pooling_mode_mean_tokens": False}, {"pooling_mode": "attention"}],
)  # fmt: skip
def test_pooling_of_another_or_of_several_kinds_is_refused(tmp_path: Path, pooling: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"1_Pooling.config\.json asks for pooling .*; expected exactly one of cls"):
        read(saved(tmp_path, pooling))


def test_pooling_without_the_prompt_is_read(tmp_path: Path) -> None:
    assert read(saved(tmp_path / "a", {"pooling_mode": "mean", "include_prompt": False})).pool_prompt is False
    assert read(saved(tmp_path / "b", {"pooling_mode": "mean", "include_prompt": True})).pool_prompt
    with pytest.raises(ValueError, match="leaves the prompt out of a weighted mean"):
        read(saved(tmp_path / "c", {"pooling_mode": "weightedmean", "include_prompt": False}))


@pytest.mark.parametrize("kinds", [("Transformer", "Pooling", "LayerNorm"), ("Transformer", "WeightedLayerPooling")])
def test_other_modules_are_refused_by_name(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"modules\.json names a {kinds[-1]} module; expected Transformer, Pooling"):
        read(saved(tmp_path, kinds=kinds))


@pytest.mark.parametrize(
    "kinds",
    [("Transformer", "Pooling", "Pooling"), ("Transformer", "Pooling", "Normalize", "Dense"), ("Transformer",)],
)
def test_modules_in_another_order_are_refused(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"modules\.json lists .*; expected Transformer, Pooling, any number of Dense"):
        read(saved(tmp_path, kinds=kinds))


def test_what_the_folder_says_comes_before_the_table(tmp_path: Path) -> None:
    assert read(saved(tmp_path, {"pooling_mode": "cls"}), "intfloat/e5-mistral-7b-instruct").pooling == "cls"


def test_a_bare_folder_pools_by_its_kind_of_attention(tmp_path: Path) -> None:
    assert read(tmp_path, decoder=True).pooling == "last"
    assert read(tmp_path, decoder=False).pooling == "mean"


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(ValueError, match=r"modules\.json is not valid JSON .*; download the model again"):
        read(tmp_path)


# Prompts


@pytest.mark.parametrize("colon", ["Query:", "Query: "])
def test_a_prompt_that_holds_an_instruct_template_becomes_one(tmp_path: Path, colon: str) -> None:
    prompt = f"Instruct: Find the duplicate question\n{colon}"
    found = read(saved(tmp_path, settings={"prompts": {"query": prompt, "document": ""}}))
    assert found.instructed == "Instruct: {instruction}\n" + colon + "{query}"
    assert found.default_instruction == "Find the duplicate question"
    assert (found.query_prefix, found.document_prefix) == ("", "")


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({"search_query": "q: ", "search_document": "d: ", "clustering": "c: "}, "q: ", "d: "),
        ({"retrieval.query": "q: ", "retrieval.passage": "d: "}, "q: ", "d: "),
        ({"Retrieval-query": "q: ", "Retrieval-document": "d: ", "STS": "s: "}, "q: ", "d: "),
        ({"query": "q: ", "search_query": "other: ", "corpus": "d: "}, "q: ", "d: "),
        ({"s2p_query": "q: ", "s2s_query": "s: "}, "q: ", ""),
        ({"clustering": "c: "}, "", ""),
    ],
)
def test_prompts_are_found_by_name(tmp_path: Path, prompts: dict[str, str], query: str, document: str) -> None:
    found = read(saved(tmp_path, settings={"prompts": prompts}))
    assert (found.query_prefix, found.document_prefix) == (query, document)


def test_a_default_prompt_stands_in_for_the_one_that_is_not_named(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "q: ", "any": "a: "}, "default_prompt_name": "any"}
    found = read(saved(tmp_path, settings=settings))
    assert (found.query_prefix, found.document_prefix) == ("q: ", "a: ")


@pytest.mark.parametrize("key", ["document", "passage"])
def test_plain_prompts_are_prefixes(tmp_path: Path, key: str) -> None:
    found = read(saved(tmp_path, settings={"prompts": {"query": "query: ", key: "passage: "}}))
    assert (found.query_prefix, found.document_prefix) == ("query: ", "passage: ")
    assert found.default_instruction is None


def test_a_saved_query_prefix_is_not_hidden_by_the_family_s_instruction(tmp_path: Path) -> None:
    found = read(saved(tmp_path, settings={"prompts": {"query": "query: "}}), "me/e5-mistral-tuned")
    assert (found.query_prefix, found.default_instruction) == ("query: ", None)


@pytest.mark.parametrize(
    "settings", [{}, {"prompts": {}}, {"prompts": None}, {"prompts": {"query": "", "document": ""}}]
)
def test_empty_prompts_leave_the_family_s(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = read(saved(tmp_path, settings=settings), "intfloat/e5-base-v2")
    assert (found.query_prefix, found.document_prefix) == ("query: ", "passage: ")


# Similarity


@pytest.mark.parametrize(
    ("similarity", "kinds", "warned"),
    [(None, 2, False), ("cosine", 2, False), ("dot", 2, True), ("euclidean", 2, True), ("manhattan", 2, True),
     ("dot", 3, False), ("euclidean", 3, False), ("manhattan", 3, True)],
)  # fmt: skip
def test_a_similarity_that_ranks_otherwise_than_the_cosine_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, similarity: str | None, kinds: int, warned: bool
) -> None:
    modules = ("Transformer", "Pooling", "Normalize")[:kinds]
    read(saved(tmp_path, kinds=modules, settings={"similarity_fn_name": similarity}))
    assert ("compared by their cosine" in caplog.text) == warned


# Lengths


def test_matryoshka_s_least_width_is_read(tmp_path: Path) -> None:
    assert read(saved(tmp_path, settings={"matryoshka_dims": [768, 64, 256]})).smallest_dim == 64
    assert read(saved(tmp_path / "other")).smallest_dim is None


@pytest.mark.parametrize(
    ("files", "length"),
    [({"sentence_bert_config.json": {"max_seq_length": 256}}, 256),  # up to sentence-transformers 5
     ({"tokenizer_config.json": {"model_max_length": 128}}, 128),  # from 6 on
     ({"sentence_bert_config.json": {"max_seq_length": 256}, "tokenizer_config.json": {"model_max_length": 512}}, 256),
     ({"sentence_bert_config.json": {"max_seq_length": None}}, 512),
     ({"tokenizer_config.json": {"model_max_length": int(1e30)}}, 512)],
)  # fmt: skip
def test_lengths_are_read_in_either_layout(tmp_path: Path, files: dict[str, Any], length: int) -> None:
    assert read(saved(tmp_path, files=files)).max_length == length


# Families


@pytest.mark.parametrize(
    ("name", "pooling", "space"),
    [("intfloat/e5-mistral-7b-instruct", "last", " "), ("Qwen/Qwen3-Embedding-0.6B", "last", ""),
     ("Salesforce/SFR-Embedding-Mistral", "last", " "), ("intfloat/multilingual-e5-large-instruct", "mean", " ")],
)  # fmt: skip
def test_instructed_families_have_their_own_template(tmp_path: Path, name: str, pooling: str, space: str) -> None:
    found = read(tmp_path, name, decoder=pooling == "last")
    assert (found.pooling, found.append_eos) == (pooling, pooling == "last")
    assert found.instructed == "Instruct: {instruction}\nQuery:" + space + "{query}"
    assert (found.default_instruction, found.document_prefix) == (WEB_SEARCH, "")


@pytest.mark.parametrize("name", ["intfloat/e5-base-v2", "intfloat/multilingual-e5-small"])
def test_plain_e5_models_take_prefixes_and_no_instruction(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name)
    assert (found.query_prefix, found.document_prefix) == ("query: ", "passage: ")
    assert found.default_instruction is None


def test_no_instructed_family_puts_anything_before_a_document() -> None:
    assert all(not family.document_prefix for family in FAMILIES.values() if family.default_instruction)


# Fingerprints


@pytest.fixture
def copy(mistral: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mistral, tmp_path / "copy"))


def change_weight(folder: Path, tensor: str, place: tuple[int, int]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[tensor][place] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_fingerprint_does_not_change_with_the_place(mistral: Path, copy: Path) -> None:
    (copy / "README.md").write_text("Notes change no vector.")
    assert fingerprint(copy) == fingerprint(mistral)


def test_a_fingerprint_changes_with_one_weight(mistral: Path, copy: Path) -> None:
    change_weight(copy, "layers.1.mlp.up_proj.weight", (40, 30))
    assert fingerprint(copy) != fingerprint(mistral)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_fingerprint_changes_with_config_and_tokenizer(mistral: Path, copy: Path, name: str) -> None:
    values = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**values, "note": "changed"}))
    assert fingerprint(copy) != fingerprint(mistral)


@pytest.mark.parametrize("place", [(0, 0), (511, 63)])
def test_big_files_are_sampled_at_both_ends_of_every_tensor(
    copy: Path, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAMPLED_BYTES", 1000)
    before = fingerprint(copy)
    change_weight(copy, "embed_tokens.weight", place)  # 128 KiB, so that there is a middle
    assert fingerprint(copy) != before


def test_big_files_are_not_read_whole(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fingerprint(copy)
    monkeypatch.setattr(module, "_SAMPLED_BYTES", 1000)
    sampled = fingerprint(copy)
    change_weight(copy, "embed_tokens.weight", (256, 0))
    assert fingerprint(copy) == sampled != whole


def test_pickled_weights_count_only_where_there_are_no_others(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    old = fingerprint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"other weights")
    assert fingerprint(tmp_path) != old
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    new = fingerprint(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    assert fingerprint(tmp_path) == new


def test_an_adapter_has_a_fingerprint_too(tmp_path: Path) -> None:
    save_file({"lora_A": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 32}')
    before = fingerprint(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 64}')
    assert fingerprint(tmp_path) != before


def test_an_exported_model_s_weights_are_in_its_fingerprint(tmp_path: Path) -> None:
    shutil.copytree(Path(searchkit.__file__).parent / "builtin", tmp_path, dirs_exist_ok=True)
    before, weights = fingerprint(tmp_path), tmp_path / "model.onnx"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert fingerprint(tmp_path) != before
