from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import commands
import pytest
from fake_llm import FakeLLM, Reply, draw_of, echoing, obedient, phrase, written
from forked import Server, Words, serve
from synthetic import config, grading, rows
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.training.dataset import read_examples
from searchkit.training.synthesis.journal import Journal
from searchkit.training.synthesis.prompting import load_mix
from searchkit.training.synthesis.synthesize import Progress, SynthesisReport, SynthesizeConfig, synthesize

TIMEOUT = 2.0  # seconds; on a crowded machine even an answer that is there may take one
KILLS = int(os.environ.get("SEARCHKIT_KILLS", "3"))
GERMAN = "Der Zug nach Leipzig hatte heute wieder eine Stunde Verspätung, weil die Strecke hinter Dessau gesperrt war."


def fill(engine: SearchEngine) -> None:
    """Thirty topics of their own words, so that the words alone find a passage again."""
    rng = random.Random(7)
    engine.add(Document(f"d{n}", f"{phrase(rng, 30)} {TEXTS[n]}", title=f"Note {n}") for n in range(30))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Any:
    with SearchEngine.create(tmp_path_factory.mktemp("grounded") / "x.index", model=embedder, chunk_tokens=0) as made:
        fill(made)
        yield made


# From nothing


def test_proportions_are_the_papers(tmp_path: Path) -> None:
    with FakeLLM() as server:
        report = synthesize(config(server, tmp_path, count=400, concurrency=32, check_language=False, likeness=1))
    assert report.examples == 400
    paper = {"short-long": 167, "long-short": 122, "sts": 99, "bitext": 89, "long-long": 17, "short-short": 13}
    for group, thousands in paper.items():
        assert report.groups[group] / 400 == pytest.approx(thousands / 507, abs=0.01)
    shares = {"en": 0.431, "pl": 0.03, "ar": 0.027, "ja": 0.029, "zh": 0.028}
    for code, share in shares.items():
        assert report.languages[code] / 400 == pytest.approx(share, abs=0.02)
    assert len(report.languages) > 50
    others = sum(report.languages.values()) - sum(report.languages[code] for code in list(load_mix().languages)[:14])
    assert others / 400 == pytest.approx(0.198, abs=0.02)


def test_every_group_becomes_examples_that_train_reads(tmp_path: Path) -> None:
    with FakeLLM() as server:
        report = synthesize(config(server, tmp_path))
    examples = list(read_examples(tmp_path / "pairs.jsonl"))
    written = rows(tmp_path / "pairs.jsonl")
    assert len(examples) == len(written) == report.examples == 60
    assert {one.source for one in examples} == {f"synthetic-{group}" for group in load_mix().groups}
    for one in written:
        assert ("negatives" in one) == (one["group"] not in ("short-short", "long-long"))
        assert one["prompt"].startswith(f"{one['group']}@1-")
        assert one["model"] == "m"
        assert one["language"] in load_mix().names
        assert ("target_language" in one) == (one["group"] == "bitext")
    assert all(one["instruction"] == "Retrieve parallel sentences." for one in written if one["group"] == "bitext")


def test_an_example_follows_a_task_that_was_thought_of_before_in_another_conversation(tmp_path: Path) -> None:
    with FakeLLM() as server:
        synthesize(config(server, tmp_path, groups={"short-long": 1}, count=12, examples_per_task=3))
    assert all(len(body["messages"]) == 1 for body in server.bodies)
    names = [body["response_format"]["json_schema"]["name"] for body in server.bodies]
    assert names == ["tasks"] + ["short_long"] * 12
    thought_of = written(server.bodies[0])["tasks"]
    assert [one["instruction"] for one in rows(tmp_path / "pairs.jsonl")] == [thought_of[n // 3] for n in range(12)]


def test_users_choose_groups_and_languages(tmp_path: Path) -> None:
    with FakeLLM() as server:
        report = synthesize(config(server, tmp_path, groups={"sts": 1}, languages={"de": 3, "fr": 1}, count=40))
    assert report.groups == {"sts": 40}
    assert report.languages == {"de": 30, "fr": 10}


def test_users_bring_prompts_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "sts.toml").write_text(
        'version = 7\nanswer = "triple"\ninstruction = "Find the like."\n[messages]\n'
        'user = "Say {language} number {n}"\n[choices]\nn = ["1", "2", "3"]\n'
    )
    with FakeLLM() as server:
        chosen = {"groups": {"sts": 1}, "prompts": str(tmp_path / "prompts"), "count": 3, "languages": {"de": 1}}
        synthesize(config(server, tmp_path, likeness=1, **chosen))
    assert {one["prompt"].partition("-")[0] for one in rows(tmp_path / "pairs.jsonl")} == {"sts@7"}
    assert server.bodies[0]["messages"][0]["content"].startswith("Say German number")


def test_the_order_of_the_answers_makes_no_difference(tmp_path: Path) -> None:
    def late(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        return Reply(json.dumps(written(asked)), delay=draw_of(asked).random() / 20)

    for name, script, concurrency in (("a", obedient, 1), ("b", late, 16)):
        with FakeLLM(script) as server:
            synthesize(config(server, tmp_path / name, concurrency=concurrency, count=60))
    assert (tmp_path / "a" / "pairs.jsonl").read_bytes() == (tmp_path / "b" / "pairs.jsonl").read_bytes()


def test_a_higher_count_pays_for_the_new_ones_alone(tmp_path: Path) -> None:
    with FakeLLM() as server:
        synthesize(config(server, tmp_path, count=40, check_language=False))
        before = sum(server.asked.values())
        first = rows(tmp_path / "pairs.jsonl")
        again = synthesize(config(server, tmp_path, count=40, check_language=False))
        assert (again.asked, sum(server.asked.values())) == (0, before)
        more = synthesize(config(server, tmp_path, count=70, check_language=False))
    assert more.examples == 70
    assert max(server.asked.values()) == 1
    assert rows(tmp_path / "pairs.jsonl")[:40] == first


# Grounded


def test_queries_are_about_the_passages(tmp_path: Path, engine: SearchEngine) -> None:
    with FakeLLM(echoing) as server:
        report = synthesize(config(server, tmp_path, count=45, round_trip=0), engine)
    written = rows(tmp_path / "pairs.jsonl")
    texts = {id: f"{title} {text}".strip() for id, title, text, _ in engine.store.documents.living()}
    assert len(written) == report.examples == 45
    assert all(one["positive"] == texts[one["positive_id"]] for one in written)
    assert len({one["positive_id"] for one in written}) >= 15
    assert set(report.kinds) == {"keywords", "question", "claim", "need", "title"}
    assert {one["instruction"].partition(",")[0] for one in written} == {f"Given a {kind}" for kind in report.kinds}


def test_queries_that_do_not_lead_back_are_left_out(tmp_path: Path) -> None:
    engine = SearchEngine.create(tmp_path / "x.index", model=Words(), chunk_tokens=0)
    fill(engine)

    def astray(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        return echoing(asked, seen, headers) if draw_of(asked).random() < 0.5 else obedient(asked, seen, headers)

    with FakeLLM(astray) as server:
        report = synthesize(config(server, tmp_path, count=30, round_trip=1), engine)
    assert report.examples == 30
    assert report.refused["not found again"] > 5
    found = engine.search_many([one["query"] for one in rows(tmp_path / "pairs.jsonl")], k=1)
    wanted = [one["positive_id"] for one in rows(tmp_path / "pairs.jsonl")]
    own = [one["instruction"] for one in rows(tmp_path / "pairs.jsonl")]
    assert len(own) == len(found)
    assert sum(hits[0].id == id for hits, id in zip(found, wanted, strict=True)) >= 27  # asked without instruction


def test_own_queries_set_the_tone_and_may_not_be_repeated(tmp_path: Path, engine: SearchEngine) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"query": "how come bees dance", "positive": "Bees."}) + "\n")
    judged = tmp_path / "queries.jsonl"
    with FakeLLM(echoing) as server:
        settings = {
            "count": 6,
            "instruction": "Find notes",
            "samples": str(own),
            "kinds": ("question",),
            "round_trip": 0,
        }
        synthesize(config(server, tmp_path, **settings), engine)
        assert all("- how come bees dance" in body["messages"][0]["content"] for body in server.bodies)
        first = rows(tmp_path / "pairs.jsonl")
        assert {(one["instruction"], one["kind"]) for one in first} == {("Find notes", "question")}
        judged.write_text(
            "".join(json.dumps({"id": n, "text": one["query"].upper()}) + "\n" for n, one in enumerate(first))
        )
        report = synthesize(config(server, tmp_path, **settings, evaluation=(str(judged),)), engine)
    assert report.refused["an evaluation query"] >= 6
    assert report.examples == 6
    assert not {one["query"] for one in first} & {one["query"] for one in rows(tmp_path / "pairs.jsonl")}


def test_the_schema_allows_the_kinds_that_were_asked_for(tmp_path: Path, engine: SearchEngine) -> None:
    with FakeLLM(echoing) as server:
        synthesize(config(server, tmp_path, kinds=("claim", "title"), count=4), engine)
    for body in server.bodies:
        schema = body["response_format"]["json_schema"]["schema"]
        if "$defs" in schema:  # instructions for the kinds
            (part,) = schema["$defs"].values()
            assert part["properties"]["kind"]["enum"] == ["claim", "title"]
        else:
            assert list(schema["properties"]) == ["claim", "title"]


def test_an_index_with_nothing_to_ask_about_says_so(tmp_path: Path, embedder: Embedder) -> None:
    with (
        FakeLLM() as server,
        SearchEngine.create(tmp_path / "x.index", model=embedder) as empty,
        pytest.raises(ValueError, match="no passage of 15 words"),
    ):
        synthesize(config(server, tmp_path), empty)


def test_the_model_looks_again_at_what_the_index_finds(tmp_path: Path, engine: SearchEngine) -> None:
    with FakeLLM(grading) as server:
        report = synthesize(config(server, tmp_path, count=12, judge=True, judged=5), engine)
    written = rows(tmp_path / "pairs.jsonl")
    assert report.judged == {"kept": 12}
    for one in written:
        others = {hit.text for hit in engine.search(one["query"], instruction=one["instruction"], k=5)}
        assert set(one["query"].split()) <= set(one["positive"].split())
        assert 1 <= len(one["negatives"]) <= 4
        assert all(any(negative.endswith(text.strip()) for text in others) for negative in one["negatives"])
        assert one["positive"] not in one["negatives"]


def test_a_better_passage_takes_the_positives_place(tmp_path: Path, engine: SearchEngine) -> None:
    other = engine.search("oboe", k=1)[0].id

    def elsewhere(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        text = asked["messages"][-1]["content"]
        name = asked["response_format"]["json_schema"]["name"]
        if name == "queries":  # whatever the passage is, all that is asked for is the oboe
            return Reply(json.dumps({"queries": [{"kind": "question", "query": f"oboe {phrase(draw_of(asked), 2)}"}]}))
        if name == "grades":
            passages = text.split("<passage number=")[1:]
            grades = [3 * (f"Note {other[1:]} " in passage) for passage in passages]
            return Reply(json.dumps({"grades": [{"passage": n, "grade": grade} for n, grade in enumerate(grades, 1)]}))
        return echoing(asked, seen, headers)

    with FakeLLM(elsewhere) as server:
        settings = {"count": 8, "judge": True, "kinds": ("question",), "round_trip": 0, "judged": 30}
        report = synthesize(config(server, tmp_path, **settings), engine)
    assert {one["positive_id"] for one in rows(tmp_path / "pairs.jsonl")} == {other}
    assert report.judged["relabelled"] >= 7


def test_a_query_that_nothing_answers_is_left_out(tmp_path: Path, engine: SearchEngine) -> None:
    def strict(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        reply = grading(asked, seen, headers)
        bad = draw_of(asked).random() < 0.4 and '"grades"' in (reply.content or "")
        return Reply((reply.content or "").replace(": 3}", ": 1}")) if bad else reply

    with FakeLLM(strict) as server:
        report = synthesize(config(server, tmp_path, count=20, judge=True), engine)
    assert report.examples == 20
    assert report.refused["no passage answers it"] > 3


# Batches


def test_batches_give_what_single_questions_give(tmp_path: Path) -> None:
    with FakeLLM() as server:
        synthesize(config(server, tmp_path / "single", count=30, check_language=False))
    with FakeLLM() as server:
        settings = {"count": 30, "check_language": False, "batch": True, "poll": 0.01}
        report = synthesize(config(server, tmp_path / "batch", **settings))
        assert 4 <= len(server.batches) <= 8  # one for the tasks of each group, and one for each round
    assert (tmp_path / "single" / "pairs.jsonl").read_bytes() == (tmp_path / "batch" / "pairs.jsonl").read_bytes()
    assert report.tokens_in + report.tokens_out == sum(usage["total_tokens"] for usage in server.delivered)


@pytest.mark.parametrize("written_down", [True, False])
def test_a_batch_that_was_handed_in_is_not_handed_in_again(tmp_path: Path, written_down: bool) -> None:
    settings = {"groups": {"sts": 1}, "count": 10, "check_language": False, "batch": True, "poll": 0.01}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with FakeLLM() as server, pytest.MonkeyPatch.context() as patch:
        what = (
            "openai.resources.batches.AsyncBatches.retrieve"
            if written_down
            else f"{Journal.__module__}.Journal.note_batch"
        )
        patch.setattr(what, stop)
        with pytest.raises(KeyboardInterrupt):
            synthesize(config(server, tmp_path, **settings))
        patch.undo()
        report = synthesize(config(server, tmp_path, **settings))
    assert report.examples == 10
    assert len(server.batches) == 1


# A server that misbehaves


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


@pytest.fixture(scope="module")
def forks() -> Iterator[Server]:
    made = Server(__file__)
    yield made
    made.close()


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


# The command


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
