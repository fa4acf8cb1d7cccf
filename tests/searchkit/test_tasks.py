from __future__ import annotations

import pytest

from searchkit.tasks import E5_TEMPLATE, TASKS, find_task, format_query, get_task

QWEN3_TEMPLATE = "Instruct: {instruction}\nQuery:{query}"


def test_e5_writes_a_space_after_query_and_qwen3_does_not() -> None:
    assert format_query(E5_TEMPLATE, "tea", "Find teas") == "Instruct: Find teas\nQuery: tea"
    assert format_query(QWEN3_TEMPLATE, "tea", "Find teas") == "Instruct: Find teas\nQuery:tea"


@pytest.mark.parametrize("braces", ["{query}", "{instruction}", "{0}", "{", "}}", "{instruction}{query}"])
def test_braces_in_queries_and_instructions_are_kept(braces: str) -> None:
    assert format_query(E5_TEMPLATE, braces, f"Find {braces}") == f"Instruct: Find {braces}\nQuery: {braces}"


def test_what_follows_the_query_in_a_template_is_kept() -> None:
    assert format_query("Q: {query}\n{instruction}?", "tea", "Why") == "Q: tea\n{instruction}?"


@pytest.mark.parametrize("name", ["scifact", "SciFact", "sci-fact", "SCI_FACT"])
def test_tasks_are_found_whatever_their_case_and_punctuation(name: str) -> None:
    assert get_task(name).name == "scifact"


@pytest.mark.parametrize(
    ("alias", "name"), [("dbpedia-entity", "dbpedia"), ("FiQA2018", "fiqa"), ("webis-touche2020", "touche2020"),
                        ("QuoraRetrieval", "quora"), ("BUCC", "bitext"), ("TRECCOVID", "trec-covid")],
)  # fmt: skip
def test_collections_are_found_by_their_other_names(alias: str, name: str) -> None:
    assert get_task(alias).name == name


def test_an_unknown_task_is_refused_with_a_list_of_the_known_ones() -> None:
    assert find_task("no such task") is None
    with pytest.raises(ValueError, match=r"no task is called 'scifakt'; known tasks: arguana, .*own instruction"):
        get_task("scifakt")


def test_no_name_means_two_tasks() -> None:
    names = [name.replace("-", "") for task in TASKS for name in (task.name, *task.aliases)]
    assert len(names) == len(set(names))


def test_the_collections_whose_queries_are_documents_drop_them() -> None:
    dropping = {task.name for task in TASKS if task.drop_self}
    assert dropping == {"arguana", "fever", "fiqa", "msmarco", "quora"}


def test_msmarco_is_evaluated_on_dev_and_every_other_on_test() -> None:
    assert {task.name: task.split for task in TASKS if task.split != "test"} == {
        "msmarco": "dev",
        "miracl": "dev",
        "xquad": "validation",
    }


def test_every_task_says_what_to_find_in_one_clean_sentence() -> None:
    for task in TASKS:
        assert task.instruction == " ".join(task.instruction.split())
        assert task.instruction[0].isupper()
