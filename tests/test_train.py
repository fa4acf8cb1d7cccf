from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, TEXTS, build_model

from searchkit.corpus import read_corpus
from searchkit.embedder import Embedder
from searchkit.engine import SearchEngine
from searchkit.training.config import TrainConfig
from searchkit.training.model import attach_lora, trainable
from searchkit.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"query": " ".join(text.split()[:5]), "positive": text, "negatives": [TEXTS[-1 - n]], "instruction": "Find it"}
        for n, text in enumerate(SENTENCES)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    return file


@pytest.fixture
def config(mistral: Path, pairs: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        sources=(str(pairs),), base=str(mistral), out=str(tmp_path / "out"), epochs=4, batch_size=5, chunk=64,
        learning_rate=1e-2, temperature=0.1, lora_rank=4, max_length=64, precision="float32",
    )  # fmt: skip


def test_training_lowers_the_loss_and_counts_what_it_did(config: TrainConfig, pairs: Path) -> None:
    report = train(replace(config, epochs=15))
    first, last = (np.mean([loss for _, loss in part]) for part in (report.losses[:4], report.losses[-4:]))
    assert last < first / 2
    assert (report.steps, report.examples, report.refused) == (30, 10, 1)
    assert report.tokens > 0
    assert "not JSON" in (Path(config.out) / "rejects.jsonl").read_text()


def test_what_it_writes_loads_here_and_in_sentence_transformers(config: TrainConfig) -> None:
    from sentence_transformers import SentenceTransformer

    train(config)
    out = Path(config.out)
    ours = Embedder(out, device="cpu", dtype="float32")
    np.testing.assert_allclose(
        ours.encode_passages(TEXTS), SentenceTransformer(str(out), device="cpu").encode(TEXTS), atol=1e-4
    )
    assert ours.conventions.default_instruction == "Find it"
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert "rows refused" in (out / "README.md").read_text()
    assert TrainConfig.load(out / "training.json") == config


def test_the_adapter_beside_it_gives_the_same_vectors(config: TrainConfig, mistral: Path) -> None:
    train(config)
    merged = Embedder(config.out, device="cpu", dtype="float32")
    adapted = Embedder(
        mistral, adapter=Path(config.out) / "adapter", device="cpu", dtype="float32", conventions=merged.conventions
    )
    np.testing.assert_allclose(merged.encode_passages(TEXTS), adapted.encode_passages(TEXTS), atol=1e-4)


def test_a_chunked_batch_trains_like_a_whole_one(config: TrainConfig, tmp_path: Path) -> None:
    whole = train(replace(config, out=str(tmp_path / "whole"), chunk=64))
    chunked = train(replace(config, out=str(tmp_path / "chunked"), chunk=3))
    np.testing.assert_allclose([x for _, x in whole.losses], [x for _, x in chunked.losses], rtol=1e-3)


def test_a_resumed_run_ends_where_an_unbroken_one_does(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, checkpoint_every=3)
    train(replace(config, out=str(tmp_path / "unbroken")))

    class Stop(Exception):
        pass

    def stop(report, planned):  # type: ignore[no-untyped-def]
        if report.steps == 5:
            raise Stop

    with pytest.raises(Stop):
        train(config, on_step=stop)
    report = train(config)
    assert report.steps == 8
    unbroken, resumed = (Embedder(folder, device="cpu") for folder in (tmp_path / "unbroken", config.out))
    np.testing.assert_allclose(unbroken.encode_passages(TEXTS), resumed.encode_passages(TEXTS), atol=1e-5)


def test_a_run_with_other_settings_is_not_gone_on_with(config: TrainConfig) -> None:
    train(config)
    with pytest.raises(ValueError, match="other settings"):
        train(replace(config, seed=1))
    with pytest.raises(ValueError, match="finished run"):
        train(config)


def test_distillation_draws_a_causal_student_to_its_teacher(tmp_path: Path, pairs: Path) -> None:
    teacher = build_model(tmp_path / "teacher", "bert")
    config = TrainConfig(
        sources=(str(pairs),), base=str(teacher), out=str(tmp_path / "student"), epochs=20, batch_size=5, chunk=64,
        learning_rate=3e-3, teacher=str(teacher), contrast=0, lora_rank=0, attention="causal", pooling="weighted-mean",
        max_length=64, precision="float32", instructed=0.5,
    )  # fmt: skip
    train(config)
    wanted = Embedder(teacher, device="cpu", dtype="float32").encode_passages(SENTENCES)
    student = Embedder(config.out, device="cpu", dtype="float32")
    before = Embedder(
        tmp_path / "student", device="cpu", dtype="float32", conventions=student.conventions
    ).encode_passages(SENTENCES)
    assert student.conventions.pooling == "weighted-mean"
    assert student.runtime.decoder
    assert (before * wanted).sum(1).mean() > 0.9


def test_queries_of_the_dev_set_among_the_examples_stop_the_run(config: TrainConfig, tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    (dev / "qrels").mkdir(parents=True)
    (dev / "corpus.jsonl").write_text(json.dumps({"_id": "d", "title": "", "text": TEXTS[0]}) + "\n")
    (dev / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "THE bridge  over the river"}) + "\n")
    (dev / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    config = replace(config, dev=str(dev))
    with pytest.raises(ValueError, match=r"shares 1 queries .* --allow-leaks"):
        train(config)
    report = train(config, allow_leaks=True)
    assert [(found.questions, found.documents) for found in report.leaks] == [(1, 1)]
    assert report.dev == [(8, 1.0)]


def test_lora_on_all_linear_layers_of_mistral_7b_has_the_paper_s_number_of_weights() -> None:
    from transformers import MistralConfig, MistralModel

    with torch.device("meta"):
        model = attach_lora(MistralModel(MistralConfig()), 16, None)
    assert trainable(model) == 41_943_040


def test_no_layer_stays_without_an_adapter(mistral: Path) -> None:
    from transformers import AutoModel

    model = attach_lora(AutoModel.from_pretrained(mistral), 4, None)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_modules() if name.endswith(".lora_A")}
    assert len(adapted) == 2 * 7


def test_settings_that_teach_nothing_are_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        replace(config, contrast=0)


def test_rows_without_an_instruction_get_one_of_their_source_s(config: TrainConfig, tmp_path: Path) -> None:
    plain, told = tmp_path / "plain.jsonl", tmp_path / "told.json"
    plain.write_text("".join(json.dumps({"query": text[:9], "positive": text}) + "\n" for text in SENTENCES))
    told.write_text(json.dumps({"plain": ["Find what begins so"]}))
    config = replace(config, sources=(str(plain),), instructions=str(told), negatives_per_query=0)
    train(config)
    assert Embedder(config.out, device="cpu").conventions.default_instruction == "Find what begins so"
    told.write_text(json.dumps({"plain": "not a list"}))
    with pytest.raises(ValueError, match=r"write it so"):
        train(replace(config, out=str(tmp_path / "other")))


def test_ids_stand_for_documents_of_a_corpus_or_an_index(config: TrainConfig, mistral: Path, tmp_path: Path) -> None:
    named = tmp_path / "named.jsonl"
    named.write_text(
        "".join(json.dumps({"query": text[:9], "positive_id": str(n)}) + "\n" for n, text in enumerate(TEXTS[:10]))
    )
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    with SearchEngine.create(tmp_path / "notes.index", model=mistral) as engine:
        engine.add(read_corpus(corpus))
    config = replace(config, sources=(str(named),), max_steps=1)
    losses = [
        train(replace(config, corpus=str(tmp_path / name), out=str(tmp_path / name) + ".out")).losses
        for name in ("corpus.jsonl", "notes.index")
    ]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="give the corpus that the ids belong to"):
        train(config)


def test_kept_texts_are_only_held_where_the_teacher_has_them(config: TrainConfig, mistral: Path, pairs: Path) -> None:
    """The student is its own teacher, and has nothing to learn from them."""
    kept = replace(config, sources=(f"{pairs}@kept",), teacher=str(mistral), teacher_follows=True, max_steps=1)
    assert abs(train(kept).losses[0][1]) < 1e-4
    with pytest.raises(ValueError, match="there is no teacher"):
        replace(kept, teacher=None)
