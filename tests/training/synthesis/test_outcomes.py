"""The report says by group and prompt how much of what was asked for is usable, and why the rest is not."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_llm import FakeLLM, Reply, draw_of, echoing, phrase, written
from forked import Words
from synthetic import config, rows

from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.records import Document
from searchkit.training.synthesis.journal import Journal
from searchkit.training.synthesis.journal import Reply as Kept
from searchkit.training.synthesis.outcomes import Outcomes
from searchkit.training.synthesis.synthesize import synthesize


def sloppy(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
    """Keywords are right, questions are copied, titles are missing, and a fifth of the answers is cut off."""
    reply = echoing(asked, seen, headers)
    answer = json.loads(reply.content or "")
    if "queries" not in answer:
        return reply
    if draw_of(asked).random() < 0.2:
        return Reply((reply.content or "")[:40], finish="length")
    passage = asked["messages"][-1]["content"].partition("<passage>\n")[2].split()
    kept = [one for one in answer["queries"] if one["kind"] != "title"]
    for one in kept:
        if one["kind"] == "question":
            one["query"] = " ".join(passage[:8])
    return Reply(json.dumps({"queries": kept}))


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    rng = random.Random(5)
    with SearchEngine.create(tmp_path / "x.index", model=Words(), chunk_tokens=0) as made:
        made.add(Document(f"d{n}", phrase(rng, 30)) for n in range(40))
        yield made


def test_every_query_that_was_asked_for_is_accounted_for(tmp_path: Path, engine: SearchEngine) -> None:
    settings = {"kinds": ("keywords", "question", "title"), "count": 18, "tries": 2, "check_language": False}
    with FakeLLM(sloppy) as server:
        report = synthesize(config(server, tmp_path, **settings), engine)
    bodies = [body for body in server.bodies if body["response_format"]["json_schema"]["name"] == "queries"]
    cut = sum(draw_of(body).random() < 0.2 for body in bodies)
    assert 0 < cut < len(bodies)
    found = {outcome.group: outcome for outcome in report.outcomes.all()}
    assert set(found) == {"keywords", "question", "title"}
    assert {outcome.asked for outcome in found.values()} == {len(bodies)}
    assert found["question"].refused == {"cut at the most tokens": cut, "copied from the passage": len(bodies) - cut}
    assert found["title"].refused == {"cut at the most tokens": cut, "not written": len(bodies) - cut}
    assert found["keywords"].usable == len(bodies) - cut >= report.examples == 18
    assert found["keywords"].prompt.startswith("queries@")
    assert not any("tasks" in outcome.prompt for outcome in found.values())
    whole = report.outcomes.total()
    assert (whole.asked, whole.usable) == (3 * len(bodies), len(bodies) - cut)
    assert whole.share == pytest.approx(whole.usable / whole.asked)
    assert Counter(one["kind"] for one in rows(tmp_path / "pairs.jsonl")) == {"keywords": 18}


def test_examples_beyond_the_wanted_number_are_usable_too(tmp_path: Path, engine: SearchEngine) -> None:
    with FakeLLM(echoing) as server:
        report = synthesize(config(server, tmp_path, count=4, check_language=False, round_trip=0), engine)
    assert report.examples == 4
    assert report.outcomes.total().usable == 6  # two answers of three


def test_groups_and_tasks_without_an_index(tmp_path: Path) -> None:
    def partly(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        bad = draw_of(asked).random() < 0.3 and asked["response_format"]["json_schema"]["name"] == "triple"
        return Reply("{" if bad else json.dumps(written(asked)))

    groups = {"groups": {"sts": 1, "short-long": 1}, "count": 20, "tries": 1, "check_language": False}
    with FakeLLM(partly) as server:
        report = synthesize(config(server, tmp_path, **groups), None)
    found = {outcome.group: (outcome.asked, outcome.usable) for outcome in report.outcomes.all()}
    assert found == {"short-long": (10, 10), "sts": (10, report.examples - 10)}
    assert report.outcomes.total().asked == 20
    assert 10 < report.examples < 20


def test_the_command_prints_a_row_for_each_group_and_writes_it_as_json(tmp_path: Path, engine: SearchEngine) -> None:
    with FakeLLM(sloppy) as server:
        command = [
            "synthesize", str(engine.store.folder), "--model", "m", "--base-url", server.url, "--count", "9",
            "--out", str(tmp_path / "pairs.jsonl"), "--kinds", "keywords,question", "--any-language",
            "--round-trip", "0",
        ]  # fmt: skip
        result = CliRunner().invoke(main, command)
        again = CliRunner().invoke(main, [*command, "--format", "json"])
    assert result.exit_code == again.exit_code == 0, result.output
    report = json.loads((tmp_path / "pairs.report.json").read_text())
    assert json.loads(again.stdout) == report
    of = {outcome["group"]: outcome for outcome in report["outcomes"]}
    assert set(of) == {"keywords", "question", "all"}
    shown = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    for name, outcome in of.items():
        assert outcome["asked"] == outcome["usable"] + sum(outcome["refused"].values())
        assert f"{outcome['share']:.0%}" in shown[name]
        assert all(f"{reason} {number}" in shown[name] for reason, number in outcome["refused"].items())
    per = report["per_example"]
    assert per["tokens_out"] == pytest.approx(report["tokens_out"] / report["examples"], abs=0.05)
    assert f"per example: {per['tokens_in']:,.0f} tokens in" in result.stdout
    assert report["waited"] > 0


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "answers.db") as old:
        old.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, prompt TEXT NOT NULL, model TEXT NOT NULL, "
                    "status TEXT NOT NULL, text TEXT NOT NULL, tokens_in INTEGER NOT NULL, "
                    "tokens_out INTEGER NOT NULL, estimated INTEGER NOT NULL)")  # fmt: skip
        old.execute("INSERT INTO answers VALUES (?, 'p', 'm', 'ok', 'text', 3, 4, 0)", (b"key",))
    old.close()
    with Journal(tmp_path) as journal:
        assert journal.get(b"key") == Kept("ok", "text", 3, 4)
        journal.put(b"new", "p", "m", Kept("ok", "text", 3, 4, seconds=1.5))
        assert (journal.answers, journal.seconds) == (2, 1.5)
    with Journal(tmp_path) as journal:
        assert journal.seconds == 1.5


def test_outcomes_are_listed_by_prompt_and_then_by_group() -> None:
    outcomes = Outcomes()
    outcomes.usable("title", "a@1")
    outcomes.refused("claim", "b@1", "duplicate")
    outcomes.usable("claim", "a@1")
    assert [(outcome.prompt, outcome.group) for outcome in outcomes.all()] == [
        ("a@1", "claim"), ("a@1", "title"), ("b@1", "claim")
    ]  # fmt: skip
    assert outcomes.total().to_json()["refused"] == {"duplicate": 1}
