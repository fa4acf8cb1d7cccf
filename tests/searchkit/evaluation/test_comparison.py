"""`searchkit compare`: from run files and reports to tables."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import pytrec_eval
from click.testing import CliRunner, Result

from searchkit.cli.main import main
from searchkit.errors import CorpusError
from searchkit.evaluation.comparison import System, compare, read_systems, system_of
from searchkit.evaluation.evaluate import Evaluation, write_report, write_run
from searchkit.metrics import means, score_queries
from searchkit.records import Qrels, Run

QUERIES = [f"q{n}" for n in range(20)]
QRELS: Qrels = {query: {f"d{n}": 1 + n % 2, "d99": -1} for n, query in enumerate(QUERIES)}


def run_that_finds(share: float, seed: int) -> Run:
    """A run full of ties that ranks the right document first for about this share of the queries."""
    pick = random.Random(seed)
    run: Run = {}
    for n, query in enumerate(QUERIES):
        run[query] = {f"d{m}": float(pick.choice([0, 0, 1, 2])) for m in range(30)}
        run[query][f"d{n}"] = 3.0 if pick.random() < share else 1.0
    return run


def evaluation(mode: str, run: Run, qrels: Qrels = QRELS) -> Evaluation:
    per_query = score_queries(run, qrels)
    return Evaluation(mode, means(per_query), per_query, run, 0.002, 100.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BEIR folder with two runs beside it, and a report of both."""
    weak, strong = evaluation("lexical", run_that_finds(0.1, 1)), evaluation("dense", run_that_finds(0.9, 2))
    write_run(tmp_path / "old" / "run.trec", weak)
    write_run(tmp_path / "new" / "run.trec", strong)
    write_report(tmp_path / "report.json", [weak, strong], {})
    (tmp_path / "set" / "qrels").mkdir(parents=True)
    rows = [f"{query}\t{document}\t{gain}" for query, found in QRELS.items() for document, gain in found.items()]
    (tmp_path / "set" / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    documents = [{"_id": f"d{n}", "title": f"Title {n}", "text": f"Body {n}"} for n in range(30)]
    (tmp_path / "set" / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    queries = [{"_id": query, "text": f"what is {query}"} for query in QUERIES]
    (tmp_path / "set" / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    return tmp_path


def ask(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["compare", *(re.sub(r"(^|=)@", rf"\1{folder}/", part) for part in arguments)])


def content(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def systems(*shares: float) -> list[System]:
    return [system_of(f"s{n}", run_that_finds(share, n), QRELS) for n, share in enumerate(shares)]


def test_runs_are_judged_as_trec_eval_judges_them(folder: Path) -> None:
    found = content(ask(folder, "@old/run.trec", "@new/run.trec", "--beir", "@set", "--format", "json"))
    with (folder / "new" / "run.trec").open() as file:
        oracle = pytrec_eval.RelevanceEvaluator(QRELS, {"ndcg_cut_10"}).evaluate(pytrec_eval.parse_run(file))
    mean = sum(values["ndcg_cut_10"] for values in oracle.values()) / len(QRELS)
    assert found["systems"]["new/run"]["ndcg@10"] == pytest.approx(mean)  # type: ignore[index]


def test_a_report_compares_as_its_runs_do(folder: Path) -> None:
    runs = content(
        ask(folder, "lexical=@old/run.trec", "dense=@new/run.trec", "--qrels", "@set/qrels/test.tsv", "--format=json")
    )
    report = content(ask(folder, "@report.json", "--format", "json"))
    for one, other in zip(runs["differences"], report["differences"], strict=True):  # type: ignore[call-overload]
        assert {**one, "system": ""} == pytest.approx({**other, "system": ""}, nan_ok=True)
        assert other["system"] == "report:dense"
    assert report["systems"]["report:dense"]["bytes_per_document"] == 100  # type: ignore[index]


def test_changes_show_the_documents_of_both_with_texts_and_grades(folder: Path) -> None:
    arguments = ["@old/run.trec", "@new/run.trec", "--beir", "@set", "--changed", "2", "--format", "json"]
    found = content(ask(folder, *arguments))["changes"]["new/run"]  # type: ignore[index]
    assert len(found) == 2
    first = found[0]
    right = first["query"].replace("q", "d")
    assert first["text"] == f"what is {first['query']}"
    assert first["documents_after"][0] == {
        "id": right,
        "grade": QRELS[first["query"]][right],
        "title": f"Title {right[1:]}",
        "text": f"Body {right[1:]}",
    }
    assert first["documents_before"][0]["id"] != right
    assert first["documents_before"][0]["grade"] is None


def test_the_tables_name_what_they_compare(folder: Path) -> None:
    result = ask(folder, "@old/run.trec", "@new/run.trec", "--beir", "@set")
    assert result.exit_code == 0
    for expected in ("old/run", "against old/run", "ndcg@10", "win/tie/loss", "p, Holm", "<.0001", "Title"):
        assert expected in result.stdout
    assert "20 queries; Holm's correction for 4 tests" in result.stderr


def test_modes_of_a_report_and_the_baseline_can_be_chosen(folder: Path) -> None:
    arguments = ["a=@report.json", "b=@report.json", "--modes", "dense", "--against", "b:dense", "--metrics", "mrr@10"]
    found = content(ask(folder, *arguments, "--format", "json"))
    assert (list(found["systems"]), found["against"]) == (["a:dense", "b:dense"], "b:dense")  # type: ignore[call-overload]
    assert [one["p_randomisation"] for one in found["differences"]] == [1.0]  # type: ignore[attr-defined]


def test_everything_can_be_written_as_json(folder: Path) -> None:
    result = ask(folder, "@report.json", "--report", "@deep/compare.json")
    assert result.exit_code == 0, result.output
    assert set(json.loads((folder / "deep" / "compare.json").read_text())) >= {"systems", "differences", "changes"}


def test_holm_counts_every_test_of_the_table() -> None:
    three = systems(0.1, 0.5, 0.9)
    assert compare(three, metrics=["ndcg@10"]).tests == 2
    assert compare(three).tests == 8
    best = compare(three, against="best", metrics=["ndcg@10"])
    assert (best.against, best.tests) == ("s2", 3)  # which is best was chosen by the data: every pair counts
    for one in best.differences:
        assert one.adjusted_randomisation >= one.test.p_randomisation


def test_the_most_changed_come_first_and_the_unchanged_never() -> None:
    comparison = compare(systems(0.1, 0.9), changed=100)
    sizes = [abs(change.after - change.before) for change in comparison.changes["s1"]]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 0
    test = comparison.differences[0].test
    assert len(sizes) == test.wins + test.losses
    assert test.ties == len(QUERIES) - len(sizes)


def test_a_query_without_hits_counts_as_zero(tmp_path: Path) -> None:
    (tmp_path / "one.trec").write_text("q0 Q0 d0 1 1.0 x\n")
    (system,) = read_systems(tmp_path / "one.trec", QRELS)
    assert system.per_query["ndcg@10"] == {query: float(query == "q0") for query in QUERIES}


def test_a_single_query_has_no_interval(folder: Path) -> None:
    (folder / "one.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    result = ask(folder, "@old/run.trec", "@new/run.trec", "--qrels", "@one.tsv")
    assert result.exit_code == 0, result.output
    assert "nan" not in result.output
    assert re.search(r"│\s+- │\s+1/0/0 │|│\s+- │\s+0/1/0 │|│\s+- │\s+0/0/1 │", result.output)


def test_drop_self_leaves_out_the_query_s_own_document(tmp_path: Path) -> None:
    (tmp_path / "one.trec").write_text("q Q0 q 1 2.0 x\nq Q0 d 2 1.0 x\n")
    for drop, value in ((True, 1.0), (False, 0.5)):
        (system,) = read_systems(tmp_path / "one.trec", {"q": {"d": 1}}, drop_self=drop)
        assert system.per_query["mrr@10"] == {"q": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q0 Q0 d0 1 x s\n", r'run\.trec:1: the score is "x"; it must be a finite 32-bit number'),
        ("q0 Q0 d0 1 -1e39 s\n", r'run\.trec:1: the score is "-1e39"; it must be a finite 32-bit number'),
        ("q0 Q0 d\0 1 2 s\n", r"run\.trec:1: a NUL byte at character 7; remove it"),
        ("q0 Q0 d0 1 nan s\n", "must be a finite 32-bit number"),
        ("q0 Q0 d0 1.0 s\n", "5 columns; a TREC run has 6"),
        ("q0 Q0 d0 1 1 s\nq0 Q0 d0 2 1 s\n", r'run\.trec:2: document "d0" came before for query "q0"'),
        ("", "the run is empty"),
    ],
)
def test_a_bad_run_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.trec").write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_systems(tmp_path / "run.trec", QRELS)


@pytest.mark.parametrize("text", ["{}", '{"modes": {"dense": {"ndcg@10": 0.5}}}', "{oops", '{"modes": []}'])
def test_json_that_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match="is not a report of `searchkit evaluate --report`"):
        read_systems(tmp_path / "report.json", QRELS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["@old/run.trec", "--beir", "@set"], 1, "1 system came; a comparison takes two or more"),
        (["@old/run.trec", "@new/run.trec"], 1, "is a run, which is judged first"),
        (["@old/gone.trec", "@new/run.trec"], 2, "there is no file"),
        (["a=@old/run.trec", "a=@new/run.trec", "--beir", "@set"], 1, "several systems are called"),
        (["@report.json", "--against", "x"], 1, "no system is called 'x'"),
        (["@report.json", "--metrics", "ndcg@3"], 1, "has no values of"),
        (
            ["@report.json", "--beir", "@set", "--qrels", "@set/qrels/test.tsv"],
            2,
            "--beir FOLDER, or as --queries FILE and --qrels FILE",
        ),
    ],
)
def test_misuse_is_reported_plainly(folder: Path, arguments: list[str], code: int, message: str) -> None:
    result = ask(folder, *arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr


def test_runs_of_other_queries_are_refused() -> None:
    mine, others = systems(0.5, 0.5)
    lost = {name: {q: v for q, v in values.items() if q != "q3"} for name, values in others.per_query.items()}
    with pytest.raises(ValueError, match='different queries, such as "q3"'):
        compare([mine, System("other", lost, {})])
    with pytest.raises(ValueError, match="none of its 20 queries"):
        read_from(run_that_finds(0.5, 0), {"other": {"d": 1}})


def read_from(run: Run, qrels: Qrels) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "run.trec", evaluation("dense", run))
        read_systems(Path(folder) / "run.trec", qrels)
