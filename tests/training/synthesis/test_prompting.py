from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from searchkit.training.synthesis.answers import ANSWERS
from searchkit.training.synthesis.prompting import FOLDER, load_mix, load_prompt, quota

PROMPTS = sorted(file.stem for file in FOLDER.glob("*.toml") if file.stem != "mix")


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_that_ships_fills_every_place(name: str) -> None:
    prompt = load_prompt(name)
    given = dict.fromkeys(
        (
            "task",
            "language",
            "target_language",
            "count",
            "passage",
            "passages",
            "kinds",
            "examples",
            "query",
            "instruction",
            "shape",
        ),
        "x",
    )
    text = "\n".join(message["content"] for message in prompt.messages(given | prompt.draw(random.Random(0))))
    assert not re.search(r"\{[a-z_]+\}", text)
    assert prompt.answer in ANSWERS
    assert re.fullmatch(rf"{name}@\d+-[0-9a-f]{{8}}", prompt.label)
    fields = [kind.name for kind in prompt.kinds] or ANSWERS[prompt.answer].model_fields
    assert all(f'"{field}"' in text for field in fields)  # servers without schemas go by the words


def test_what_is_filled_in_is_not_searched_for_places() -> None:
    prompt = load_prompt("short-short")
    drawn = prompt.draw(random.Random(0))
    (message,) = prompt.messages({**drawn, "task": "{language} {nothing}", "language": "{task}"})
    assert "{language} {nothing}" in message["content"]


def test_a_place_without_a_value_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"placeholder \{[a-z_]+\}; the known ones are: task"):
        load_prompt("long-short").messages({"task": "x"})


def test_an_edited_prompt_has_another_label(tmp_path: Path) -> None:
    text = (FOLDER / "sts.toml").read_text("utf-8")
    (tmp_path / "sts.toml").write_text(text.replace("the same matter", "one matter"))
    (tmp_path / "bitext.toml").write_bytes((FOLDER / "bitext.toml").read_bytes().replace(b"\n", b"\r\n"))
    assert load_prompt("sts", tmp_path).label != load_prompt("sts").label
    assert load_prompt("bitext", tmp_path).label == load_prompt("bitext").label
    assert load_prompt("short-long", tmp_path) == load_prompt("short-long")


@pytest.mark.parametrize("text", ["version = 1", 'version = "x"\nanswer = "pair"\nmessages = 3', "version ="])
def test_a_broken_prompt_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "sts.toml").write_text(text)
    with pytest.raises(ValueError, match=r"sts\.toml"):
        load_prompt("sts", tmp_path)


def test_the_mix_is_the_papers() -> None:
    mix = load_mix()
    assert len(mix.languages) == 93
    assert sum(mix.languages.values()) == pytest.approx(100)
    assert sorted(mix.languages.values(), reverse=True)[:2] == [43.1, 3.0]
    assert sum(mix.groups.values()) == 507


def test_a_quota_holds_in_every_stretch() -> None:
    weights = {"a": 5.0, "b": 3.0, "c": 0.25}
    drawn = list(islice(quota(weights, random.Random(1)), 3300))
    assert drawn[:200] == list(islice(quota(weights, random.Random(1)), 200))
    for last in (33, 330, 3300):
        counts = Counter(drawn[:last])
        for name, weight in weights.items():
            assert abs(counts[name] - last * weight / 8.25) <= 2


def test_rare_names_come_in_short_stretches_as_often_as_they_should() -> None:
    mix = load_mix()
    drawn = Counter(name for seed in range(300) for name in islice(quota(mix.languages, random.Random(seed)), 13))
    rare = sum(count for name, count in drawn.items() if mix.languages[name] < 1)
    assert rare / (300 * 13) == pytest.approx(0.198, abs=0.02)


def test_one_language_has_no_translations() -> None:
    mix = load_mix()
    assert mix.only(languages={"en": 1}).groups.keys() == mix.groups.keys() - {"bitext"}
    assert mix.only(languages={"en": 1, "de": 1}).groups == mix.groups
    assert mix.only({"bitext": 1}, {"en": 1}).groups == {"bitext": 1}  # asked for, and refused where it is written


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan"])
def test_a_kind_without_a_weight_is_named(tmp_path: Path, weight: str) -> None:
    text = (FOLDER / "queries.toml").read_text("utf-8")
    (tmp_path / "queries.toml").write_text(text.replace("weight = 3", f"weight = {weight}"))
    with pytest.raises(ValueError, match=rf"queries\.toml: the kind question has weight {weight}; it must be"):
        load_prompt("queries", tmp_path)


@pytest.mark.parametrize("line", ["sts = 99", "pl = 3.0", "others = 19.8"])
@pytest.mark.parametrize("weight", ["-1", "inf", "nan"])
def test_a_mix_of_impossible_weights_is_named(tmp_path: Path, line: str, weight: str) -> None:
    text, name = (FOLDER / "mix.toml").read_text("utf-8"), line.partition(" ")[0]
    (tmp_path / "mix.toml").write_text(text.replace(line, f"{name} = {weight}", 1))
    with pytest.raises(ValueError, match=rf"mix\.toml: {name} has weight {weight}; it must be a number"):
        load_mix(tmp_path)


def test_a_weight_of_0_leaves_a_group_out(tmp_path: Path) -> None:
    text = (FOLDER / "mix.toml").read_text("utf-8")
    (tmp_path / "mix.toml").write_text(text.replace("sts = 99", "sts = 0"))
    assert load_mix(tmp_path).groups.keys() == load_mix().groups.keys() - {"sts"}
