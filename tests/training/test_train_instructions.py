"""What training, its dev score and later searches put before a query has to be the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from texts import SENTENCES, TEXTS
from tiny_models import build_model

from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import Judgements
from searchkit.tasks import WEB_SEARCH
from searchkit.training.config import TrainConfig
from searchkit.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """Six queries that no training example has."""
    folder = tmp_path / "dev"
    (folder / "qrels").mkdir(parents=True)
    found = {
        "bees flowers": 5, "salt water freezing": 8, "loan interest": 3, "comet tail": 2, "library tools": 7,
        "oboe": 4,
    }  # fmt: skip
    rows = [{"_id": str(n), "title": "", "text": text} for n, text in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": f"q{n}", "text": text} for n, text in enumerate(found)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{n}\t{document}\t1\n" for n, document in enumerate(found.values()))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def examples(file: Path, instruction: str | None = None, texts: Sequence[str] = SENTENCES) -> Path:
    rows = [{"query": text[:9], "positive": text, "instruction": instruction} for text in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_dev_score_of_a_run_is_that_of_the_folder_it_writes(config: TrainConfig, dev: Path) -> None:
    report = train(replace(config, dev=str(dev), epochs=3))
    saved = Embedder(config.out, device="cpu", dtype="float32")
    assert saved.conventions.default_instruction == "Find it"
    with SearchEngine.create(dev / "index", model=saved, chunk_tokens=0) as engine:
        engine.add(read_corpus(dev))
        queries, qrels = read_beir_split(dev, "dev")
        found, bare = (
            evaluate(engine, Judgements("dev", queries, qrels, told), modes=["dense"])[0].metrics["ndcg@10"]
            for told in (None, "")
        )
    assert found != bare  # or the next line would say nothing
    assert report.dev == [(report.steps, pytest.approx(found))]


def test_queries_without_an_instruction_are_trained_with_the_base_s_as_they_are_searched(
    config: TrainConfig, tmp_path: Path
) -> None:
    base = build_model(tmp_path / "tiny-qwen3-embedding", "qwen3")  # by its name it has a default instruction
    losses = {}
    for told in (None, WEB_SEARCH, ""):
        file, out = examples(tmp_path / f"{told}.jsonl", told), str(tmp_path / f"out {told}")
        run = replace(config, sources=(str(file),), base=str(base), out=out, batch_size=10, max_length=256, max_steps=1)
        losses[told] = train(run).losses[0][1]
    assert losses[None] == pytest.approx(losses[WEB_SEARCH], rel=1e-5)
    assert losses[None] != pytest.approx(losses[""], rel=1e-3)
    assert Embedder(tmp_path / "out None", device="cpu").conventions.default_instruction == WEB_SEARCH
    train(replace(run, instructed=0, out=str(tmp_path / "without")))
    assert Embedder(tmp_path / "without", device="cpu").conventions.default_instruction is None


def test_an_instruction_that_leaves_no_room_for_the_query_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    long = examples(tmp_path / "long.jsonl", "Find what this is about, whatever it is, " * 9, SENTENCES[:2]).read_text()
    mixed = examples(tmp_path / "mixed.jsonl", "Find it")
    mixed.write_text(mixed.read_text() + long)
    report = train(replace(config, sources=(str(mixed),), max_steps=1, out=str(tmp_path / "mixed")))
    assert (report.examples, report.refused) == (10, 2)
    assert (tmp_path / "mixed" / "rejects.jsonl").read_text().count("leaves no room for a query") == 2
    with pytest.raises(ValueError, match=r'"Find it".* takes \d+ of 16 tokens.*--max-length'):
        train(replace(config, max_length=16))
    train(replace(config, max_length=16, instructed=0, max_steps=1))


def test_texts_that_are_cut_are_counted(config: TrainConfig, tmp_path: Path) -> None:
    file = examples(tmp_path / "long.jsonl", texts=[*SENTENCES[:3], "Tea is hot. " * 50])
    report = train(replace(config, sources=(str(file),), batch_size=4, epochs=2))
    assert (report.truncated, report.texts) == (2, 16)
    assert "2 of 16 texts" in (Path(config.out) / "README.md").read_text()
