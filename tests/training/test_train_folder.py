"""The folder of a run: with which settings and data a run may resume."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from searchkit.training.config import TrainConfig
from searchkit.training.log import TrainLog, TrainReport
from searchkit.training.run_folder import RunFolder
from searchkit.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Stop(Exception):
    pass


def stop(report: TrainReport, planned: int) -> None:
    if report.steps == 3:
        raise Stop


def test_a_run_that_made_no_step_may_start_again_with_other_settings(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mistyped"):
        train(replace(config, dev=str(tmp_path / "mistyped")))
    with pytest.raises(ValueError, match="dims are"):  # in its first step
        train(replace(config, matryoshka=(999,)))
    right = replace(config, max_steps=1)
    assert train(right).steps == 1
    assert TrainConfig.load(Path(config.out) / "training.json") == right


def test_a_run_that_was_killed_before_its_first_file_was_complete_may_start_again(config: TrainConfig) -> None:
    Path(config.out).mkdir()
    (Path(config.out) / "training.json.tmp").write_text("{")
    assert RunFolder(Path(config.out)).claim(config) is None


def test_a_run_that_made_a_step_is_not(config: TrainConfig) -> None:
    with pytest.raises(Stop):
        train(replace(config, checkpoint_every=0), on_step=stop)
    with pytest.raises(ValueError, match="other settings"):
        train(replace(config, checkpoint_every=0, seed=1))


def test_a_run_does_not_resume_when_its_data_have_changed(config: TrainConfig, tmp_path: Path) -> None:
    file, corpus = tmp_path / "named.jsonl", tmp_path / "corpus.jsonl"
    words = ["one tea", "two teas", "three teas", "four teas"]
    file.write_text("".join(json.dumps({"query": text, "positive_id": text[:3]}) + "\n" for text in words))
    corpus.write_text("".join(json.dumps({"id": text[:3], "text": f"Here is {text}."}) + "\n" for text in words))
    config = replace(
        config, sources=(*config.sources, str(file)), corpus=str(corpus), epochs=2, checkpoint_every=2
    )  # fmt: skip
    with pytest.raises(Stop):
        train(config, on_step=stop)
    before = corpus.read_text()
    corpus.write_text(before.replace("four teas.", "five teas."))
    with pytest.raises(ValueError, match=r"named\.jsonl.* changed"):
        train(config)
    corpus.write_text(before)
    assert train(config).steps == 6


def test_a_log_whose_last_line_is_torn_is_continued(tmp_path: Path) -> None:
    report = TrainReport(steps=3, losses=[(3, 0.5)])
    whole = "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in (1, 2))
    (tmp_path / "log.jsonl").write_text(whole + '{"step": 3, "lo')
    with TrainLog(tmp_path, report) as log:
        log.step(report, learning_rate=1e-3, gradient_norm=1.0)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 1), ("temperature", 0), ("temperature", math.nan), ("learning_rate", -1e-4),
        ("learning_rate", math.inf), ("contrast", -1), ("contrast", math.nan), ("teacher_weight", -1),
        ("matryoshka", (64, 0)), ("negatives_per_query", -1),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_at_once(config: TrainConfig, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        replace(config, teacher="minilm", **{name: value})
