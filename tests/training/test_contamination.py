"""Which training examples count as leaks of an evaluation."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable

import pytest

from searchkit.records import Document, Query
from searchkit.training.contamination import Evaluation, Leaks, Match
from searchkit.training.dataset import Example

QUERIES = [Query("q1", "Why does bread rise?"), Query("q2", "Thank you")]
DOCUMENTS = [
    Document("d1", "makes gas when it eats sugar.", title="Yeast"),
    Document("d2", "Salt lowers the freezing point of water."),
    Document("d3", "", title="Nothing but a title here"),
]


def find_leaks(examples: Iterable[Example], queries: Iterable[Query], documents: Iterable[Document] = ()) -> Leaks:
    return Evaluation(queries, documents).find_leaks(examples)


def positions(leaks: Leaks) -> set[int]:
    return leaks.questions.positions | leaks.documents.positions | leaks.low_entropy.positions


@pytest.mark.parametrize(
    ("example", "kind", "place"),
    [
        (Example("why does  BREAD rise?\n", "Because."), "questions", "query"),
        (Example("Whydoesbreadrise?", "Because."), "low_entropy", "query"),  # one word, as it is written
        (Example("\uff37hy does bread rise?", "Because."), "questions", "query"),  # a full-width W
        (Example("thank you", "Welcome."), "low_entropy", "query"),
        (Example("q", "yeast makes gas when it eats sugar."), "documents", "positive"),
        (Example("q", "Makes gas when it eats sugar."), "documents", "positive"),  # without its title
        (Example("q", "nothing but a title here"), "documents", "positive"),
        (Example("q", "p", ("n", "Salt lowers the freezing point of water.")), "documents", "negative"),
    ],
)
def test_a_leak_is_found_ignoring_case_and_spacing(example, kind, place):
    leaks = find_leaks([Example("clean", "text"), example], QUERIES, DOCUMENTS)
    text = {"query": example.query, "positive": example.positive, "negative": example.negatives[-1:]}[place]
    assert positions(leaks) == getattr(leaks, kind).positions == {1}
    assert getattr(leaks, kind).samples == [Match(1, place, text if isinstance(text, str) else text[0])]
    assert leaks.examined == 2


@pytest.mark.parametrize(
    "example",
    [
        Example("Why does the bread rise?", "Salt lowers the freezing point of water"),  # a full stop short
        Example("Salt lowers the freezing point of water.", "Why does bread rise?"),  # each in the other's place
        Example("", " "),  # a document without text matches no blank
    ],
)
def test_what_is_not_the_same_string_in_the_same_role_is_no_leak(example):
    assert not positions(find_leaks([example], QUERIES, DOCUMENTS))


def test_an_example_counts_once_a_class_and_in_every_class_it_is_in():
    salt = DOCUMENTS[1].text
    leaks = find_leaks([Example("Why does bread rise?", salt, (salt.upper(),)), Example("q", salt)], QUERIES, DOCUMENTS)
    assert (len(leaks.questions), len(leaks.documents), len(leaks.low_entropy)) == (1, 2, 0)
    assert positions(leaks) == {0, 1}


def test_words_are_counted_where_no_spaces_part_them():
    asked = Query("q", "\u4e3a\u4ec0\u4e48\u9762\u5305\u4f1a\u53d1\u9175")  # "why does bread rise" in Chinese
    thanks = Query("t", "\u8c22\u8c22")
    leaks = find_leaks([Example(asked.text, "p"), Example(thanks.text, "p")], [asked, thanks])
    assert leaks.questions.positions == {0}
    assert leaks.low_entropy.positions == {1}
    repeated = Query("r", "so so SO so, so good")
    assert find_leaks([Example(repeated.text, "p")], [repeated]).low_entropy.positions == {0}


def test_samples_are_few_and_short_and_the_count_is_whole():
    long = " ".join(f"word{n}" for n in range(500))
    leaks = find_leaks([Example("q", long)] * 9, [], [Document("d", long)])
    assert len(leaks.documents) == 9
    assert [match.position for match in leaks.documents.samples] == [0, 1, 2, 3, 4]
    assert all(len(match.text) == 200 and long.startswith(match.text) for match in leaks.documents.samples)


def test_what_remains_has_no_leak_and_is_in_order():
    random.seed(0)
    mine = [Example(f"why is number {n} a number", f"because of {n}") for n in range(200)]
    asked = {row.query for row in random.sample(mine, 40)}
    leaks = find_leaks(iter(mine), [Query(text, text.upper()) for text in asked])
    kept = [row for n, row in enumerate(mine) if n not in positions(leaks)]
    assert kept == [row for row in mine if row.query not in asked]
    assert not positions(find_leaks(kept, [Query(text, text) for text in asked]))


def test_one_evaluation_serves_many_files():
    evaluation = Evaluation(iter(QUERIES), iter(DOCUMENTS))
    leaking, clean = [Example(QUERIES[0].text, "p")], [Example("q", "p")]
    assert [len(evaluation.find_leaks(rows).questions) for rows in (leaking, clean, leaking)] == [1, 0, 1]


def test_texts_stream_through():
    def documents(n):
        return (Document(str(i), f"{i} " + "a long text " * 800) for i in range(n))

    tracemalloc.start()
    leaks = find_leaks((Example(f"q{d.id}", d.text) for d in documents(200)), [], documents(100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(leaks.documents) == 100
    assert peak < 500_000  # the texts are 2 MB
