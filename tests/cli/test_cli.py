from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from commands import call, write_lines
from texts import TEXTS
from tiny_models import build_model

from searchkit import __version__
from searchkit.cli.main import main
from searchkit.cli.output import readable_bytes

ROWS = [{"id": str(n), "title": f"Note {n}", "text": text, "year": 1900 + n} for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, mistral: Path) -> Path:
    """A folder with notes.jsonl, the index made of it, queries and judgements. No test changes it."""
    folder = tmp_path_factory.mktemp("cli")
    write_lines(folder / "notes.jsonl", ROWS)
    write_lines(folder / "queries.jsonl", [{"_id": "q1", "text": "yeast"}, {"_id": "q2", "text": "the sun"}])
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t1\t2\nq1\t11\t1\nq2\t2\t1\nq2\tgone\t1\n")
    call("index", folder / "notes.jsonl", "--index", folder / "notes.index", "--model", mistral, "--device", "cpu")
    return folder


@pytest.fixture
def index(place: Path) -> Path:
    return place / "notes.index"


@pytest.fixture
def judged(place: Path) -> tuple[object, ...]:
    return ("--queries", place / "queries.jsonl", "--qrels", place / "qrels.tsv", "--device", "cpu")


# The main road


def test_a_corpus_is_indexed_searched_and_evaluated(tmp_path: Path, place: Path, mistral: Path) -> None:
    index = tmp_path / "x.index"
    built = call("index", place / "notes.jsonl", "--index", index, "--model", mistral, "--device", "cpu")
    assert f"{index}: 30 documents (30 new in 30 passages, 0 unchanged)" in built.stdout
    found = call("search", index, "yeast", "-k", 3, "--device", "cpu").stdout
    assert "Bread rises because yeast makes gas." in found
    beir = tmp_path / "notes"
    (beir / "qrels").mkdir(parents=True)
    (beir / "queries.jsonl").write_text((place / "queries.jsonl").read_text())
    (beir / "qrels" / "test.tsv").write_text((place / "qrels.tsv").read_text())
    table = call("evaluate", index, "--beir", beir, "--device", "cpu").stdout
    assert all(word in table for word in ("ndcg@10", "mrr@10", "dense", "lexical", "hybrid", "rank-bm25"))


def test_a_run_again_says_that_nothing_is_new(place: Path, index: Path, mistral: Path) -> None:
    again = call("index", place / "notes.jsonl", "--index", index, "--device", "cpu").stdout
    assert "30 documents (0 new in 0 passages, 30 unchanged)" in again
    same = call("index", place / "notes.jsonl", "--index", index, "--model", mistral, "--device", "cpu").stdout
    assert "30 documents (0 new in 0 passages, 30 unchanged)" in same


def test_the_index_report_in_json_is_all_of_stdout(place: Path, index: Path) -> None:
    report = json.loads(
        call("index", place / "notes.jsonl", "--index", index, "--device", "cpu", "--format", "json").stdout
    )
    counts = {"total": 30, "documents": 0, "passages": 0, "unchanged": 30, "refused": 0, "truncated": 0}
    assert {name: report[name] for name in counts} == counts
    assert report["index"] == str(index)


def test_a_corpus_comes_by_standard_input(tmp_path: Path, mistral: Path) -> None:
    lines = "".join(json.dumps({"key": n, "body": text}) + "\n" for n, text in enumerate(TEXTS[:3]))
    fields = ("--id-field", "key", "--text-field", "body")
    result = call("index", "-", "--index", tmp_path / "x", "--model", mistral, "--device", "cpu", *fields, stdin=lines)
    assert "3 documents (3 new" in result.stdout
    assert "--index" in call("index", "-", stdin=lines, code=2).stderr


@pytest.mark.parametrize(
    ("name", "index"),
    [("wiki.2023.jsonl", "wiki.2023.index"), ("dump.jsonl.gz", "dump.index"), ("notes.csv", "notes.index")],
)
def test_an_index_is_named_after_its_corpus_and_no_other(name: str, index: str) -> None:
    from searchkit.cli.index import _default_folder

    assert _default_folder(f"corpora/{name}") == Path(index)


def test_a_folder_gives_its_whole_name_to_its_index(tmp_path: Path) -> None:
    from searchkit.cli.index import _default_folder

    (tmp_path / "papers-1.2").mkdir()
    assert _default_folder(f"{tmp_path}/papers-1.2/") == Path("papers-1.2.index")


@pytest.mark.parametrize(
    "asked",
    [
        ("--language", "german"),
        ("--chunk-tokens", 16),
        ("--overlap", 3),
        ("--max-length", 64),
        ("--dim", 32, "--force-dim"),
    ],
)
def test_other_settings_for_an_index_that_is_there_are_not_ignored(
    place: Path, index: Path, mistral: Path, asked: tuple[object, ...]
) -> None:
    result = call(
        "index", place / "notes.jsonl", "--index", index, "--model", mistral, "--device", "cpu", *asked, code=1
    )
    assert str(asked[0]).lstrip("-").replace("-", "_") in result.stderr


def test_a_language_alone_is_not_ignored_for_an_index_that_is_there(place: Path, index: Path) -> None:
    assert call("index", place / "notes.jsonl", "--index", index, "--language", "german", code=1).stderr


# Searching


def hits_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_hits_in_json_are_one_line_a_query(index: Path) -> None:
    found = hits_of(call("search", index, "yeast", "the sun", "-k", 2, "--device", "cpu", "--format", "json"))
    assert [(line["query_id"], line["query"], len(line["hits"])) for line in found] == [
        ("1", "yeast", 2),
        ("2", "the sun", 2),
    ]
    hit = found[0]["hits"][0]
    assert set(hit) == {"id", "score", "rank", "title", "text", "start", "stop", "metadata"}
    assert hit["metadata"] == {"year": 1900 + int(hit["id"])}


def test_queries_come_by_standard_input_a_line_each(index: Path) -> None:
    found = hits_of(call("search", index, "--mode", "lexical", "--format", "json", stdin="yeast\n\n  the sun \n"))
    assert [(line["query_id"], line["query"]) for line in found] == [("1", "yeast"), ("3", "the sun")]
    assert call("search", index, stdin="").stdout == ""


def test_queries_come_from_a_file_with_their_ids(place: Path, index: Path) -> None:
    result = call("search", index, "--queries", place / "queries.jsonl", "--mode", "lexical", "--format", "json")
    assert {line["query_id"]: {hit["id"] for hit in line["hits"]} for line in hits_of(result)}["q1"] == {
        "1",
        "11",
        "21",
    }


def test_an_instruction_reaches_the_model(index: Path) -> None:
    def order(*options: str) -> list[str]:
        asked = ("search", index, "the sun", "-k", 30, "--mode", "dense", "--device", "cpu", "--format", "json")
        return [hit["id"] for hit in hits_of(call(*asked, *options))[0]["hits"]]

    task = "Given a claim, find documents that refute the claim"
    assert order("--task", "arguana") == order("--instruction", task) != order()


def test_nothing_found_is_said(index: Path) -> None:
    assert call("search", index, "xylophone", "--mode", "lexical").stdout == "no hits for: xylophone\n"


def test_an_empty_corpus_makes_an_index_that_finds_nothing(tmp_path: Path, mistral: Path) -> None:
    corpus = write_lines(tmp_path / "c.jsonl", [])
    result = call("index", corpus, "--index", tmp_path / "x", "--model", mistral, "--device", "cpu")
    assert "0 documents" in result.stdout
    assert call("search", tmp_path / "x", "tea").stdout == "no hits for: tea\n"


def test_text_with_square_brackets_is_printed_as_it_is(tmp_path: Path, mistral: Path) -> None:
    corpus = write_lines(tmp_path / "c.jsonl", [{"id": "[red]", "title": "[b]", "text": "an [italic] word [/x]"}])
    call("index", corpus, "--index", tmp_path / "x", "--model", mistral, "--device", "cpu")
    shown = call("search", tmp_path / "x", "word [/y]", "--mode", "lexical").stdout
    assert all(part in shown for part in ("[red]", "[b]", "an [italic] word [/x]", "word [/y]"))


# Evaluating


def test_evaluate_in_json_is_modes_to_metrics_and_all_of_stdout(index: Path, judged: tuple[object, ...]) -> None:
    result = call("evaluate", index, *judged, "--format", "json")
    modes = json.loads(result.stdout)
    assert list(modes) == ["dense", "lexical", "hybrid", "rank-bm25"]
    for metrics in modes.values():
        assert all(0 <= metrics[name] <= 1 for name in ("ndcg@10", "recall@100", "mrr@10", "map@100"))
        assert metrics["queries"] == 2
    assert "not in the index" in result.stderr  # one judged document is gone


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_judged_queries_without_a_text_are_named(index: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "queries.tsv").write_text("q1\tyeast and bread\n")
    (tmp_path / "qrels.tsv").write_text("q1\t1\t2\nq8\t2\t1\nq9\t2\t1\n")
    files = ("--queries", tmp_path / "queries.tsv", "--qrels", tmp_path / "qrels.tsv")
    said = call(command, index, *files, "--modes", "lexical,hybrid").stderr
    assert f"judged queries that are not in {tmp_path}/queries.tsv, and score zero: 2, such as q8" in said


def test_judgements_without_queries_are_refused_and_no_query_is_called_missing(index: Path, place: Path) -> None:
    said = call("compare", index, "--qrels", place / "qrels.tsv", code=2).stderr
    assert "takes --beir FOLDER, or --queries FILE and --qrels FILE" in said
    assert "judged queries" not in said


def test_evaluate_writes_runs_and_a_report(index: Path, judged: tuple[object, ...], tmp_path: Path) -> None:
    files = ("--runs", tmp_path / "runs", "--report", tmp_path / "report.json")
    result = call("evaluate", index, *judged, "--modes", "lexical, hybrid", "--format", "json", *files)
    assert sorted(file.name for file in (tmp_path / "runs").iterdir()) == ["hybrid.trec", "lexical.trec"]
    report, printed = json.loads((tmp_path / "report.json").read_text()), json.loads(result.stdout)
    assert report["documents"] == 30
    assert report["modes"]["hybrid"]["ndcg@10"] == printed["hybrid"]["ndcg@10"]


def test_a_published_set_is_asked_with_its_own_rules(tmp_path: Path) -> None:
    """ArguAna's queries are documents themselves, and its instruction is the published one."""
    model = build_model(tmp_path / "e5-mistral-tiny")
    beir = tmp_path / "arguana"
    (beir / "qrels").mkdir(parents=True)
    write_lines(beir / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(TEXTS)])
    write_lines(beir / "queries.jsonl", [{"_id": "d1", "text": TEXTS[1]}])
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nd1\td11\t1\n")
    call("index", beir, "--index", tmp_path / "x", "--model", model, "--device", "cpu")
    evaluated = ("evaluate", tmp_path / "x", "--beir", beir, "--device", "cpu", "--runs", tmp_path / "runs")
    result = call(*evaluated, "--modes", "dense")
    assert "instruction: Given a claim, find documents that refute the claim" in result.stderr
    assert " d1 " not in (tmp_path / "runs" / "dense.trec").read_text()
    call(*evaluated, "--modes", "dense", "--keep-self")
    assert " d1 " in (tmp_path / "runs" / "dense.trec").read_text()


def test_info_shows_the_index_and_its_model(index: Path, mistral: Path) -> None:
    facts = json.loads(call("info", index, "--format", "json").stdout)
    assert (facts["documents"], facts["passages"], facts["model"]) == (30, 30, str(mistral))
    assert facts["model dim"] == 64
    text = call("info", index).stdout
    assert all(name in text for name in ("language", "model weights", "size of segments"))


def test_info_alone_shows_the_machine() -> None:
    facts = json.loads(call("info", "--format", "json").stdout)
    assert facts["searchkit"] == __version__
    assert {"python", "torch", "faiss-cpu", "computes in"} <= set(facts)


def test_bytes_are_readable() -> None:
    assert [readable_bytes(n) for n in (0, 1023, 1536, 5 << 30, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "1024.0 TiB",
    ]


# What goes wrong: 1, and the message says what and where


@pytest.mark.parametrize(
    ("bad", "said"),
    [("not json\n", "notes.jsonl:3"), ({"id": "x"}, 'no "text"'), ({"id": "x", "text": 5}, "text is"),
     ({"id": "0", "text": "again"}, "id '0' came before, at"), ({"id": "x", "text": " "}, "empty text")],
)  # fmt: skip
def test_a_bad_row_stops_with_its_file_and_line(tmp_path: Path, mistral: Path, bad: Any, said: str) -> None:
    corpus = write_lines(tmp_path / "notes.jsonl", [*ROWS[:2], bad, *ROWS[2:]])
    result = call("index", corpus, "--index", tmp_path / "x", "--model", mistral, "--device", "cpu", code=1)
    assert f"Error: {corpus}:3: " in result.stderr
    assert said in result.stderr
    assert result.stdout == ""


def test_bad_rows_are_skipped_on_request_and_written_down(tmp_path: Path, mistral: Path) -> None:
    rows = [ROWS[0], "not json\n", {"id": "x"}, {"id": "0", "text": "again"}, ROWS[1]]
    corpus = write_lines(tmp_path / "notes.jsonl", rows)
    built = ("index", corpus, "--index", tmp_path / "x", "--model", mistral, "--device", "cpu", "--on-error", "skip")
    result = call(*built)
    assert "2 documents (2 new" in result.stdout
    assert "rejected: 3 of 5, the first" in result.stderr
    assert f"; see {tmp_path / 'x.rejects.jsonl'}" in result.stderr
    rejects = [json.loads(line) for line in (tmp_path / "x.rejects.jsonl").read_text().splitlines()]
    assert [reject["place"] for reject in rejects] == [f"{corpus}:{line}" for line in (2, 3, 4)]
    assert "came before" in rejects[2]["reason"]


def test_a_stopped_run_goes_on_with_the_same_command(tmp_path: Path, mistral: Path) -> None:
    corpus = write_lines(tmp_path / "notes.jsonl", [*ROWS, "not json\n"])
    built = ("index", corpus, "--index", tmp_path / "x", "--model", mistral, "--device", "cpu")
    call(*built, code=1)
    write_lines(corpus, ROWS)
    assert "30 documents (30 new" in call(*built).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("search", "{index}", " "), "a query is empty"),
     (("search", "{index}", "tea", "--task", "scifun"), "no task is called 'scifun'"),
     (("search", "{place}", "tea"), "is not an index"),
     (("search", "{index}", "tea", "--model", "nowhere"), "there is no model folder 'nowhere'"),
     (("index", "{place}/lost.jsonl"), "lost.jsonl"),
     (("index", "{place}/notes.jsonl", "--index", "{place}/x", "--model", "{place}"), "{place}"),
     (("index", "{place}/notes.jsonl", "--index", "{place}", "--model", "{model}", "--device", "cpu"),
      "is not an index"),
     (("evaluate", "{index}", "--beir", "{place}"), 'no split "test"'),
     (("evaluate", "{index}", "--queries", "{place}/queries.jsonl", "--qrels", "{place}/notes.jsonl"), "notes.jsonl:1"),
     (("info", "{place}"), "is not an index")],
)  # fmt: skip
def test_a_failure_exits_1_with_a_message(place: Path, mistral: Path, arguments: tuple[str, ...], said: str) -> None:
    names = {"place": place, "index": place / "notes.index", "model": mistral}
    result = call(*(argument.format(**names) for argument in arguments), code=1)
    assert "Error: " in result.stderr
    assert said.format(**names) in result.stderr
    assert result.stdout == ""


def test_another_model_is_refused_naming_both(index: Path, mistral: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "other-model", seed=1)
    result = call("search", index, "tea", "--model", other, "--device", "cpu", code=1)
    assert str(mistral) in result.stderr
    assert str(other) in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("serch",), ("search",), ("search", "nowhere", "tea"), ("search", "{index}", "tea", "-k", "0"),
     ("search", "{index}", "tea", "--mode", "sparse"), ("search", "{index}", "tea", "--depth", "3"),
     ("search", "{index}", "tea", "--queries", "{place}/queries.jsonl"),
     ("search", "{index}", "tea", "--task", "scifact", "--instruction", "Find it"),
     ("search", "{index}", "tea", "--dense-weight", "2"), ("evaluate", "{index}"),
     ("evaluate", "{index}", "--qrels", "{place}/qrels.tsv"),
     ("evaluate", "{index}", "--queries", "{place}/queries.jsonl", "--qrels", "{place}/qrels.tsv", "--modes", "x"),
     ("evaluate", "{index}", "--beir", "{place}", "--qrels", "{place}/qrels.tsv"), ("index",),
     ("index", "{place}/notes.jsonl", "--kind", "xml"), ("info", "{place}/notes.jsonl")],
)  # fmt: skip
def test_misuse_exits_2_with_the_usage(place: Path, arguments: tuple[str, ...]) -> None:
    names = {"place": place, "index": place / "notes.index"}
    result = call(*(argument.format(**names) for argument in arguments), code=2)
    assert "Usage: " in result.stderr
    assert result.stdout == ""


# The start


@pytest.mark.parametrize("command", ["demo", "index", "search", "evaluate", "info"])
def test_every_command_explains_itself(command: str) -> None:
    assert command in call("--help").stdout
    assert call(command, "--help").stdout.startswith(f"Usage: main {command}")


def test_the_version_is_the_package_s() -> None:
    assert call("--version").stdout == f"searchkit, version {__version__}\n"


HELP = """
import sys
sys.argv = ["searchkit", *sys.argv[1:]]
from searchkit.cli.main import main
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [[], ["index"], ["search"], ["evaluate"], ["info"], ["demo"]])
def test_help_imports_no_heavy_library(command: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HELP, *command, "--help"], capture_output=True, text=True, check=True, cwd="/"
    )
    heavy = {"torch", "faiss", "transformers", "tokenizers", "numpy", "tantivy", "rich", "pytrec_eval", "pyarrow"}
    assert "Usage: searchkit" in ran.stdout
    assert not heavy & set(ran.stderr.split())


def test_help_answers_in_under_three_tenths_of_a_second() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", HELP, "--help"], capture_output=True, check=True, cwd="/")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_debugging_shows_where_an_error_came_from(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SEARCHKIT_DEBUG", "1")
    result = CliRunner().invoke(main, ["info", str(place)])
    assert isinstance(result.exception, ValueError)


def test_an_index_may_be_where_one_works(tmp_path: Path, mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "papers.index"
    folder.mkdir()
    write_lines(tmp_path / "notes.jsonl", [*ROWS[:2], "no JSON\n"])
    monkeypatch.chdir(folder)
    rest = ("--on-error", "skip", "--device", "cpu")
    said = call("index", "../notes.jsonl", "--index", ".", "--model", mistral, *rest).output
    assert f"{folder}: 2 documents" in said
    (tmp_path / "papers.index.rejects.jsonl").unlink()
    call("add", ".", "../notes.jsonl", *rest)
    (tmp_path / "papers.index.rejects.jsonl").unlink()
    monkeypatch.chdir(folder / "lexical")
    call("add", "..", tmp_path / "notes.jsonl", *rest)
    assert (tmp_path / "papers.index.rejects.jsonl").is_file()
