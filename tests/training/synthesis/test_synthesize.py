from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM, Reply, draw_of, echoing, obedient, phrase, written
from forked import Words
from synthetic import add_topics, config, grading, rows

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.training.dataset import read_examples
from searchkit.training.synthesis.journal import Journal
from searchkit.training.synthesis.prompting import load_mix
from searchkit.training.synthesis.synthesize import synthesize

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
    add_topics(engine)

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
