from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from processes import run_two
from texts import SENTENCES, TEXTS
from tiny_models import build_model

from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import read_corpus
from searchkit.training.batches import Batch
from searchkit.training.config import TrainConfig
from searchkit.training.dataset import Example
from searchkit.training.log import Leaking, TrainReport, draw, moving_averages
from searchkit.training.model import attach_lora, trainable
from searchkit.training.teacher import Teacher
from searchkit.training.train import train

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


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
    assert "rows rejected" in (out / "README.md").read_text()
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
    logged = [json.loads(line)["step"] for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 9))
    unbroken, resumed = (Embedder(folder, device="cpu") for folder in (tmp_path / "unbroken", config.out))
    np.testing.assert_allclose(unbroken.encode_passages(TEXTS), resumed.encode_passages(TEXTS), atol=1e-5)


def test_a_run_does_not_resume_with_other_settings(config: TrainConfig) -> None:
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


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """One document and one query, both of which are in `pairs` too."""
    folder = tmp_path / "dev"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "d", "title": "", "text": TEXTS[0]}) + "\n")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "THE bridge  over the river"}) + "\n")
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    return folder


def test_queries_of_the_dev_set_among_the_examples_stop_the_run(config: TrainConfig, dev: Path) -> None:
    config, told = replace(config, dev=str(dev)), []
    with pytest.raises(ValueError, match=r"shares 1 queries .* --allow-leaks"):
        train(config, on_leaks=told.append)
    report = train(config, allow_leaks=True)
    assert told == [report.leaks] == [[Leaking(config.sources[0], 10, 1, 1, 0, "The bridge over the river")]]
    assert report.dev == [(8, 1.0)]
    assert "| `pairs.jsonl` | 10 | 1 | 1 | 0 |" in (Path(config.out) / "README.md").read_text()


def test_a_text_of_a_few_words_is_a_leak_of_its_own_class(config: TrainConfig, dev: Path, tmp_path: Path) -> None:
    (dev / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "Thank you!"}) + "\n")
    polite = tmp_path / "polite.jsonl"
    rows = [{"query": "thank  you!", "positive": "You are welcome."}, {"query": "Which bridge?", "positive": TEXTS[0]}]
    polite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = train(replace(config, sources=(*config.sources, str(polite)), dev=str(dev), max_steps=1))
    counts = [(leaking.questions, leaking.documents, leaking.low_entropy) for leaking in report.leaks]
    assert counts == [(0, 1, 0), (0, 1, 1)]


def test_the_command_shows_what_is_shared_before_it_trains(config: TrainConfig, dev: Path) -> None:
    arguments = ["train", *config.sources, "--base", config.base, "--out", config.out, "--dev", str(dev)]
    arguments += ["--max-steps", "1", "--batch-size", "5", "--max-length", "64", "--rank", "4"]
    refused = CliRunner().invoke(main, [*arguments, "--precision", "float32"])
    assert refused.exit_code == 1
    table = [line.split() for line in refused.stderr.splitlines()]
    assert ["examples", "of", "all", "queries", "documents", "few", "words"] in table
    assert ["pairs.jsonl", "10", "1", "1", "0"] in table
    done = CliRunner().invoke(main, [*arguments, "--precision", "float32", "--allow-leaks"])
    assert done.exit_code == 0
    assert "nDCG@10" in done.stdout
    assert "examples with queries" in done.stderr
    assert "documents" not in done.stdout


@pytest.mark.usefixtures("pictures")
def test_logs_and_pictures_tell_of_every_step(config: TrainConfig, dev: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = train(replace(config, dev=str(dev), evaluate_every=3), allow_leaks=True)
    out = Path(config.out)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == report.losses
    assert [(row["step"], row["dev_ndcg@10"]) for row in rows if "loss" not in row] == report.dev
    assert [step for step, _ in report.dev] == [3, 6, 8]
    events = EventAccumulator(str(out / "logs"))
    events.Reload()
    kinds = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "peak_memory_mib")
    assert set(events.Tags()["scalars"]) == {*(f"train/{kind}" for kind in kinds), "dev/ndcg@10"}
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    np.testing.assert_allclose(losses, report.losses, rtol=1e-6)
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    assert rates == sorted(rates, reverse=True)
    assert max(rates) == pytest.approx(config.learning_rate)
    assert all(event.value > 0 for kind in kinds for event in events.Scalars(f"train/{kind}"))
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    drawn = (out / "training.svg").read_text("utf-8")
    assert all(words in drawn for words in ("loss", "nDCG@10", "step"))


@pytest.mark.usefixtures("pictures")
def test_without_matplotlib_and_tensorboard_it_trains_and_says_what_is_not_written(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("matplotlib.figure", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    train(replace(config, max_steps=1))
    out = Path(config.out)
    assert (out / "model.safetensors").is_file()
    assert not (out / "training.png").exists()
    assert not (out / "logs").exists()
    assert "pip install 'searchkit[plots]'" in caplog.text
    assert "pip install 'searchkit[train]'" in caplog.text


def test_the_picture_smooths_a_long_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    losses = [(step, 1 / step) for step in range(1, 101)]
    draw(tmp_path / "training", TrainReport(losses=losses), title="long")
    assert "mean of 20 steps" in (tmp_path / "training.svg").read_text("utf-8")
    averages = moving_averages(losses)
    assert [step for step, _ in averages] == list(range(20, 101))
    assert averages[-1][1] == pytest.approx(np.mean([loss for _, loss in losses[-20:]]))


def test_examples_with_instructions_of_their_own_share_a_batch_if_the_source_is_mixed(
    config: TrainConfig, tmp_path: Path
) -> None:
    file = tmp_path / "synthetic.jsonl"
    rows = [{"query": text[:9], "positive": text, "instruction": f"Task {n}"} for n, text in enumerate(SENTENCES)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="has no batch"):
        train(replace(config, sources=(str(file),), out=str(tmp_path / "apart"), negatives_per_query=0))
    mixed = replace(config, sources=(f"{file}@0.5,mixed",), epochs=1, negatives_per_query=0)
    assert train(mixed).steps == 1


def test_a_teacher_s_instructed_queries_are_embedded_together_and_once(mistral: Path, embedder: Embedder) -> None:
    told = [True, True, False, True, True, True]
    instructions = ["Find it", "Find a reason", "Find it", None, "", "Find it"]
    examples = tuple(
        Example(text[:12], text, (), instruction) for text, instruction in zip(SENTENCES[:6], instructions, strict=True)
    )
    teacher = Teacher(str(mistral), device="cpu", max_length=embedder.max_length, follows=False)
    encode, calls = teacher._embedder.encode_queries, []
    teacher._embedder.encode_queries = lambda texts, told: calls.append(len(texts)) or encode(texts, told)
    batch = Batch(examples, ((TEXTS[-1],), *[()] * 5))
    rows = teacher.rows(batch, told)
    assert calls == [6, 2, 1]
    queries = []
    for example, use in zip(examples, told, strict=True):
        row = embedder.encode_queries([example.query], "")[0]
        if use and example.instruction:
            row = row + embedder.encode_queries([example.query], example.instruction)[0]
        queries.append(row / np.linalg.norm(row))
    expected = np.concatenate([queries, embedder.encode_passages([*SENTENCES[:6], TEXTS[-1]])])
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    np.testing.assert_array_equal(teacher.rows(batch, told), rows)
    assert calls == [6, 2, 1]


def test_a_bidirectional_decoder_is_trained_and_saved_as_one(config: TrainConfig, mistral: Path) -> None:
    train(replace(config, attention="bidirectional", max_steps=2))
    out = Path(config.out)
    trained = Embedder(out, device="cpu", dtype="float32")
    assert not trained.runtime.decoder
    assert trained.conventions.pooling == "last"
    assert "is_causal: false" in (out / "README.md").read_text()
    settings = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(mistral.resolve())
    adapted = Embedder(mistral, adapter=out / "adapter", device="cpu", dtype="float32", conventions=trained.conventions)
    np.testing.assert_allclose(trained.encode_passages(TEXTS), adapted.encode_passages(TEXTS), atol=1e-4)


def process(rank: int, folder: str) -> None:
    """One of two, which train together: first each with a whole model, then each with a part of one."""
    from accelerate.state import AcceleratorState, GradientState

    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = TrainConfig.load(Path(folder) / "together.json")
    told: list[int] = []
    for kind in ("ddp", "fsdp"):
        if kind == "fsdp":
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            _allow_fsdp_on_processors()
        report = train(replace(config, out=f"{folder}/{kind}"), on_step=lambda report, _: told.append(report.steps))
        (Path(folder) / f"{kind}-{rank}.json").write_text(json.dumps([report.losses, report.dev, report.tokens]))
    assert told == ([] if rank else [1, 2, 3] * 2)
    torch.distributed.destroy_process_group()


def _allow_fsdp_on_processors() -> None:
    """accelerate keeps FSDP for GPUs and the like, though torch has it for processors too."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    begin = AcceleratorState.__init__

    def begin_in_parts(self: Any, *arguments: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        begin(self, *arguments, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_in_parts
    launched = yaml.safe_load((ROOT / "docs" / "accelerate" / "fsdp.yaml").read_text())["fsdp_config"]
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ.update({name.upper(): str(value) for name, value in launched.items()})


@pytest.fixture(scope="module")
def together(
    mistral: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory, drawn: Callable[..., object]
) -> Path:
    """A folder with what one process makes of three steps (alone), and what two do (ddp, fsdp)."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "dev" / "qrels").mkdir(parents=True)
    (folder / "dev" / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": str(n), "title": "", "text": text}) + "\n" for n, text in enumerate(TEXTS))
    )
    (folder / "dev" / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "what bees dance for"}) + "\n")
    (folder / "dev" / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\t5\t1\n")
    # Five examples by two are three and two: other numbers of texts, and of chunks.
    config = TrainConfig(
        sources=(str(pairs),), base=str(mistral), out=str(folder / "alone"), epochs=2, max_steps=3, batch_size=5,
        chunk=2, learning_rate=1e-3, temperature=0.1, lora_rank=4, max_length=64, precision="float32", instructed=0.5,
        dev=f"{folder / 'dev'}", evaluate_every=2,
    )  # fmt: skip
    config.save(folder / "together.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("searchkit.training.log.draw", drawn)  # as the other processes do
        report = train(config)
    (folder / "alone-0.json").write_text(json.dumps([report.losses, report.dev, report.tokens]))
    run_two(process, folder)
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_make_what_one_makes_of_the_same_batches(together: Path, mistral: Path, kind: str) -> None:
    from safetensors.torch import load_file

    base, expected, found = (
        load_file(folder / "model.safetensors") for folder in (mistral, together / "alone", together / kind)
    )
    assert expected.keys() == found.keys()
    assert max(float((expected[name] - weights).abs().max()) for name, weights in base.items()) > 1e-3
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=1e-5)
    losses, dev, tokens = json.loads((together / "alone-0.json").read_text())
    for rank in (0, 1):
        theirs = json.loads((together / f"{kind}-{rank}.json").read_text())
        np.testing.assert_allclose(theirs[0], losses, rtol=1e-4)
        assert theirs[1:] == [dev, tokens]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_of_two_processes_one_writes(together: Path, kind: str) -> None:
    names = {kind: {file.name for file in (together / kind).iterdir()} for kind in ("alone", kind)}
    assert names[kind] == names["alone"]
    rows = [json.loads(line)["step"] for line in (together / kind / "log.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 2, 3, 3]
    assert len(list((together / kind / "logs").iterdir())) == 1


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "accelerate").iterdir()), ids=lambda file: file.stem)
def test_the_launch_files_are_ones_that_accelerate_reads(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[file.stem]
    assert config.mixed_precision == "no"


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
    with pytest.raises(ValueError, match=r"has another format; expected"):
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
