"""`searchkit synthesize`: files, budgets, keys and messages."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import commands
import pytest
from fake_llm import FakeLLM, Reply, draw_of, echoing, written
from synthetic import config, rows

from searchkit.engine import SearchEngine
from searchkit.training.synthesis.synthesize import synthesize

call = partial(commands.call, "synthesize")


def test_the_command_writes_examples_report_and_figure(tmp_path: Path, engine: SearchEngine) -> None:
    with FakeLLM(echoing) as server:
        said = call(
            engine.store.folder, "--out", tmp_path / "pairs.jsonl", "--model", "m", "--base-url", server.url,
            "--count", 9, "--price-in", 1, "--price-out", 2,
        ).stdout  # fmt: skip
    report = json.loads((tmp_path / "pairs.report.json").read_text())
    assert f"9 of 9 examples, from {report['answers']} answers" in said
    assert report["cost"] == pytest.approx((report["tokens_in"] + 2 * report["tokens_out"]) / 1e6)
    for name in ("pairs.png", "pairs.svg", "pairs.dark.png", "pairs.dark.svg"):
        assert (tmp_path / name).stat().st_size > 5000


def test_a_budget_ends_a_run_cleanly_and_a_higher_one_resumes_it(tmp_path: Path) -> None:
    with FakeLLM() as server:
        settings = {"groups": {"sts": 1}, "max_output_tokens": 50, "check_language": False}
        part = synthesize(config(server, tmp_path, **settings, max_tokens=5000))
        assert part.stopped == "the budget is used up"
        assert 0 < part.examples < 60
        assert part.tokens_in + part.tokens_out <= 5000
        assert len(rows(tmp_path / "pairs.jsonl")) == part.examples
        whole = synthesize(config(server, tmp_path, **settings, max_cost=1.0, price_in=5, price_out=5))
    assert (whole.stopped, whole.examples) == ("", 60)
    assert max(server.asked.values()) == 1


def test_the_key_is_sent_and_appears_nowhere_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = "sk-very-secret-0123456789"

    def echo(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        if draw_of(asked).random() < 0.5 and not seen:
            return Reply(f"key {headers['authorization']} is tired", status=500)
        return Reply(json.dumps(written(asked) | {"S3": f"you sent {headers['authorization']}"}))

    def refuse(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        return Reply(f"wrong key {headers['authorization']}", status=401)

    caplog.set_level("DEBUG")
    said = ""
    for script, code in ((echo, 0), (refuse, 1)):
        with FakeLLM(script) as server:
            said += call(
                "--out", tmp_path / f"{code}.jsonl", "--model", "m", "--count", 8, "--groups", "sts",
                "--base-url", server.url, "--languages", "en", code=code,
                env={"OPENAI_API_KEY": key, "SEARCHKIT_DEBUG": ""},
            ).output  # fmt: skip
            assert server.headers["authorization"] == f"Bearer {key}"
    assert "the server answered 401: wrong key Bearer [key]; is the key in the environment the right one?" in said
    assert key not in said
    assert key not in caplog.text
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 8
    assert not [file for file in files if key.encode() in file.read_bytes()]


def test_a_password_in_the_servers_address_is_not_written(tmp_path: Path) -> None:
    with FakeLLM() as server:
        address = server.url.replace("//", "//me:very-secret@")
        synthesize(config(server, tmp_path, base_url=address, groups={"sts": 1}, count=3, check_language=False))
    assert json.loads((tmp_path / "pairs.work" / "config.json").read_text())["base_url"] == server.url
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"very-secret" in file.read_bytes()]


def test_a_password_is_sent_and_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def echo(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        return Reply(json.dumps(written(asked) | {"S3": f"you sent {headers['authorization']}"}))

    caplog.set_level("DEBUG")
    with FakeLLM(echo) as server:
        address = server.url.replace("//", "//me:very-secret%21@")
        synthesize(config(server, tmp_path, base_url=address, groups={"sts": 1}, count=3, check_language=False))
        assert server.headers["authorization"] == "Basic bWU6dmVyeS1zZWNyZXQh"  # me:very-secret!
    assert "HTTP Request: POST http://127.0.0.1" in caplog.text
    for secret in ("very-secret", "bWU6dmVyeS1zZWNyZXQh"):
        assert secret not in caplog.text
        assert not [file for file in tmp_path.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


@pytest.mark.parametrize("key", ["sk-proj-hush0123456789", "gsk_hush0123456789"])
def test_a_key_given_as_the_name_of_its_variable_is_not_shown(tmp_path: Path, key: str) -> None:
    said = call(
        "--out", tmp_path / "x.jsonl", "--model", "m", "--base-url", "http://127.0.0.1:1/v1", "--key-variable", key,
        code=1,
    ).output  # fmt: skip
    assert "environment variable" in said
    assert key not in said
    assert not list(tmp_path.iterdir())


def test_without_a_key_no_request_is_sent_to_openai(tmp_path: Path) -> None:
    said = call("--out", tmp_path / "x.jsonl", "--model", "m", code=1, env={"OPENAI_API_KEY": ""}).output
    assert "no key in the environment variable OPENAI_API_KEY" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--groups", "long-lunch"], 1, 'no task group is called "long-lunch"'),
        (["--languages", "en=x"], 2, "no name with a weight"),
        (["--max-cost", "3"], 1, "prices"),
        (["--groups", "bitext", "--languages", "en"], 1, "at least two languages"),
        (["--groups", "sts=inf,bitext"], 1, "the task group sts has weight inf; it must be a number above 0"),
        (["--max-cost", "nan", "--price-in", "1"], 2, "nan is not a finite number"),
        (["--price-in", "nan"], 1, "price_in is nan"),
        (["--poll", "-5"], 1, "poll is -5"),
        (["--timeout", "0"], 1, "timeout is 0.0; expected a number above 0"),
        (["--base-url", "notaurl"], 1, 'base_url "notaurl" is not the address of a server'),
        (["--base-url", ""], 1, "is not the address of a server"),
        (["--base-url", "http://x/v1?key=hush"], 1, 'base_url "http://x/v1" has a query string'),
        (["--model", ""], 1, "the model has no name"),
        (["--out", "x.jsonl.gz"], 1, "x.jsonl.gz: examples are written uncompressed"),
        (["--kinds", "question"], 1, "kinds: applies only with an index; omit it, or run with an index"),
        (["--judge", "--round-trip", "3"], 1, "round_trip, judge: applies only with an index"),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    with FakeLLM() as server:
        said = call(
            "--out", tmp_path / "x.jsonl", "--model", "m", "--base-url", server.url, *arguments, code=code
        ).output
    assert message in " ".join(said.split())


def test_a_server_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with FakeLLM() as server:
        pass  # its port is closed now
    said = call(
        "--out", tmp_path / "x.jsonl", "--model", "m", "--base-url", server.url, "--retries", 1, code=1
    ).output  # fmt: skip
    assert "nothing was written: the server does not answer (given up after 2 tries: connection lost)" in said


def test_why_there_are_no_tasks_is_said(tmp_path: Path) -> None:
    with (
        FakeLLM(lambda asked, seen, headers: Reply("out of memory", status=500)) as server,
        pytest.raises(
            ValueError,
            match=r"no task for the group .* \(no answer: given up after 1 tries: status 500: out of memory\)",
        ),
    ):
        synthesize(config(server, tmp_path, retries=0))
    with (
        FakeLLM(lambda asked, seen, headers: Reply('{"S1": "a"}')) as server,
        pytest.raises(ValueError, match=r"not of the schema \([0-9]+\); the last: not of the schema: S2"),
    ):
        synthesize(config(server, tmp_path, groups={"sts": 1}, count=3))


@pytest.mark.parametrize("row", [{"query": "how come bees dance", "positive_id": "d5"},
                                 {"_id": "q1", "text": "how come bees dance"}])  # fmt: skip
def test_queries_of_any_sort_set_the_tone(tmp_path: Path, engine: SearchEngine, row: dict[str, str]) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps(row) + "\n")
    with FakeLLM(echoing) as server:
        synthesize(config(server, tmp_path, count=2, samples=str(own), instruction="Find", round_trip=0), engine)
        assert all("- how come bees dance" in body["messages"][0]["content"] for body in server.bodies)
        own.write_text('{"question": "how come"}')
        with pytest.raises(ValueError, match=r'own.jsonl:1: expected a query as "query" or "text"; the keys are "que'):
            synthesize(config(server, tmp_path, samples=str(own)), engine)
        with pytest.raises(ValueError, match=r"groups: applies only without an index; omit it"):
            synthesize(config(server, tmp_path, groups={"sts": 1}), engine)


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("mine")
    said = call("--out", tmp_path / "x.jsonl", "--model", "m", "--base-url", "http://127.0.0.1:1/v1", code=1).output
    assert "was not written by synthesize" in said
    assert (tmp_path / "x.jsonl").read_text() == "mine"
