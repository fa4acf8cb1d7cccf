from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rerankers import build_reranker
from texts import TEXTS

from searchkit.errors import InputError
from searchkit.models.reranker import Reranker
from searchkit.tasks import WEB_SEARCH

QUERY = "why does bread rise"
LONG = " ".join(TEXTS * 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rerankers")
    return {kind: build_reranker(root / kind, kind) for kind in ("bert", "roberta", "qwen3", "qwen3-lm")}


def asked(query: str, document: str, instruction: str = WEB_SEARCH) -> str:
    """Qwen3-Reranker's form, as its model card has it."""
    return (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_cross_encoders_score_as_in_sentence_transformers(folders: dict[str, Path], kind: str) -> None:
    cross_encoders = pytest.importorskip("sentence_transformers.cross_encoder")
    texts = [*TEXTS, LONG, ""]
    peer = cross_encoders.CrossEncoder(str(folders[kind]), device="cpu", max_length=256)
    expected = peer.predict([(QUERY, text) for text in texts])
    scores = Reranker(folders[kind], device="cpu", dtype="float32").scores(QUERY, texts)
    assert scores.dtype == np.float32
    assert np.ptp(scores) > 0.01
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3-lm"])
@pytest.mark.parametrize("instruction", [None, "Find recipes"])
def test_a_decoder_is_asked_yes_or_no(folders: dict[str, Path], kind: str, instruction: str | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folders[kind])
    loader: Any = AutoModelForCausalLM if kind == "qwen3-lm" else AutoModelForSequenceClassification
    model = loader.from_pretrained(folders[kind]).eval()
    expected = []
    for text in TEXTS:
        form = asked(QUERY, text, instruction or WEB_SEARCH)
        ids = tokenizer(form, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            logits = model(ids).logits
        if kind == "qwen3-lm":
            both = logits[0, -1, tokenizer.convert_tokens_to_ids(["no", "yes"])]
            expected.append(float(both.softmax(0)[1]))
        else:
            expected.append(float(logits[0, 0].sigmoid()))
    scores = Reranker(folders[kind], device="cpu", dtype="float32").scores(QUERY, TEXTS, instruction)
    assert np.ptp(scores) > 0.001
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_another_instruction_changes_the_scores(folders: dict[str, Path]) -> None:
    reranker = Reranker(folders["qwen3-lm"], device="cpu", dtype="float32")
    first, second = (reranker.scores(QUERY, TEXTS, text) for text in ("Find recipes", "Find boats"))
    assert np.abs(first - second).max() > 0.001


def test_a_cross_encoder_ignores_an_instruction_and_says_so_once(folders: dict[str, Path], caplog) -> None:
    reranker = Reranker(folders["bert"], device="cpu")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(reranker.scores(QUERY, TEXTS, "Find it"), reranker.scores(QUERY, TEXTS))
    assert [record.message for record in caplog.records if "without instructions" in record.message] == [
        f"{folders['bert']} is a cross-encoder without instructions: it scores by the query alone"
    ]


@pytest.mark.parametrize("kind", ["bert", "qwen3", "qwen3-lm"])
def test_a_pair_scores_the_same_alone_and_in_a_crowd(folders: dict[str, Path], kind: str) -> None:
    reranker = Reranker(folders[kind], device="cpu", dtype="float32")
    together = reranker.scores(QUERY, [*TEXTS, LONG])
    alone = [reranker.scores(QUERY, [text])[0] for text in [*TEXTS, LONG]]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_long_document_loses_its_end_and_not_the_question(folders: dict[str, Path]) -> None:
    reranker = Reranker(folders["qwen3-lm"], device="cpu", dtype="float32", max_length=500)
    cut, other = (reranker.scores(QUERY, [text])[0] for text in (LONG, LONG + " Nobody knew why."))
    assert cut == other
    assert cut != pytest.approx(reranker.scores("who lends tools", [LONG])[0], abs=1e-5)
    with pytest.raises(InputError, match="max_length is 5; the question around a pair alone takes"):
        Reranker(folders["qwen3-lm"], device="cpu", max_length=5).scores(QUERY, TEXTS)


def test_documents_come_best_first(folders: dict[str, Path]) -> None:
    reranker = Reranker(folders["bert"], device="cpu", dtype="float32")
    texts = [*TEXTS[:5], TEXTS[0]]
    ranked = reranker.rerank(QUERY, texts)
    assert sorted(index for index, _ in ranked) == list(range(6))
    assert [score for _, score in ranked] == sorted(
        (float(each) for each in reranker.scores(QUERY, texts)), reverse=True
    )
    equal = [index for index, _ in ranked if index in (0, 5)]
    assert equal == [0, 5], "equal scores keep the order in which documents came"
    assert reranker.rerank(QUERY, texts, top_n=2) == ranked[:2]
    assert reranker.rerank(QUERY, []) == []
    assert 0 < ranked[0][1] < 1


def test_what_cannot_rerank_is_refused(folders: dict[str, Path], tmp_path: Path, mistral: Path) -> None:
    three = build_reranker(tmp_path / "three", labels=3)
    mute = build_reranker(tmp_path / "mute", "qwen3-lm", marks=False)
    for folder, message in (
        (three, "classifier with 3 labels; expected a cross-encoder, which has one"),
        (mute, "lacks <|im_start|>, yes or no"),
        (mistral, "does not score pairs; expected a cross-encoder"),
        (tmp_path, "cannot be loaded as a model"),
        (tmp_path / "nothing", "there is no model folder"),
    ):
        with pytest.raises(InputError) as caught:
            Reranker(folder, device="cpu")
        assert message in str(caught.value)
    headless = build_reranker(tmp_path / "headless")
    from safetensors.torch import load_file, save_file

    weights = load_file(headless / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "classifier" not in k}, headless / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match=r"lacks 2 of the model's weights, such as classifier\.bias"):
        Reranker(headless, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, TEXTS), "query is"),
        ((QUERY, "one text"), "documents is .*; expected a list of strings"),
        ((QUERY, [None]), "documents is .*; expected a list of strings"),
        ((QUERY, TEXTS, 3), "instruction is"),
        ((QUERY, TEXTS, None, 0), "top_n is 0"),
    ],
)
def test_wrong_arguments_are_refused(folders: dict[str, Path], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reranker(folders["bert"], device="cpu").rerank(*arguments)
