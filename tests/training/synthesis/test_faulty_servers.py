"""Servers that misbehave, and runs that are killed: nothing is lost, and nothing paid for twice."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM, Reply, draw_of, echoing, phrase, written
from forked import Server, Words, serve
from synthetic import config, rows

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.training.synthesis.synthesize import Progress, SynthesisReport, SynthesizeConfig, synthesize

TIMEOUT = 2.0  # seconds; on a crowded machine even an answer that is there may take one
KILLS = int(os.environ.get("SEARCHKIT_KILLS", "3"))
GERMAN = "Der Zug nach Leipzig hatte heute wieder eine Stunde Verspätung, weil die Strecke hinter Dessau gesperrt war."


class Misbehaving:
    """Everything that goes wrong, by chance that depends on the request alone; what can be overcome, only at first.

    An answer that comes too late comes so three times only, or every round would last as long as the timeout.
    """

    def __init__(self) -> None:
        self.late = 0

    def __call__(self, asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        rng = draw_of(asked)
        if asked["response_format"]["json_schema"]["name"] == "tasks":
            return Reply(json.dumps(written(asked)))
        chance, content = rng.random(), json.dumps(written(asked))
        if seen == 0 and chance < 0.35 and (int(chance * 20) != 3 or self.late < 3):
            self.late += int(chance * 20) == 3
            return [
                Reply("slow down", status=429, headers={"Retry-After": "0.2"}),
                Reply("broken", status=500),
                Reply("busy", status=503, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
                Reply(content, delay=TIMEOUT + 0.5),
                Reply(content, cut=True),
                Reply(raw=b"<html>gateway</html>"),
                Reply(raw=b'{"choices": []}'),
            ][int(chance * 20)]
        return FAULTS[fault_of(asked)](content)


FAULTS = {
    "": Reply,
    "not JSON": lambda content: Reply(content[:-5]),
    "not of the schema": lambda content: Reply(json.dumps(json.loads(content) | {"S3": 7})),
    "refused by the model": lambda content: Reply(content, message={"refusal": "I will not."}),
    "empty": lambda content: Reply(""),
    "duplicate": lambda content: Reply(json.dumps({"S1": "always the same", "S2": "and again", "S3": "or not"})),
    "wrong language": lambda content: Reply(content.replace('"S1": "', f'"S1": "{GERMAN} ')),
    "cut at the most tokens": lambda content: Reply(content, finish="length"),
}  # fmt: skip


def fault_of(asked: dict[str, Any]) -> str:
    """What is wrong with the answer to a question for good: every third has something."""
    rng = random.Random(asked["messages"][-1]["content"])
    return rng.choice(list(FAULTS)[1:]) if rng.random() < 1 / 3 else ""


def test_a_run_against_a_server_that_misbehaves(tmp_path: Path) -> None:
    numbers = [str(n) for n in range(400)]  # so many that no question comes twice
    (tmp_path / "sts.toml").write_text(
        'version = 1\nanswer = "triple"\ninstruction = "Find the like."\n[messages]\nuser = "{a} {b} {c} {language}"\n'
        f"[choices]\na = {numbers}\nb = {numbers}\nc = {numbers}\n"
    )
    settings = {"groups": {"sts": 1}, "languages": {"en": 1}, "count": 90, "timeout": TIMEOUT, "tries": 5}
    settings["prompts"] = str(tmp_path)
    with FakeLLM(Misbehaving()) as server:
        report = synthesize(config(server, tmp_path, **settings))
    expected: dict[str, str] = {}  # of the content of every question what is to become of it
    for body in server.bodies:
        fault, answer = fault_of(body), written(body)
        expected[json.dumps(body["messages"])] = fault or answer["S1"]
    valid = {text for text in expected.values() if text not in FAULTS}
    found = [one["query"] for one in rows(tmp_path / "pairs.jsonl") if one["query"] != "always the same"]
    assert len(found) == len(set(found)) == report.examples - 1  # of the duplicates one is an example
    assert set(found) == valid
    wrong = Counter(fault for fault in expected.values() if fault in FAULTS)
    wrong["duplicate"] -= 1
    assert report.refused == dict(wrong)
    assert Counter(one["reason"] for one in rows(tmp_path / "pairs.rejects.jsonl")) == wrong
    assert report.answers == len(server.delivered) == len(expected)
    assert report.tokens_in == sum(usage["prompt_tokens"] for usage in server.delivered)
    assert report.tokens_out == sum(usage["completion_tokens"] for usage in server.delivered)
    troubles = {"status 429", "status 500", "status 503", "timeout", "connection lost", "malformed response"}
    assert set(report.troubles) == troubles


def synthesize_for(embedder: Embedder, values: dict[str, Any], index: str | None, seconds: float | None) -> None:
    """Write examples, and be ended by a signal after some time, if any is given."""
    if seconds:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    with SearchEngine.open(index, model=embedder) if index else nullcontext() as engine:
        synthesize(SynthesizeConfig(**values), engine)


def slowly(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
    """Something goes wrong at first, half of the time; every answer takes some time."""
    reply = Reply(echoing(asked, seen, headers).content, delay=0.05)
    if seen == 0 and draw_of(asked).random() < 0.3:
        reply = Reply("busy", status=500) if draw_of(asked).random() < 0.15 else Reply("x", cut=True)
    return reply


@pytest.mark.parametrize("what", ["from nothing", "grounded", "everything wrong"])
def test_a_killed_run_resumes_and_pays_for_nothing_twice(tmp_path: Path, forks: Server, what: str) -> None:
    script = Misbehaving if what == "everything wrong" else lambda: slowly
    settings: dict[str, Any] = {"count": 70, "concurrency": 8, "check_language": False}
    index = None
    if what == "everything wrong":
        settings |= {
            "groups": {"sts": 1},
            "languages": {"en": 1},
            "timeout": TIMEOUT,
            "check_language": True,
            "count": 40,
        }
    if what == "grounded":
        settings["count"] = 24
        index, rng = tmp_path / "x.index", random.Random(5)
        with SearchEngine.create(index, model=Words()) as made:
            made.add(Document(f"d{n}", phrase(rng, 16)) for n in range(12))
    with FakeLLM(script()) as server, SearchEngine.open(index, model=Words()) if index else nullcontext() as opened:
        whole = synthesize(config(server, tmp_path / "whole", **settings), opened)
    rng = random.Random(1)
    with FakeLLM(script()) as server:
        values = {"out": str(tmp_path / "killed" / "pairs.jsonl"), "model": "m", "base_url": server.url,
                  "backoff": 0.01, **settings}  # fmt: skip
        ended = []
        for _ in range(KILLS):
            seconds = rng.uniform(0.1, 2.0 / KILLS + 0.2)
            forks.start("synthesize", values=values, index=index and str(index), seconds=seconds)
            ended.append(forks.finish()[0])
        assert signal.SIGALRM in ended
        assert set(ended) <= {0, signal.SIGALRM}
        forks.do("synthesize", values=values, index=index and str(index), seconds=None)
        report = json.loads((tmp_path / "killed" / "pairs.report.json").read_text())
        delivered = len(server.delivered)
    for name in ("pairs.jsonl", "pairs.rejects.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (report["tokens_in"], report["tokens_out"]) == (whole.tokens_in, whole.tokens_out)
    assert report["answers"] == whole.answers
    assert delivered <= whole.answers + 8 * KILLS  # what was in flight at a kill, and no more


def test_progress_counts_examples_tokens_and_cost(tmp_path: Path) -> None:
    told: list[Progress] = []
    with FakeLLM(slowly) as server:
        report: SynthesisReport = synthesize(
            config(server, tmp_path, price_in=1, price_out=1, concurrency=4, check_language=False),
            on_progress=told.append,
        )
    assert {one.stage for one in told} >= {"asking", "filtering"}
    tokens = [one.tokens for one in told]
    assert tokens == sorted(tokens)
    assert told[-1].tokens == report.tokens_in + report.tokens_out
    assert told[-1].examples == report.examples
    assert told[-1].cost == pytest.approx(told[-1].tokens / 1e6)
    assert all(one.wanted == 60 for one in told)


if __name__ == "__main__":
    for library in ("openai", "rensa", "py3langid.langid", "onnxruntime", "faiss", "tantivy"):
        import_module(library)  # here, and not in each child
    serve({"synthesize": synthesize_for})
