"""The embedder and its indexes as mteb scores them; mteb's own evaluator and metrics are the oracle."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr
from texts import SENTENCES, TEXTS
from tiny_models import build_model

from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import evaluate
from searchkit.evaluation.mteb_adapter import MtebEncoder, MtebSearch, instruction_of
from searchkit.evaluation.mteb_tasks import MtebOptions, beir_task, find_tasks, measure_task
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split, read_judgements
from searchkit.records import Judgements
from searchkit.tasks import get_task

pytest.importorskip("mteb", reason="mteb's tasks need mteb")
STS, BITEXT = "Retrieve semantically similar text.", "Retrieve parallel sentences."


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """mteb makes its own cache folder when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTEB_CACHE", str(tmp_path_factory.mktemp("mteb")))
        yield


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """A model whose name says that it was trained with instructions."""
    folder = build_model(tmp_path_factory.mktemp("models") / "e5-mistral-tiny-instruct")
    return Embedder(folder, device="cpu", dtype="float32")


def write_beir(folder: Path, *, copies: int = 5, split: str = "test") -> Path:
    """150 documents, all but 30 of them copies (ties), two blank ones; graded judgements; a query without words."""
    (folder / "qrels").mkdir(parents=True)
    texts = [text if n % 2 else f"{text} " for n in range(copies) for text in TEXTS]
    rows = [{"_id": f"d{n}", "title": f"Note {n % 7}" if n % 3 else "", "text": text} for n, text in enumerate(texts)]
    rows += [{"_id": "blank", "title": "", "text": ""}, {"_id": "space", "title": " ", "text": "\n"}]
    queries = [{"_id": f"q{n}", "text": " ".join(text.split()[-4:])} for n, text in enumerate(SENTENCES)]
    queries += [
        {"_id": "lost", "text": "xylophone"},
        {"_id": "d7", "text": SENTENCES[7]},
        {"_id": "free", "text": "unasked"},
    ]
    judged = [f"q{n}\td{n + 30 * (n % copies)}\t{n % 3}" for n in range(10)] + [
        f"q{n}\td{n + 10}\t1" for n in range(10)
    ]
    judged += ["lost\td3\t1", "d7\td7\t1", "d7\td17\t1", "q4\tgone\t2"]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return folder


compared = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "mteb_agreement.py"))["compared"]


@pytest.mark.parametrize("name", ["notes", "quora"])  # quora drops a query's own document
def test_both_protocols_score_as_our_own_evaluation(name: str, tmp_path: Path, embedder: Embedder) -> None:
    """By mteb's metrics; through EncoderProtocol by its own search too, over every row of the corpus."""
    folder = write_beir(tmp_path / name)
    rows = list(compared(folder, embedder, tmp_path))
    assert [(row.protocol, row.mode) for row in rows] == [
        ("search", "dense"), ("search", "lexical"), ("search", "hybrid"), ("encoder", "dense")
    ]  # fmt: skip
    for row in rows:
        assert row.mteb == pytest.approx(row.ours, abs=1e-6)
        assert 0 < row.ours["ndcg@10"] < 1
    queries, qrels = read_beir_split(folder, "test")
    with SearchEngine.create(tmp_path / "x.index", model=embedder, chunk_tokens=0) as engine:
        engine.add(read_corpus(folder))
        found = evaluate(engine, Judgements(name, queries, qrels, drop_self=name == "quora"))
    assert [one.metrics for one in found] == [row.ours for row in rows[:3]]


def test_mteb_s_files_hold_the_same_numbers_rounded(tmp_path: Path, embedder: Embedder) -> None:
    folder = write_beir(tmp_path / "notes")
    (score,) = measure_task(beir_task(folder), embedder, MtebOptions(tmp_path, tmp_path, ["hybrid"]))
    with SearchEngine.open(tmp_path / "notes-test.index", model=embedder) as engine:
        (found,) = evaluate(engine, read_judgements(folder), modes=["hybrid"])
    assert score.metrics == pytest.approx(found.metrics, abs=6e-6)
    assert score.seconds_per_query is not None
    assert json.loads(score.file.read_text())["scores"]["test"][0]["ndcg_at_10"] == score.metrics["ndcg@10"]


def loader(texts: list[str], size: int = 3) -> Any:
    from mteb._create_dataloaders import _create_dataloader_from_texts

    return _create_dataloader_from_texts(texts, batch_size=size)


def encoded(model: MtebEncoder, name: str, prompt_type: Any = None) -> np.ndarray:
    import mteb

    metadata = mteb.get_task(name).metadata
    return model.encode(
        loader(TEXTS), task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=prompt_type
    )


def test_sides_and_tasks_get_the_paper_s_instructions(instructed: Embedder) -> None:
    from mteb.types import PromptType

    model = MtebEncoder(instructed)
    for name, side, sentence in (
        ("SciFact", PromptType.query, get_task("scifact").instruction),
        ("CQADupstackTexRetrieval", PromptType.query, get_task("cqadupstack").instruction),
        ("STS12", None, STS),
        ("Tatoeba", None, BITEXT),
        ("Banking77Classification", None, "Given a online banking query, find the corresponding intents"),
        ("TwentyNewsgroupsClustering.v2", None, "Identify the topic or theme of the given news articles"),
    ):
        np.testing.assert_allclose(encoded(model, name, side), instructed.encode_queries(TEXTS, sentence), atol=1e-6)
    plain = instructed.encode_passages(TEXTS)
    np.testing.assert_allclose(encoded(model, "SciFact", PromptType.document), plain, atol=1e-6)
    assert np.abs(plain - instructed.encode_queries(TEXTS, STS)).max() > 1e-3


def test_models_without_instructions_get_none(embedder: Embedder) -> None:
    from mteb.types import PromptType

    model = MtebEncoder(embedder)
    for name, side in (("SciFact", PromptType.query), ("SciFact", PromptType.document), ("STS12", None)):
        np.testing.assert_allclose(encoded(model, name, side), embedder.encode_passages(TEXTS), atol=1e-6)
    asked = MtebEncoder(embedder, instruction="Find its rhyme")
    np.testing.assert_allclose(encoded(asked, "STS12"), embedder.encode_queries(TEXTS, "Find its rhyme"), atol=1e-6)


def test_prefixes_follow_the_model_s_conventions(tmp_path: Path) -> None:
    from mteb.types import PromptType

    for name, both in (("e5-small", "query: "), ("bge-tiny-en", "")):
        model = Embedder(build_model(tmp_path / name, "bert"), device="cpu", dtype="float32")
        found = encoded(MtebEncoder(model), "STS12")
        bare = [text.removeprefix("passage: ") for text in TEXTS]
        wanted = model.encode_queries(bare) if both else model.encode_passages(bare)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        asked = encoded(MtebEncoder(model), "SciFact", PromptType.query)
        np.testing.assert_allclose(asked, model.encode_queries(TEXTS), atol=1e-6)


def test_our_instructions_equal_mteb_s(instructed: Embedder) -> None:
    """Where the paper has an instruction for a set, mteb has the same."""
    import mteb

    for name in ("ArguAna", "FiQA2018", "NFCorpus", "QuoraRetrieval", "SCIDOCS", "TRECCOVID", "Touche2020", "MSMARCO"):
        metadata = mteb.get_task(name).metadata
        assert instruction_of(metadata) == metadata.prompt["query"]


def local(kind: Any, columns: dict[str, list[Any]], **metadata: Any) -> Any:
    """A task of mteb over given data."""
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata

    data = {"path": "local", "revision": "1"}
    about = TaskMetadata(description="", dataset=data, eval_langs=["eng-Latn"], category="t2t", **metadata)

    class Local(kind):  # type: ignore[misc]
        metadata = about

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            self.dataset, self.data_loaded = {"test": Dataset.from_dict(columns)}, True

    return Local()


def test_sentence_pairs_score_as_spearman_of_cosines(tmp_path: Path, instructed: Embedder) -> None:
    from mteb.abstasks.sts import AbsTaskSTS

    one, other, score = TEXTS[:12], TEXTS[7:19], [float(n * 5 % 12) / 3 for n in range(12)]
    columns = {"sentence1": one, "sentence2": other, "score": score}
    task = local(AbsTaskSTS, columns, name="Pairs", type="STS", main_score="cosine_spearman")
    (found,) = measure_task(task, instructed, MtebOptions(tmp_path, tmp_path))
    cosines = (instructed.encode_queries(one, STS) * instructed.encode_queries(other, STS)).sum(1)
    assert found.metrics["cosine_spearman"] == pytest.approx(spearmanr(score, cosines)[0], abs=1e-6)
    assert (found.mode, found.seconds_per_query) == ("encoder", None)
    assert json.loads(found.file.read_text())["task_name"] == "Pairs"
    meta = json.loads((found.file.parent / "model_meta.json").read_text())
    assert meta["name"] == "searchkit/e5-mistral-tiny-instruct"
    assert found.file.parent.name == meta["revision"]


def test_bitext_scores_as_the_nearest_sentence(tmp_path: Path, instructed: Embedder) -> None:
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining

    one, other = SENTENCES, [sentence.upper() if n % 2 else sentence[::-1] for n, sentence in enumerate(SENTENCES)]
    columns = {"sentence1": one, "sentence2": other}
    task = local(AbsTaskBitextMining, columns, name="Parallel", type="BitextMining", main_score="accuracy")
    (found,) = measure_task(task, instructed, MtebOptions(tmp_path, tmp_path))
    cosines = instructed.encode_queries(one, BITEXT) @ instructed.encode_queries(other, BITEXT).T
    assert found.metrics["accuracy"] == pytest.approx((cosines.argmax(1) == np.arange(10)).mean())


def test_a_long_ranking_starts_like_a_search(tmp_path: Path, embedder: Embedder) -> None:
    """mteb wants 1,000 documents; the first 100 are those of a search for 100, and the others rank below."""
    task = beir_task(write_beir(tmp_path / "notes", copies=9))
    task.load_data()
    data = task.dataset["default"]["test"]
    model = MtebSearch(embedder, indexes=tmp_path, options=SearchOptions(mode="hybrid"))
    where = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default"}
    model.index(data["corpus"], **where)
    run = model.search(data["queries"], top_k=1000, **where)
    with SearchEngine.open(tmp_path / "notes-test.index", model=embedder) as engine:
        for query in data["queries"]:
            hits = engine.search(query["text"], k=100)
            found = sorted(run[query["id"]].items(), key=lambda item: -item[1])
            assert {hit.id for hit in hits} == {id for id, _ in found[:100]}
            assert len(found) == len(engine) == 270
            assert found[99][1] >= found[100][1]


def test_only_the_given_documents_are_ranked(tmp_path: Path, embedder: Embedder) -> None:
    task = beir_task(write_beir(tmp_path / "notes"))
    task.load_data()
    data = task.dataset["default"]["test"]
    among = {query: [f"d{n}" for n in range(start, start + 9)] for start, query in enumerate(data["queries"]["id"])}
    where = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "top_ranked": among}
    model = MtebSearch(embedder, indexes=tmp_path, options=SearchOptions(mode="dense"))
    model.index(data["corpus"], **where)
    run = model.search(data["queries"], top_k=1000, **where)
    texts = {row["id"]: f"{row['title']} {row['text']}".strip() for row in data["corpus"]}
    for query, text in zip(data["queries"]["id"], data["queries"]["text"], strict=True):
        cosines = embedder.encode_passages([texts[id] for id in among[query]]) @ embedder.encode_queries([text])[0]
        assert run[query] == pytest.approx(dict(zip(among[query], cosines.tolist(), strict=True)), abs=1e-5)


def call(*arguments: object, fails: str = "") -> Any:
    result = CliRunner().invoke(main, ["mteb", "--device", "cpu", *map(str, arguments)])
    assert (result.exit_code != 0) == bool(fails), result.output
    assert fails in result.output
    return result


def test_the_command_runs_a_folder_as_a_task(tmp_path: Path, mistral: Path) -> None:
    folder = write_beir(tmp_path / "notes")
    places = ["--results", tmp_path / "out", "--indexes", tmp_path / "indexes", "--model", mistral]
    arguments = [folder, "--modes", "dense,lexical", "--recipe", "int8", "--format", "json", *places]
    rows = json.loads(call(*arguments).stdout)
    assert [row["mode"] for row in rows] == ["dense", "lexical"]
    files = [Path(row["file"]) for row in rows]
    stored = [json.loads(file.read_text())["scores"]["test"][0]["ndcg_at_10"] for file in files]
    assert stored == [row["metrics"]["ndcg@10"] for row in rows]
    meta = json.loads((files[0].parent / "model_meta.json").read_text())
    assert meta["experiment_kwargs"] == {"mode": "dense", "recipe": "int8"}
    with SearchEngine.open(tmp_path / "indexes" / "notes-test.index") as engine:
        assert engine.storage.plan.recipe == "int8"

    again = json.loads(call(*arguments).stdout)  # existing results are read
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]
    assert [row["seconds_per_query"] for row in again] == [None, None]
    qrels = folder / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text() + "q1\td2\t2\n")  # but not those of other data
    assert json.loads(call(*arguments).stdout)[1]["seconds_per_query"] > 0
    assert "notes" in call(folder, "--modes", "dense", *places).stdout


def test_an_index_of_another_collection_is_refused(tmp_path: Path, embedder: Embedder) -> None:
    folder = write_beir(tmp_path / "notes")
    options = MtebOptions(tmp_path / "out", tmp_path, ["lexical"])
    measure_task(beir_task(folder), embedder, options)
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    (folder / "corpus.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match=r"holds 150 documents, and the corpus has 149.*remove the index"):
        measure_task(beir_task(folder), embedder, options)


def test_tasks_that_cannot_run_say_why(tmp_path: Path, mistral: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder and no task of mteb is called 'SciFakt'.*Did you mean: 'SciFact'"):
        find_tasks(["SciFakt"])
    with pytest.raises(ValueError, match="not a BEIR folder"):
        find_tasks([str(tmp_path)])
    out = ["--results", tmp_path / "out", "--indexes", tmp_path / "indexes", "--model", mistral]
    call("SciFact", *out, fails="the data of SciFact could not be loaded")  # the tests are offline
    call("SciFact", "--recipe", "zip", *out, fails="recipe is 'zip'")
    call("SciFact", "--modes", "rank-bm25", *out, fails="no 'rank-bm25'; expected some of dense, lexical, hybrid")
    call("SciFact", "--split", "train", fails="No such option")
    call(fails="Missing argument 'TASK...'")
