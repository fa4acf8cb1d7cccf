"""Settings of the wrong type, from Python or from a damaged file, are errors with a message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from searchkit.errors import InputError
from searchkit.training.adaptation.config import AdaptConfig
from searchkit.training.config import TrainConfig
from searchkit.training.synthesis.prompting import load_prompt
from searchkit.training.synthesis.settings import SynthesizeConfig

TRAIN = {"sources": ("a.jsonl",), "base": "b", "out": "o"}


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (TrainConfig, {**TRAIN, "batch_size": "12"}, "batch_size is '12'; expected int"),
        (TrainConfig, {**TRAIN, "epochs": True}, "epochs is True; expected int"),
        (TrainConfig, {**TRAIN, "margin": "a"}, "margin is 'a'; expected float | None"),
        (TrainConfig, {**TRAIN, "matryoshka": [64]}, r"matryoshka is \[64\]; expected tuple\[int, ...\]"),
        (TrainConfig, {**TRAIN, "sources": (1,)}, r"sources is \(1,\); expected tuple\[str, ...\]"),
        (SynthesizeConfig, {"out": "o", "model": "m", "count": None}, "count is None; expected int"),
        (SynthesizeConfig, {"out": "o", "model": "m", "groups": {"sts": "1"}}, "groups is {'sts': '1'}; expected"),
        (AdaptConfig, {"index": "i", "pairs": (Path("p"),), "out": Path("o")}, "index is 'i'; expected Path"),
    ],
)
def test_a_value_of_another_type_is_named_with_the_one_that_is_expected(make: Any, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("|", r"\|")):
        make(**values)


def test_numbers_that_fit_are_accepted() -> None:
    config = TrainConfig(**{**TRAIN, "temperature": 1, "margin": 0, "matryoshka": (8,)})  # type: ignore[arg-type]
    assert (config.temperature, config.margin) == (1, 0)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sources": 1, "base": "b", "out": "o"}', "\x80"])
def test_a_damaged_file_of_settings_is_an_error_with_its_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "training.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"training.json|sources is 1"):
        TrainConfig.load(file)


def test_settings_come_back_from_their_file(tmp_path: Path) -> None:
    config = TrainConfig(("a.jsonl@0.5,mixed",), "b", "ö", matryoshka=(64, 32), margin=-0.5, append_eos=False)
    config.save(tmp_path / "training.json")
    assert TrainConfig.load(tmp_path / "training.json") == config
    values = json.loads((tmp_path / "training.json").read_text("utf-8"))
    (tmp_path / "training.json").write_text(json.dumps({**values, "unheard_of": 1}))
    with pytest.raises(InputError, match=r"does not know \(unheard_of\)"):
        TrainConfig.load(tmp_path / "training.json")


GOOD = 'version = 1\nanswer = "triple"\n[messages]\nuser = "Say {x}"\n[choices]\nx = ["a"]\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("version = 1", 'version = "one"'), ("version = 1", ""), ('"triple"', '"unheard of"'), ('["a"]', '"abc"'),
        ('["a"]', "[]"), ('[messages]\nuser = "Say {x}"', "messages = 3"), ('user = "Say {x}"', ""),
        ("[choices]", "[[choices]]"),
        ('x = ["a"]', 'x = ["a"]\n[kinds]\nquestion = 3'),
    ],
)  # fmt: skip
def test_a_broken_prompt_is_an_error_with_its_file(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "sts.toml"
    file.write_text(GOOD)
    load_prompt("sts", tmp_path)
    assert before in GOOD
    file.write_text(GOOD.replace(before, after))
    with pytest.raises(InputError, match=r"sts\.toml: "):
        load_prompt("sts", tmp_path)
