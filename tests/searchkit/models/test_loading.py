"""Models by their names: adapters, what is no model, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from searchkit.models.embedder import Embedder


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


def test_the_torch_extra_is_named_when_it_is_missing(mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'searchkit\[torch\]'"):
        Embedder(mistral)
