"""The same command once more: nothing that is there gets lost, and nothing is paid for a second time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM, Reply, draw_of, echoing, obedient, phrase, written

from searchkit.engine import SearchEngine
from searchkit.records import Document
from searchkit.training.synthesis.synthesize import SynthesizeConfig, synthesize


def config(server: FakeLLM, folder: Path, **changes: Any) -> SynthesizeConfig:
    values = {"out": str(folder / "pairs.jsonl"), "model": "m", "base_url": server.url, "count": 60, "backoff": 0.01,
              "check_language": False}  # fmt: skip
    return SynthesizeConfig(**{**values, **changes})


def lines(folder: Path) -> list[str]:
    return (folder / "pairs.jsonl").read_text("utf-8").splitlines()


def fill(folder: Path, count: int = 60, seed: int = 5) -> Path:
    """An index of texts that share hardly a word."""
    rng = random.Random(seed)
    with SearchEngine.create(folder) as made:
        made.add(Document(f"d{n}", phrase(rng, 16)) for n in range(count))
    return folder


def partly(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
    """A third of the examples is of no use, so that their slots are filled in later rounds."""
    bad = draw_of(asked).random() < 0.35 and asked["response_format"]["json_schema"]["name"] != "tasks"
    return Reply("{}" if bad else json.dumps(written(asked)))


def unpaid(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
    return Reply("no such key", status=401)


@pytest.mark.parametrize("groups", [{"sts": 1}, {"short-long": 1, "sts": 1}])
@pytest.mark.parametrize("end", ["no budget", "no key"])
def test_a_run_that_is_stopped_leaves_out_nothing_that_was_there(tmp_path: Path, groups: Any, end: str) -> None:
    with FakeLLM(partly) as server:
        first = synthesize(config(server, tmp_path, groups=groups, likeness=1))
        before = lines(tmp_path)
        spent = first.tokens_in + first.tokens_out
        if end == "no key":
            server.script = unpaid
        limit = spent if end == "no budget" else None
        again = synthesize(config(server, tmp_path, groups=groups, likeness=1, count=80, max_tokens=limit))
    assert len(before) == 60
    assert again.stopped == "the budget is used up" if limit else again.stopped.startswith("the server answered 401")
    assert set(lines(tmp_path)) >= set(before)
    assert again.examples == len(lines(tmp_path)) == 60


def test_more_rounds_repeat_no_request(tmp_path: Path) -> None:
    with FakeLLM(partly) as server:
        synthesize(config(server, tmp_path, groups={"sts": 1}, likeness=1))
        first = sum(server.asked.values())
        report = synthesize(config(server, tmp_path, groups={"sts": 1}, likeness=1, tries=6))
        assert sum(server.asked.values()) == first
    assert (report.examples, report.asked) == (60, 0)


def test_tasks_keep_their_places_when_a_call_that_failed_is_answered(tmp_path: Path) -> None:
    calls: dict[str, int] = {}
    failing = True

    def second_fails(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        if asked["response_format"]["json_schema"]["name"] == "tasks":
            place = calls.setdefault(json.dumps(asked["messages"]), len(calls))
            if failing and place == 1:
                return Reply("broken", status=500)
        return obedient(asked, seen, headers)

    with FakeLLM(second_fails) as server:
        settings = {"groups": {"short-long": 1}, "count": 150, "retries": 1, "concurrency": 4}
        first = synthesize(config(server, tmp_path, **settings))
        before = lines(tmp_path)
        failing = False
        again = synthesize(config(server, tmp_path, **settings))
        assert (first.examples, again.examples, again.asked) == (150, 150, 0)
        assert lines(tmp_path) == before
        more = synthesize(config(server, tmp_path, **settings | {"count": 190}))
    assert more.asked <= 40 + 2  # the examples, and the tasks for them
    assert lines(tmp_path)[:150] == before


def test_tasks_of_a_run_that_was_stopped_are_not_final(tmp_path: Path) -> None:
    settings = {"groups": {"short-long": 1}, "count": 100, "concurrency": 1, "max_output_tokens": 400}
    with FakeLLM() as server:
        part = synthesize(config(server, tmp_path, **settings, max_tokens=3000))
        assert part.stopped == "the budget is used up"
        assert 0 < part.examples < 100
        whole = synthesize(config(server, tmp_path, **settings))
    assert whole.examples == 100
    assert len({json.loads(line)["instruction"] for line in lines(tmp_path)}) == 50


def add(folder: Path) -> None:
    with SearchEngine.open(folder, writable=True) as engine:
        engine.add([Document("new", "zebra " * 3 + phrase(random.Random(1), 16))])


def delete(folder: Path) -> None:
    with SearchEngine.open(folder, writable=True) as engine:
        engine.delete([f"d{n}" for n in range(0, 60, 20)])
        engine.compact()


@pytest.mark.parametrize(("change", "fewest"), [(add, 60), (delete, 50)])
def test_a_changed_index_needs_new_requests_only_where_it_changed(
    tmp_path: Path, change: Callable[[Path], None], fewest: int
) -> None:
    index = fill(tmp_path / "x.index")
    with FakeLLM(echoing) as server:
        with SearchEngine.open(index) as engine:
            first = synthesize(config(server, tmp_path, round_trip=0), engine)
        before = set(lines(tmp_path))
        change(index)
        with SearchEngine.open(index) as engine:
            again = synthesize(config(server, tmp_path, round_trip=0), engine)
    assert first.examples == again.examples == 60
    assert again.asked <= 3  # for the documents that are gone
    assert len(before & set(lines(tmp_path))) >= fewest


def test_another_index_is_not_taken_for_the_first(tmp_path: Path) -> None:
    with FakeLLM(echoing) as server:
        for seed in (1, 2):
            server.bodies.clear()
            with SearchEngine.open(fill(tmp_path / f"{seed}.index", 20, seed)) as engine:
                report = synthesize(config(server, tmp_path, round_trip=0, count=30), engine)
            names = [body["response_format"]["json_schema"]["name"] for body in server.bodies]
            assert names.count("corpus_tasks") == 1  # it thinks of instructions that fit this collection
            assert report.examples == 30


def test_documents_deleted_during_a_run_are_left_out(tmp_path: Path) -> None:
    index = fill(tmp_path / "x.index")
    gone: list[str] = []

    def deleting(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        if not gone and asked["response_format"]["json_schema"]["name"] == "queries":
            gone.extend(f"d{n}" for n in range(0, 60, 3))
            with SearchEngine.open(index, writable=True) as writer:
                writer.delete(gone)
                writer.compact()
        return echoing(asked, seen, headers)

    with FakeLLM(deleting) as server:
        with SearchEngine.open(index) as engine:
            report = synthesize(config(server, tmp_path, round_trip=0), engine)
        assert report.examples == len(lines(tmp_path)) > 30
        assert not {json.loads(line)["positive_id"] for line in lines(tmp_path)} & set(gone)
        with SearchEngine.open(index) as engine:
            again = synthesize(config(server, tmp_path, round_trip=0, count=report.examples), engine)
    assert again.examples == report.examples
    assert again.asked <= 3
