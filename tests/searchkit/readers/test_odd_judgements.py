"""One query, none, graded and negative gains, unknown and repeated ids, no corpus: an answer or a clear error each."""

from __future__ import annotations

import json
from math import log2
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from texts import TEXTS

from searchkit.cli.main import main

GRADED = {"q1": {"1": 3, "11": 1, "21": -2, "0": 0, "gone": 2}}
# "yeast" is in the passages 1, 11 and 21, which are one sentence with ever longer notes behind it.
ORDER = ("1", "11", "21")
TWO = "q1\t1\t1\nq2\t2\t1\n"


def write_set(folder: Path, qrels: str, queries: str | None = None, corpus: str | None = None) -> Path:
    """A collection in BEIR form, of the thirty passages and two queries unless others are given."""
    rows = [json.dumps({"_id": str(n), "title": "", "text": text}) + "\n" for n, text in enumerate(TEXTS)]
    asked = [{"_id": "q1", "text": "yeast"}, {"_id": "q2", "text": "the sun"}]
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(rows) if corpus is None else corpus)
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in asked) if queries is None else queries
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


def lines(qrels: dict[str, dict[str, int]]) -> str:
    return "".join(f"{query}\t{id}\t{gain}\n" for query, gains in qrels.items() for id, gain in gains.items())


def run(command: str, folder: Path, index: Path) -> Result:
    """One of the commands that take judgements, in JSON."""
    common = ["--modes", "lexical", "--format", "json"]
    judged = [str(index), "--beir", str(folder), *common]
    arguments = {
        "evaluate": ["evaluate", *judged],
        "diagnose": ["evaluate", *judged, "--diagnose", str(folder / "why")],
        "compare": ["compare", *judged, "--modes", "lexical,rank-bm25"],
        "beir": ["beir", str(folder.parent), "--sets", folder.name, "--indexes", str(folder.parent / "x"), *common],
    }[command]
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def metrics(command: str, result: Result) -> dict[str, float]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    modes = found["systems"] if command == "compare" else found
    modes = next(iter(found["sets"].values())) if command == "beir" else modes
    return {name: value for name, value in modes["lexical"].items() if "@" in name}


COMMANDS = ("evaluate", "diagnose", "compare", "beir")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_set(tmp_path_factory.mktemp("odd") / "notes", TWO)
    place = folder.parent / "notes.index"
    assert CliRunner().invoke(main, ["index", str(folder), "--index", str(place)]).exit_code == 0
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_one_query_with_graded_negative_and_unknown_judgements_is_scored_by_the_definition(
    command: str, tmp_path: Path, index: Path
) -> None:
    found = metrics(command, run(command, write_set(tmp_path / "set", lines(GRADED)), index))
    gains = [max(0, GRADED["q1"][document]) for document in ORDER]  # a negative gain is worth what none is
    ideal = sorted((max(0, gain) for gain in GRADED["q1"].values()), reverse=True)
    ndcg = [sum(gain / log2(rank + 2) for rank, gain in enumerate(some)) for some in (gains, ideal)]
    assert found == {
        "ndcg@10": pytest.approx(ndcg[0] / ndcg[1], abs=1e-4),
        "recall@100": pytest.approx(2 / 3, abs=1e-4),  # "gone" is relevant, and nowhere
        "map@100": pytest.approx((1 / 1 + 2 / 2) / 3, abs=1e-4),
        "mrr@10": 1,
    }


@pytest.mark.parametrize("command", ["evaluate", "compare", "beir"])
def test_equal_judgements_count_once_and_others_contradict(command: str, tmp_path: Path, index: Path) -> None:
    once = metrics(command, run(command, write_set(tmp_path / "once", TWO), index))
    assert metrics(command, run(command, write_set(tmp_path / "twice", TWO + TWO), index)) == once
    result = run(command, write_set(tmp_path / "other", TWO + "q1\t1\t2\n"), index)
    assert result.exit_code == 1
    assert 'query "q1" and document "1" score 2 here and 1 before' in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"qrels": ""}, "no judgements in it"),
        ({"qrels": TWO, "queries": ""}, "no queries in it"),
        ({"qrels": "other\t1\t1\n"}, "1 judged queries are not in"),
        ({"qrels": "q1\tnowhere\t1\n"}, "none of the 1 judged documents is in the index"),
        ({"qrels": TWO, "queries": '{"_id": "q1", "text": "a"}\n' * 2}, 'query id "q1" came before'),
    ],
)
def test_what_cannot_be_measured_is_said(
    command: str, parts: dict[str, str], message: str, tmp_path: Path, index: Path
) -> None:
    result = run(command, write_set(tmp_path / "set", **parts), index)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_query_without_a_relevant_document_is_zero(command: str, tmp_path: Path, index: Path) -> None:
    found = metrics(command, run(command, write_set(tmp_path / "set", "q1\t1\t0\nq1\t2\t-1\n"), index))
    assert set(found.values()) == {0}


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("", "none of the 2 judged documents is in the index"),
        ('{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n', "'1' came before"),
    ],
)
def test_a_corpus_that_is_empty_or_repeats_its_ids_is_said(tmp_path: Path, corpus: str, message: str) -> None:
    write_set(tmp_path / "set", TWO, corpus=corpus)
    result = run("beir", tmp_path / "set", tmp_path)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "compare"])
def test_an_empty_index_is_said(command: str, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", TWO, corpus="")
    empty = tmp_path / "empty.index"
    (tmp_path / "none.jsonl").write_text("")
    CliRunner().invoke(main, ["index", str(tmp_path / "none.jsonl"), "--index", str(empty)])
    result = run(command, folder, empty)
    assert result.exit_code == 1
    assert "none of the 2 judged documents is in the index" in result.stderr
