"""A folder of BEIR collections: published rules, averages, published figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from texts import TEXTS
from tiny_models import build_model

from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.errors import CorpusError
from searchkit.evaluation.beir import BeirSet, averages, find_sets, language_of, measure_set, published
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import Embedder
from searchkit.readers.judgements import read_beir_split, read_judgements
from searchkit.records import Judgements
from searchkit.tasks import get_task

MODES = ["dense", "lexical"]


def write_set(folder: Path, first: int, split: str = "test", own: bool = False) -> Path:
    """A collection of ten passages with four queries; `own` queries are documents of the collection."""
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{n}", "title": "", "text": TEXTS[(first + 3 * n) % len(TEXTS)]} for n in range(10)]
    ids = [f"d{n}" if own else f"q{n}" for n in range(4)]
    queries = [{"_id": id, "text": " ".join(rows[n]["text"].split()[-4:])} for n, id in enumerate(ids)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    judged = [f"{id}\td{n + own}\t1" for n, id in enumerate(ids)]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "SciFact", 0)
    write_set(folder / "msmarco", 1, split="dev")
    write_set(folder / "quora", 2, own=True)
    write_set(folder / "cqadupstack" / "android", 3)
    write_set(folder / "cqadupstack" / "english", 4)
    (folder / "notes").mkdir()
    return folder


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """A model whose folder says that it was trained with instructions."""
    folder = build_model(tmp_path_factory.mktemp("models") / "e5-mistral-tiny-instruct")
    embedder = Embedder(folder, device="cpu", dtype="float32")
    assert embedder.conventions.default_instruction
    return embedder


def by_hand(
    folder: Path, place: Path, embedder: Embedder, *, split: str = "test", drop_self: bool = False, task: str = ""
) -> dict[str, dict[str, float]]:
    from searchkit.readers.corpus import read_corpus

    queries, qrels = read_beir_split(folder, split)
    instruction = get_task(task).instruction if task else None
    with SearchEngine.create(place, model=embedder, chunk_tokens=0) as engine:
        engine.add(read_corpus(folder))
        found = evaluate(engine, Judgements("", queries, qrels, instruction, drop_self), modes=MODES)
    return {item.mode: item.metrics for item in found}


def one_of(sets: Path, name: str) -> BeirSet:
    (one,) = find_sets(sets, [name])
    return one


def test_sets_are_found_by_any_of_their_names(sets: Path) -> None:
    assert [one.name for one in find_sets(sets)] == ["SciFact", "cqadupstack", "msmarco", "quora"]
    assert [len(one.parts) for one in find_sets(sets)] == [1, 2, 1, 1]
    assert [one.name for one in find_sets(sets, ["quora-retrieval", "scifact"])] == ["quora", "SciFact"]


def test_missing_collections_are_named(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r'no collection "fever"; there are "scifact"'):
        find_sets(sets, ["scifact", "fever"])
    with pytest.raises(CorpusError, match=r"holds no collection in BEIR format: .* and qrels/$"):
        find_sets(tmp_path)
    with pytest.raises(
        CorpusError, match="it is a collection itself: name the folder that holds it, with --sets quora"
    ):
        find_sets(sets / "quora")


def test_forums_have_equal_weight(sets: Path, tmp_path: Path, embedder: Embedder) -> None:
    found = measure_set(one_of(sets, "cqadupstack"), embedder, tmp_path, modes=MODES)
    parts = [by_hand(sets / "cqadupstack" / name, tmp_path / f"{name}.x", embedder) for name in ("android", "english")]
    for mode in MODES:
        for metric, value in found[mode].items():
            assert value == pytest.approx(sum(part[mode][metric] for part in parts) / 2)


def test_each_set_has_its_own_split_and_self_rule(sets: Path, tmp_path: Path, embedder: Embedder) -> None:
    for name, split in (("msmarco", "dev"), ("quora", "test")):
        found = measure_set(one_of(sets, name), embedder, tmp_path, modes=MODES)
        assert found == by_hand(sets / name, tmp_path / f"{name}.x", embedder, split=split, drop_self=True)
    kept = by_hand(sets / "quora", tmp_path / "kept.x", embedder)
    assert kept["lexical"]["mrr@10"] < found["lexical"]["mrr@10"]


def test_only_instructed_models_get_the_paper_s_instruction(
    sets: Path, tmp_path: Path, embedder: Embedder, instructed: Embedder
) -> None:
    for number, (model, task) in enumerate(((instructed, "scifact"), (embedder, ""))):
        found = measure_set(one_of(sets, "scifact"), model, tmp_path / str(number), modes=MODES)
        assert found == by_hand(sets / "SciFact", tmp_path / f"{number}.x", model, task=task)


def test_a_second_run_embeds_only_the_queries(sets: Path, tmp_path: Path, embedder: Embedder) -> None:
    first = measure_set(one_of(sets, "scifact"), embedder, tmp_path, modes=MODES)
    before = embedder.stats.texts
    assert measure_set(one_of(sets, "scifact"), embedder, tmp_path, modes=MODES) == first
    assert embedder.stats.texts - before == 5  # the four queries, and one to warm up the model


def test_the_name_decides_the_stemming_language(sets: Path, tmp_path: Path, instructed: Embedder) -> None:
    folder = tmp_path / "miracl"
    for name in ("de", "zh"):
        write_set(folder / name, 0, split="dev")
    for one, language in zip(find_sets(folder), ("german", "none"), strict=True):
        found = measure_set(one, instructed, tmp_path / "x", modes=MODES)
        with SearchEngine.open(tmp_path / "x" / f"{one.name}.index", model=instructed) as engine:
            assert engine.settings["language"] == language
            queries, qrels = read_beir_split(folder / one.name, "dev")
            said = get_task("miracl").instruction
            expected = evaluate(engine, Judgements("", queries, qrels, said), modes=MODES)
        assert found == {item.mode: item.metrics for item in expected}


@pytest.mark.parametrize(
    ("name", "language"),
    [("de", "german"), ("miracl-fr", "french"), ("xquad.zh", "none"), ("scifact", None), ("trec-covid", None)],
)
def test_a_name_ends_with_its_language_or_has_none(name: str, language: str | None) -> None:
    assert language_of(name) == language


def test_rules_are_those_of_the_name_or_of_the_folder(tmp_path: Path) -> None:
    def rules(place: str) -> str | None:
        found = BeirSet(Path(place).name, (tmp_path / place,)).rules
        return found.name if found else None

    names = ["miracl/de", "sets/miracl-de", "sets/xquad_en", "sets/de", "sets/fever", "sets/notes"]
    assert [rules(name) for name in names] == ["miracl", "miracl", "xquad", None, "fever", None]


def test_judgements_follow_the_rules_of_their_set(sets: Path) -> None:
    judgements = read_judgements(sets / "quora")
    queries, qrels = read_beir_split(sets / "quora", "test")
    task = get_task("quora")
    assert judgements == Judgements(f"{sets / 'quora'}, test", queries, qrels, task.instruction, drop_self=True)
    assert judgements.for_model("any instruction") == judgements
    assert judgements.for_model(None).instruction is None  # trained without instructions


def test_split_and_instruction_can_be_overridden(sets: Path, tmp_path: Path, instructed: Embedder) -> None:
    with pytest.raises(CorpusError, match='no split "dev"'):
        measure_set(one_of(sets, "scifact"), instructed, tmp_path, modes=MODES, split="dev")
    other = measure_set(one_of(sets, "scifact"), instructed, tmp_path, modes=MODES, instruction="Find the opposite")
    assert other["dense"] != measure_set(one_of(sets, "scifact"), instructed, tmp_path, modes=MODES)["dense"]


def test_published_numbers_are_found_by_model_and_task() -> None:
    assert published("minilm", "scifact") == published("sentence-transformers/all-MiniLM-L6-v2", "scifact") == 0.6451
    assert published("intfloat/e5-mistral-7b-instruct", "quora") == 0.8961
    assert published("bm25", "touche2020") == 0.3305
    assert published("builtin", "scifact") is None
    assert published("bm25", "fever") is None


def test_sets_have_equal_weight_in_the_average() -> None:
    found = {"a": {"dense": {"ndcg@10": 0.2}}, "b": {"dense": {"ndcg@10": 0.6}}}
    assert averages(found) == {"dense": {"ndcg@10": pytest.approx(0.4)}}


def test_the_command_prints_the_table(sets: Path, tmp_path: Path, mistral: Path) -> None:
    def call(*arguments: str) -> str:
        common = ["beir", str(sets), "--model", str(mistral), "--indexes", str(tmp_path / "x"), "--device", "cpu"]
        result = CliRunner().invoke(main, [*common, "--sets", "scifact,quora", "--modes", "lexical", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    table = call("--report", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows == json.loads(call("--format", "json"))
    mean = (rows["sets"]["scifact"]["lexical"]["ndcg@10"] + rows["sets"]["quora"]["lexical"]["ndcg@10"]) / 2
    assert rows["average"]["lexical"]["ndcg@10"] == pytest.approx(mean)
    lines = [line.split("│") for line in table.splitlines()]
    shown = {line[0].strip(): [value.strip() for value in line[1:]] for line in lines if len(line) == 3}
    assert shown["average of 2"] == [f"{mean:.4f}", f"{(0.6874 + 0.8042) / 2:.4f}"]
    assert shown["scifact"][1] == "0.6874"
