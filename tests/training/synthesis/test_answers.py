"""What a model wrote is parsed as JSON and compared with a schema; nothing of it is ever run."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from searchkit.errors import AnswerError
from searchkit.training.synthesis.answers import read_answer, schema_of
from searchkit.training.synthesis.journal import Reply as Kept
from searchkit.training.synthesis.protocol import Request, answer_of

ANSWER = {"S1": "one", "S2": "two", "S3": "three"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  <think>hm</think> ", "empty"),
        ("I'm sorry, but I can't help with that.", "refused by the model"),
        ("{'S1': __import__('os').abort(), 'S2': 'b', 'S3': 'c'}", "not JSON"),
        ('{"S1": NaN, "S2": "b", "S3": "c"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"S1":' * 100_000, "not JSON"),
        ("1. one, two, three", "not JSON"),
        ('{"S1": "a", "S2": "b", "S3": "c', "not JSON"),
        ('{"S1": "a", "S2": "b"}', "not of the schema"),
        ('{"S1": "a", "S2": "b", "S3": "c", "S4": "d"}', "not of the schema"),
        ('{"S1": "a", "S2": "b", "S3": 3}', "not of the schema"),
        ('{"S1": "a", "S2": "b", "S3": "  "}', "not of the schema"),
        ('{"S1": "a", "S2": "b", "S3": "\\ud800"}', "not of the schema"),
        ('["S1", "S2", "S3"]', "not of the schema"),
    ],
)
def test_what_is_no_answer_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(AnswerError) as caught:
        read_answer("triple", text)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "\n\nHope this {helps}!"),
        ("Sure:\n", "\nAnything else?"),
        ("```json\n", "\n```"),
        ("", "{}"),
        ("[", "]"),
        ("<think>\nA {user} asks.\n</think>\n\n", ""),
        ("A {user} asks.\n</think>\n\n```json\n", "\n```"),
    ],
)
def test_prose_around_an_answer_is_passed_over(before: str, after: str) -> None:
    assert read_answer("triple", before + json.dumps(ANSWER) + after).model_dump() == ANSWER


def test_nothing_in_training_runs_text() -> None:
    for file in (Path(__file__).parents[3] / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = {node.id} if isinstance(node, ast.Name) else set()
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"eval", "exec", "compile", "pickle", "dill", "marshal", "shelve", "yaml"}, file


def test_schemas_are_strict() -> None:
    schema = schema_of("queries")
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Asked"]["required"] == ["kind", "query"]


# What small models and other servers write


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"keywords": "bee dance", "question": "Why do bees dance?"}', ["bee dance", "Why do bees dance?"]),
        ('{"queries": {"keywords": "bee dance", "question": ""}}', ["bee dance"]),
        ('{"keywords": "bee dance", "question": null}', ["bee dance"]),
        ('{"queries": [{"kind": "keywords", "query": "bee dance"}]}', ["bee dance"]),
        ("{'keywords': 'bee dance', 'question': 'Why do bees dance?',}", ["bee dance", "Why do bees dance?"]),
        ('```json\n{"keywords": "bee dance" "question": "Why?"\n```', ["bee dance", "Why?"]),
        ('{"keywords": "bee dance", // a comment\n "question": "Why?"}', ["bee dance", "Why?"]),
        ("{}", []),
    ],
)
def test_queries_by_kind_are_read_even_from_json_with_faults(text: str, found: list[str]) -> None:
    assert [asked["query"] for asked in read_answer("queries", text).model_dump()["queries"]] == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"keywords": "bee dance", "question": "Why do be', ["bee dance"]),
        ('{"keywords": "bee dance", "question": "Why?"', ["bee dance"]),  # whole perhaps, but who knows
        ('{"queries": [{"kind": "keywords", "query": "bee dance"}, {"kind": "question", "query": "Wh', ["bee dance"]),
        ('{"keywords": "bee', None),
        ('{"queries": [{"kind": "keyw', None),
    ],
)
def test_of_an_answer_that_was_cut_the_queries_before_the_last_are_kept(text: str, found: list[str] | None) -> None:
    asked = Request("queries@2", "queries", (), kinds=("keywords", "question"))
    if found is None:
        with pytest.raises(AnswerError, match="after 9 tokens"):
            answer_of(asked, Kept("cut", text, 5, 9))
    else:
        assert [one["query"] for one in answer_of(asked, Kept("cut", text, 5, 9)).model_dump()["queries"]] == found


def test_the_schema_of_queries_has_a_field_for_each_kind() -> None:
    schema = schema_of("queries", ("claim", "title"))
    assert list(schema["properties"]) == schema["required"] == ["claim", "title"]
    assert schema["additionalProperties"] is False


def test_what_instructs_no_search_is_no_instruction() -> None:
    tasks = [
        {"kind": "question", "instruction": "What are the keywords used in this collection?"},
        {"kind": "claim", "instruction": "Given a claim about wings, find abstracts that support or refute it"},
        {"kind": "need", "instruction": "Given a gardener's question, find advice that answers it."},
        {"kind": "title", "instruction": "Find abstracts"},
    ]
    kept = read_answer("corpus-tasks", json.dumps({"tasks": tasks})).model_dump()["tasks"]
    assert [task["kind"] for task in kept] == ["claim"]
    with pytest.raises(AnswerError, match="none is an instruction"):
        read_answer("corpus-tasks", json.dumps({"tasks": tasks[:1]}))


def test_a_question_is_no_task() -> None:
    tasks = ["Which hotel was the guest unhappy about?", "Tell what a guest was unhappy about."]
    assert read_answer("tasks", json.dumps({"tasks": tasks})).model_dump()["tasks"] == tasks[1:]
    with pytest.raises(AnswerError, match="none is an instruction"):
        read_answer("tasks", json.dumps({"tasks": tasks[:1]}))
