"""The whole loop, on a model of two layers and thirty notes."""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapting import config_in, copy_notes, lines, model_of, pairs_of, without_extras, write_notes
from commands import call, write_lines
from fake_llm import FakeLLM, echoing, phrase
from synthetic import grading
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.indexer.files import locked
from searchkit.records import Document, Judgements, Query
from searchkit.training.adaptation.adapt import adapt
from searchkit.training.adaptation.config import AdaptConfig
from searchkit.training.adaptation.install import check
from searchkit.training.adaptation.linear_map import STRENGTHS
from searchkit.training.adaptation.report import AdaptReport, Compared, read_report
from searchkit.training.texts import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
ALL = ["pairs", "fit", "export", "index", "evaluate"]


@pytest.fixture(scope="module")
def place(mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index, pairs for it, and what a finished run left. No test changes it."""
    folder = tmp_path_factory.mktemp("adapt")
    write_notes(folder, mistral)
    adapt(config_in(folder), install=False)
    return folder


@pytest.fixture(autouse=True)
def quick(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of `place` has made the pictures and the out-of-domain score."""
    without_extras(monkeypatch)


@pytest.fixture
def config(place: Path, tmp_path: Path) -> AdaptConfig:
    """The same in a folder of its own; the finished run does not come along."""
    return config_in(copy_notes(place, tmp_path))


class Told:
    """Remembers which stages had something to do."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def __call__(self, stage: str, needed: bool) -> None:
        self.did += [stage] if needed else []


def as_lost(out: Path, *, gain: float = -0.1) -> None:
    """Let the finished run have measured another difference."""
    report = read_report(out / "report.json")
    for both in report.modes.values():
        both.after = {**both.before, "ndcg@10": both.before["ndcg@10"] + gain}
    values = json.loads((out / "report.json").read_text())
    values["modes"] = {mode: {**values["modes"][mode], "after": both.after} for mode, both in report.modes.items()}
    (out / "report.json").write_text(json.dumps(values))


# Stages


def test_every_stage_leaves_a_file_to_look_at_and_the_report_says_what_judged(place: Path) -> None:
    report = read_report(place / "out" / "report.json")
    assert report.pairs == {"read": 90, "trained_on": 54, "held_out": 36, "set_aside": 0}
    assert report.strength in STRENGTHS
    assert report.without_pairs["lexical"] == 0
    assert (report.judged_by, report.own_judgements, report.kept) == ("held-out pairs", False, False)
    assert list(report.modes) == ["dense", "lexical", "hybrid"]
    assert report.modes["lexical"].gain == 0
    assert report.out_of_domain is not None
    there = {file.name for file in (place / "out").iterdir()}
    assert {"pairs.kept.jsonl", "map", "map.json", "model", "after.index", "changes.png"} <= there


def test_no_held_out_query_is_fitted_to_and_the_pairs_of_a_query_stay_together(place: Path) -> None:
    out = place / "out"
    held = {fingerprint(row["text"]) for row in lines(out / "held-out.queries.jsonl")}
    assert len(held) == 36
    assert not held & {fingerprint(row["query"]) for row in lines(out / "pairs.kept.jsonl")}


def test_a_finished_run_does_nothing_again_and_a_change_redoes_what_depends_on_it(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    # The model's own folder is part of what an index is bound to, so this run stays where it was made.
    told = Told()
    adapt(config_in(place), install=False, on_stage=told)
    assert told.did == []
    told = Told()
    adapt(replace(config_in(tmp_path), seed=1), install=False, on_stage=told)
    assert told.did == ALL


# What is kept


def test_a_losing_model_is_not_kept_unless_forced(config: AdaptConfig) -> None:
    before = model_of(config.index)
    adapt(config, install=False)
    as_lost(config.out)
    assert not adapt(config).kept
    assert model_of(config.index) == before
    told = Told()
    assert adapt(config, force=True, on_stage=told).kept
    assert told.did == []
    assert model_of(config.index) == str(config.out / "model")
    assert model_of(config.out / "before.index") == before
    with SearchEngine.open(config.index) as engine:
        assert len(engine) == 30
        assert engine.search("Bread rises because yeast makes gas.", k=3)
    again = adapt(config)  # there is nothing left to do, and it says what was done
    assert again.kept
    assert not again.wins


def test_a_winning_model_takes_the_index_over(config: AdaptConfig) -> None:
    adapt(config, install=False)
    as_lost(config.out, gain=0.1)
    report = adapt(config)
    assert report.wins
    assert report.kept
    assert model_of(config.index) == str(config.out / "model")


def test_an_index_and_its_model_may_be_moved_together(config: AdaptConfig) -> None:
    adapt(config, force=True)
    home = config.index.parent
    moved = home.rename(home.with_name("moved"))
    with SearchEngine.open(moved / config.index.name) as engine:
        assert engine.search("Bread rises because yeast makes gas.", k=1)
        assert engine.embedder.name == str(moved / config.out.name / "model")
    again = replace(
        config, index=moved / config.index.name, out=moved / config.out.name,
        pairs=tuple(moved / pairs.name for pairs in config.pairs),
    )  # fmt: skip
    told = Told()
    assert adapt(again, on_stage=told).kept
    assert told.did == []
    with SearchEngine.open(again.out / "before.index") as engine:
        assert engine.search("Bread rises because yeast makes gas.", k=1)


def test_another_request_is_not_answered_with_the_report_of_a_finished_run(config: AdaptConfig) -> None:
    adapt(config, force=True)
    assert adapt(config, force=True).kept  # the same
    judged = Judgements("mine", [Query("q", "bread")], {"q": {"1": 1}})
    for other, judgements in ((replace(config, seed=1), None), (replace(config, train="all"), None), (config, judged)):
        with pytest.raises(
            ValueError, match=r"already searches with .*out/model, .*other pairs, judgements or settings"
        ):
            adapt(other, judgements)
    write_lines(config.pairs[0], pairs_of(TEXTS)[:80])
    with pytest.raises(ValueError, match="for another round, choose another --out"):
        adapt(config)


def test_a_later_round_leaves_the_model_and_the_index_of_an_earlier_one_alone(config: AdaptConfig) -> None:
    first, second = config, replace(config, out=config.out.with_name("second"))
    adapt(first, force=True)
    adapt(second, force=True)
    told = Told()
    with pytest.raises(ValueError, match=r"out holds a finished run, whose model and before.index may still be in use"):
        adapt(first, force=True, on_stage=told)
    assert told.did == []
    for index in (first.index, second.out / "before.index", first.out / "before.index"):
        with SearchEngine.open(index) as engine:  # an index refuses a model that has changed
            assert engine.search("Bread rises because yeast makes gas.", k=1)


def test_an_index_without_a_model_is_refused(config: AdaptConfig, tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "own.index", dim=2) as engine:
        engine.add([Document("1", "bread", vector=[1.0, 0.0])])
    with pytest.raises(ValueError, match="has no model to adapt; adapt an index that was built with a model"):
        adapt(replace(config, index=tmp_path / "own.index"))
    assert not config.out.exists()


def both(gain: float, p: float = 0.01) -> Compared:
    return Compared({"ndcg@10": 0.5}, {"ndcg@10": 0.5 + gain}, p, {})


@pytest.mark.parametrize(
    ("dense", "hybrid", "wins"),
    [
        (both(0.1), both(0.1), True),
        (both(-0.01, p=0.6), both(0.1), True),
        (both(-0.01, p=0.02), both(0.1), False),  # surely worse in one way
        (both(0.1), both(-0.001, p=0.6), False),  # worse in the way that is searched by default
        (both(0.01), both(0), True),
        (both(-0.01, p=0.6), both(0), False),
        (both(0), both(0), False),
    ],
)
def test_it_wins_when_hybrid_search_finds_more_and_dense_search_not_surely_less(
    dense: Compared, hybrid: Compared, wins: bool
) -> None:
    report = AdaptReport("x", True, {}, {"dense": dense, "hybrid": hybrid})
    assert report.wins is wins
    assert ("is not better:" in report.verdict) is not wins


def test_the_verdict_names_every_mode_and_what_may_be_chance() -> None:
    report = AdaptReport("x", True, {}, {"dense": both(0.01, 0.0213), "hybrid": both(-0.002, 0.43)})
    assert report.verdict == (
        "the new model is not better: hybrid search, the default, is worse (-0.0020, p 0.4300, which may be chance); "
        "dense search is better (+0.0100, p 0.0213)"
    )
    assert report.to_json()["verdict"] == report.verdict
    assert not report.certain
    report.modes["hybrid"] = both(0)
    assert "hybrid search, the default, is as good as before; dense" in report.verdict
    assert report.certain
    report.modes["hybrid"] = both(0.01, 0.17)
    assert report.verdict.startswith("the new model may be better: hybrid search, the default, is better (+0.0100,")


# What is refused


def test_a_pair_that_asks_what_the_judgements_ask_is_set_aside(config: AdaptConfig) -> None:
    leaking = pairs_of(TEXTS)[3]["query"]
    judged = Judgements("mine", [Query("q", leaking.upper() + " ")], {"q": {"1": 1}})
    report = adapt(config, judged, install=False)
    assert report.own_judgements
    assert report.pairs == {"read": 90, "trained_on": 89, "held_out": 0, "set_aside": 1}
    (row,) = lines(config.out / "refused.jsonl")
    assert (row["row"], "judge" in row["reason"]) == (leaking, True)
    assert leaking not in {row["query"] for row in lines(config.out / "pairs.kept.jsonl")}


def test_too_few_pairs_are_refused_with_what_became_of_them(config: AdaptConfig) -> None:
    write_lines(config.pairs[0], [*pairs_of(TEXTS)[:20], {"query": "x", "positive_id": "nowhere"}, {"query": 3}])
    with pytest.raises(
        ValueError,
        match=r"too few pairs: \d+ of 22 are left to train on, and \d held-out queries to judge by; at least 50 pairs "
        r"and 10 held-out queries are needed; .*judgements of your own .*Set aside: 2, with reasons in ",
    ):
        adapt(config)
    reasons = [row["reason"] for row in lines(config.out / "refused.jsonl")]
    assert 'no document "nowhere"' in reasons[0]
    assert "query is a number" in reasons[1]
    write_lines(config.pairs[0], [{"query": f"{n}?", "positive": f"Text {n}, not in the index."} for n in range(60)])
    with pytest.raises(
        ValueError, match=r"60 pairs are no documents of the index, so .*: name documents by positive_id$"
    ):
        adapt(config)
    write_lines(config.pairs[0], [*pairs_of(TEXTS)[:20], {"query": "x", "positive_id": "nowhere"}, {"query": 3}])
    judged = Judgements("mine", [Query("q", "bread")], {"q": {"1": 1}})
    with pytest.raises(
        ValueError, match=r"20 of 22 are left to train on; at least 50 pairs are needed; give more pairs\."
    ):
        adapt(config, judged)


def test_a_folder_of_something_else_is_left_alone(config: AdaptConfig) -> None:
    (config.out / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no run of adapt; choose another --out"):
        adapt(config)
    assert (config.out / "model").is_dir()


def test_a_missing_library_is_named_before_any_work(config: AdaptConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    told = Told()
    with pytest.raises(ImportError, match=r"adapting a model needs scipy: pip install 'searchkit\[eval\]'"):
        adapt(config, on_stage=told)
    assert (told.did, config.out.exists()) == ([], False)


def test_judgements_of_another_corpus_are_refused_before_any_work(config: AdaptConfig) -> None:
    judged = Judgements("other", [Query("q", "bread")], {"q": {"nowhere": 1}})
    told = Told()
    with pytest.raises(ValueError, match="none of the 1 judged documents is in the index"):
        adapt(config, judged, on_stage=told)
    assert (told.did, config.out.exists()) == ([], False)


def test_a_folder_from_where_the_index_cannot_be_moved_is_refused_before_any_work(config: AdaptConfig) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == config.index.stat().st_dev:
        pytest.skip("there is one file system only")
    elsewhere = replace(config, out=memory / f"searchkit-{config.out.parent.name}" / "out")
    told = Told()
    with pytest.raises(ValueError, match=r"are on different file systems, .* leave the index alone with --keep-index"):
        adapt(elsewhere, on_stage=told)
    assert (told.did, elsewhere.out.parent.exists()) == ([], False)
    check(elsewhere, None, install=False)


def test_a_damaged_report_is_made_again_and_one_of_an_installed_model_is_named(config: AdaptConfig) -> None:
    adapt(config, install=False)
    report = config.out / "report.json"
    before = read_report(report)
    report.write_text("")
    told = Told()
    again = adapt(config, force=True, on_stage=told)
    assert told.did == ["evaluate"]
    assert again.modes == before.modes
    report.write_text("{}")
    with pytest.raises(ValueError, match=r"already searches with .*/out/model, but .* it is damaged"):
        adapt(config)


def test_two_runs_in_one_folder_are_refused(config: AdaptConfig) -> None:
    config.out.mkdir()
    (config.out / "stages.json").write_text("{}")
    with locked(config.out), pytest.raises(ValueError, match="is being written by process"):
        adapt(config)


def test_an_index_with_an_adapter_is_refused(config: AdaptConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SearchEngine.open

    def with_adapter(*arguments: Any, **options: Any) -> SearchEngine:
        engine = whole(*arguments, **options)
        engine.settings["model"] = {**engine.settings["model"], "adapter": "my-adapter"}
        return engine

    monkeypatch.setattr(SearchEngine, "open", with_adapter)
    with pytest.raises(ValueError, match="adapter my-adapter; index it with a folder that holds both merged"):
        adapt(config)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pairs": ()}, "no pairs"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"general_share": 1.0}, "general_share is"),
        ({"train": "some"}, "train is 'some'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptConfig(**{"index": Path("i"), "pairs": (Path("p"),), "out": Path("o"), **changed})


# The command


def test_the_command_says_what_judged_what_changed_and_where_the_model_is(place: Path) -> None:
    found = call("adapt", place / "notes.index", "--pairs", place / "pairs.jsonl", "--out", place / "out",
                 "--held-out", 0.4, "--keep-index")  # fmt: skip
    assert "fitting a linear map to the vectors of the pairs: done before" in found.stderr
    assert "held-out pairs (often easier than real queries)" in found.stdout
    assert "54 of 90 pairs trained on, 36 held out" in found.stdout
    assert f"{place / 'notes.index'} is unchanged" in found.stdout


def test_the_command_that_is_interrupted_says_that_it_resumes(
    config: AdaptConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, needed: bool) -> None:
        if stage == "fit":
            raise KeyboardInterrupt

    arguments = ["adapt", config.index, "--pairs", config.pairs[0], "--out", config.out, "--held-out", 0.4]
    with monkeypatch.context() as patched:
        patched.setattr("searchkit.cli.adapt._announce", interrupt)
        assert "stopped; the same command resumes" in call(*arguments, code=1).stderr
    resumed = call(*arguments).stderr
    assert "filtering the pairs: done before" in resumed
    assert "fitting a linear map to the vectors of the pairs ..." in resumed


@pytest.fixture
def phrases(mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of notes that a language model can ask about."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    rng = random.Random(7)
    with SearchEngine.create(tmp_path / "notes.index", model=mistral) as engine:
        engine.add(Document(str(n), f"{phrase(rng, 30)} {TEXTS[n]}", title=f"Note {n}") for n in range(30))
    return tmp_path / "notes.index"


QUICK = ["--count", 90, "--held-out", 0.4]


def test_a_language_model_writes_the_pairs_first_and_only_once(phrases: Path, tmp_path: Path) -> None:
    with FakeLLM(echoing) as server:
        arguments = ["adapt", phrases, "--writer", "m", "--base-url", server.url, *QUICK, "--force"]
        done = call(*arguments)
        asked, file = sum(server.asked.values()), tmp_path / "notes.adapted.pairs.jsonl"
        before, written = file.read_bytes(), lines(file)
        # By its new model, the index would be asked about otherwise.
        assert "this run is finished" in call(*arguments).stderr
        assert (sum(server.asked.values()), file.read_bytes()) == (asked, before)
    assert {row["positive_id"] for row in written} <= {str(n) for n in range(30)}
    assert f"{len(written)} pairs written" in done.stderr
    kept = {row["query"] for row in lines(tmp_path / "notes.adapted" / "pairs.kept.jsonl")}
    assert kept
    assert kept <= {row["query"] for row in written}


def test_no_request_is_sent_for_a_run_that_cannot_work(phrases: Path, tmp_path: Path) -> None:
    queries = write_lines(tmp_path / "q.jsonl", [{"_id": "q", "text": "bread"}])
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("x")
    with FakeLLM(echoing) as server:
        arguments = ["adapt", phrases, "--writer", "m", "--base-url", server.url, *QUICK]
        assert "--qrels FILE" in call(*arguments, "--queries", queries, code=2).stderr
        assert "holds no run of adapt" in call(*arguments, "--out", other, code=1).stderr
        assert not server.asked


def test_what_is_spent_on_the_writing_and_how_is_for_the_user_to_say(
    phrases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-0123456789")
    samples = write_lines(tmp_path / "own.jsonl", [{"query": "how come bees dance", "positive": "Bees."}])
    with FakeLLM(lambda *asked: replace(grading(*asked), delay=0.05)) as server:
        arguments = ["adapt", phrases, "--writer", "m", "--base-url", server.url, "--key-variable", "MY_KEY"]
        for limits in (["--max-tokens", 100], ["--max-cost", 0.01, "--price-in", 10, "--price-out", 10]):
            told = call(*arguments, "--out", tmp_path / limits[0].strip("-"), *limits, code=1)
            assert "the budget is used up" in told.stderr
        assert not server.asked
        told = call(*arguments, "--count", 6, "--samples", samples, "--judge", "--concurrency", 2, "--price-in", 5,
                    code=1)  # fmt: skip
        tokens = sum(usage["total_tokens"] for usage in server.delivered)
        cost = sum(5 * usage["prompt_tokens"] for usage in server.delivered) / 1e6
    assert (
        f"6 pairs written, from {len(server.bodies)} new requests; {tokens:,} tokens in all, {cost:.2f} by"
        in told.stderr
    )
    assert "too few pairs: " in told.stderr
    assert (server.headers["authorization"], server.peak) == ("Bearer sk-0123456789", 2)
    texts = [body["messages"][0]["content"] for body in server.bodies]
    assert any("- how come bees dance" in text for text in texts)
    assert any("The query: " in text for text in texts)  # asked by the judge


def test_misuse_of_the_command_is_explained(place: Path) -> None:
    index, pairs = place / "notes.index", place / "pairs.jsonl"
    assert "positive_id, the id of the" in " ".join(call("adapt", index, code=2).stderr.split())
    judged = call("adapt", index, "--pairs", pairs, "--queries", pairs, code=2)
    assert "as --queries FILE and --qrels FILE" in " ".join(judged.stderr.split())
    told = call("adapt", index, "--pairs", pairs, "--instruction", "Find it", code=2)
    assert "--instruction belongs to judgements" in told.stderr
    told = call("adapt", index, "--pairs", pairs, "--max-cost", 2, code=2)
    assert "--max-cost is for a language model; name one with --writer" in told.stderr
    told = call("adapt", index, "--pairs", pairs, "--train", "head", "--steps", 2, code=2)
    assert "--steps says how weights are trained; omit it, or choose --train all" in " ".join(told.stderr.split())
