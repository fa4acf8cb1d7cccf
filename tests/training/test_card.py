from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from searchkit.cli.main import main
from searchkit.training.card import model_card
from searchkit.training.config import TrainConfig
from searchkit.training.log import Leaking, TrainReport

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def command(card: str) -> list[str]:
    """The words of the command in a card."""
    line = next(line for line in card.splitlines() if line.strip().startswith("searchkit train "))
    return shlex.split(line)[1:]


def test_the_command_in_the_card_is_the_run_once_more(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(
        config, max_steps=1, matryoshka=(32, 16), margin=-0.5, pooling="mean", lora_alpha=3, query_repeats=2,
        learning_rate=3e-5, out=str(tmp_path / "my model"),
    )  # fmt: skip
    done = CliRunner().invoke(main, command(model_card(config, TrainReport())))
    assert done.exit_code == 0, done.stderr
    assert TrainConfig.load(Path(config.out) / "training.json") == config
    card = (Path(config.out) / "README.md").read_text()
    assert all(f"| {field.name} | " in card for field in fields(config))
    assert "| learning_rate | 3e-05 |" in card
    assert "training.json" not in card  # which does not go with it everywhere


def test_a_run_that_went_on_with_leaks_says_so_in_its_command(config: TrainConfig) -> None:
    report = TrainReport(leaks=[Leaking("pairs.jsonl", 10, 1, 0, 0)])
    assert "--allow-leaks" in command(model_card(replace(config, dev="dev"), report))
    assert "--allow-leaks" not in command(model_card(config, TrainReport()))


def test_a_run_that_no_command_makes_has_none_in_its_card(config: TrainConfig) -> None:
    card = model_card(replace(config, teacher="minilm", teacher_follows=True), TrainReport())
    assert "searchkit train" not in card
    assert "| teacher_follows | true |" in card
