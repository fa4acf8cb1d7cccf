"""Which queries and judgements are read, and what is said when they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from files import write

from searchkit.errors import CorpusError
from searchkit.readers.judgements import read_beir_split, read_qrels, read_queries
from searchkit.records import Query


def test_queries_are_read_from_json_lines_and_from_tsv(tmp_path):
    rows = '{"_id": 1, "text": "hot tea"}\n\n{"id": "b", "query": "milk", "instruction": "Find drinks."}\n'
    assert read_queries(write(tmp_path / "q.jsonl", rows)) == [
        Query("1", "hot tea"),
        Query("b", "milk", "Find drinks."),
    ]
    assert read_queries(write(tmp_path / "q.tsv", 'qid\ttext\n1\thot "tea\n')) == [Query("1", 'hot "tea')]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}', 'q.jsonl:2: query id "a" came before'),
        ("q.jsonl", "nonsense", "q.jsonl:1: the row is not JSON"),
        ("q.jsonl", '{"text": "x"}', 'expected "_id" or "id", and "text" or "query"; the keys are "text"'),
        ("q.jsonl", '{"id": "a", "text": " "}', "the query's text is blank"),
        ("q.jsonl", '{"id": "a", "text": 3}', "text is a number, not a string"),
        ("q.jsonl", '{"id": [], "text": "x"}', "id is a list"),
        ("q.jsonl", '{"id": "a", "text": "x", "instruction": 1}', "instruction is a number"),
        ("q.jsonl", b'{"id": "a", "text": "th\xe9"}', "q.jsonl:1: not utf-8"),
        ("q.jsonl", "", "no queries in it"),
        ("q.tsv", "1 hot tea\n", "q.tsv:1: expected an id, a tab and the query's text"),
    ],
)
def test_bad_queries_are_named(tmp_path, name, content, message):
    with pytest.raises(CorpusError, match=message):
        read_queries(write(tmp_path / name, content))


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\td 1\t2\nq1\td2\t0\nq2\td1\t1\n",
        "q1\td 1\t2\nq1\td2\t0\n\nq2\td1\t1\nq2\td1\t1\n",
        "\ufeffq1\t0\td 1\t2\r\nq1\t0\td2\t0\r\nq2\t0\td1\t1",
    ],
)
def test_judgements_are_read_in_beir_and_trec_form(tmp_path, content):
    assert read_qrels(write(tmp_path / "q.tsv", content)) == {"q1": {"d 1": 2, "d2": 0}, "q2": {"d1": 1}}


def test_trec_judgements_are_split_at_any_blanks(tmp_path):
    assert read_qrels(write(tmp_path / "q.txt", "1 0  d1 -1\n1 Q0\td2 2\n")) == {"1": {"d1": -1, "d2": 2}}


def test_tables_may_be_quoted_throughout(tmp_path):
    content = '"query-id"\t"corpus-id"\t"score"\n"q1"\t"d 1"\t1\n"q2"\t"d ""2"""\t"0"\n'
    assert read_qrels(write(tmp_path / "q.tsv", content)) == {"q1": {"d 1": 1}, "q2": {'d "2"': 0}}
    queries = read_queries(write(tmp_path / "t.tsv", '"id"\t"text"\n"q1"\t"hot, ""green"" tea"\n'))
    assert queries == [Query("q1", 'hot, "green" tea')]
    assert read_queries(write(tmp_path / "u.tsv", 'q1\t"hot tea"\n')) == [Query("q1", '"hot tea"')]


@pytest.mark.parametrize(
    "content",
    [
        "q1\td1\t1.0\nq2\td2\t0\n",
        "query\tdocument\trelevance\nq1\td1\t1\nq2\td2\t0\n",
        "corpus-id\tquery-id\tscore\nd1\tq1\t1\nd2\tq2\t0\n",
        "Query_ID\tIteration\tDoc ID\tLabel\nq1\t0\td1\t1\nq2\t0\td2\t0\n",
        "qid\t0\tdocno\trel\nq1\t0\td1\t+1\nq2\t0\td2\t0.00\n",
        "a\tb\tscore\nq1\td1\t1\nq2\td2\t0\n",
    ],
)
def test_judgements_may_have_other_headers_and_whole_decimals(tmp_path, content):
    expected = {"q1": {"d1": 1}, "q2": {"d2": 0}}
    assert read_qrels(write(tmp_path / "q.tsv", content)) == expected
    assert read_qrels(write(tmp_path / "q.csv", content.replace("\t", ","))) == expected
    assert read_qrels(write(tmp_path / "q.tsv.gz", content)) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.tsv", "qid\tquery_text\n1\thot tea\n"),
        ("q.tsv", "query-id\tquestion\n1\thot tea\n"),
        ("q.csv", 'id,text\n1,"hot tea"\n'),
        ("q.jsonl", '{"query-id": "1", "question": "hot tea"}\n'),
    ],
)
def test_queries_may_have_other_headers_and_keys(tmp_path, name, content):
    assert read_queries(write(tmp_path / name, content)) == [Query("1", "hot tea")]
    assert read_queries(write(tmp_path / f"{name}.gz", content)) == [Query("1", "hot tea")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1\td1\n", "q.tsv:1: 2 columns; judgements have 3"),
        ("q1\td1\t1\nq1\t0\td2\t1\n", "q.tsv:2: 4 columns where the first line has 3"),
        ("q1\td1\thigh\n", 'q.tsv:1: the score is "high"; it must be an integer'),
        ("query-id\tcorpus-id\tscore\nq1\td1\t0.5\n", 'q.tsv:2: the score is "0.5"'),
        ("q1\0\td1\t1\n", "q.tsv:1: a NUL byte at character 2; remove it"),
        ("q1\td1\t1000001\n", "q.tsv:1: the score is 1000001; the highest possible is 1000000"),
        (f"q1\td1\t{'9' * 5000}\n", "q.tsv:1: the score is .*; it must be an integer"),
        ("q1\td1\t1\nq1\td1\t2\n", 'q.tsv:2: query "q1" and document "d1" score 2 here and 1 before'),
        ("q1\t\t1\n", "q.tsv:1: the query's or the document's id is empty"),
        ("query-id\tcorpus-id\tscore\n", "no judgements in it"),
        ("a\tb\tc\nq1\td1\t1\n", 'q.tsv:1: the score is "c"; .*; if this line is a header, call its columns query-id'),
        ('{"q1": {"d1": 1}}', "q.tsv:1: JSON; judgements are a table of query-id"),
    ],
)
def test_bad_judgements_are_named(tmp_path, content, message):
    with pytest.raises(CorpusError, match=message):
        read_qrels(write(tmp_path / "q.tsv", content))


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    write(tmp_path / "queries.jsonl", "".join(f'{{"_id": "q{n}", "text": "x"}}\n' for n in (3, 1, 2)))
    write(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq3\td2\t0\n")
    write(tmp_path / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore\nq9\td1\t1\n")
    return tmp_path


def test_every_file_of_a_split_may_be_gzipped(beir):
    expected = read_beir_split(beir, "test")
    for file in (beir / "queries.jsonl", beir / "qrels" / "test.tsv"):
        write(file.with_name(file.name + ".gz"), file.read_bytes())
        file.unlink()
        assert read_beir_split(beir, "test") == expected
    with pytest.raises(CorpusError, match="splits there: dev, test"):
        read_beir_split(beir, "train")


def test_a_split_has_the_judged_queries_in_file_order(beir):
    queries, qrels = read_beir_split(beir, "test")
    assert [query.id for query in queries] == ["q3", "q1"]
    assert qrels == {"q1": {"d1": 1}, "q3": {"d2": 0}}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", 'no split "train" .*; splits there: dev, test'),
        ("dev", '1 judged queries are not in .*, such as "q9"'),
    ],
)
def test_a_split_that_is_not_whole_says_so(beir, split, message):
    with pytest.raises(CorpusError, match=message):
        read_beir_split(beir, split)


def test_a_gzipped_collection_is_a_collection(beir):
    pytest.importorskip("mteb")
    from searchkit.evaluation.beir import _is_set

    corpus = b'{"_id": "d1", "text": "tea"}\n'
    write(beir / "corpus.jsonl.gz", corpus)
    write(beir / "queries.jsonl.gz", (beir / "queries.jsonl").read_bytes())
    (beir / "queries.jsonl").unlink()
    assert _is_set(beir)
