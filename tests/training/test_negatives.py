from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from texts import SENTENCES
from texts import TEXTS as SPACED

from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.records import Document
from searchkit.training.dataset import Example
from searchkit.training.negatives import MineReport, mine

TEXTS = [text.strip() for text in SPACED]


@pytest.fixture
def engine(tmp_path: Path, embedder: Embedder) -> SearchEngine:
    engine = SearchEngine.create(tmp_path / "i", model=embedder)
    engine.add([Document(str(n), text) for n, text in enumerate(TEXTS)])
    return engine


EXAMPLES = [Example(query=" ".join(text.split()[:4]), positive=text) for text in SENTENCES]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_negatives_are_of_the_index_and_never_the_positive(engine: SearchEngine, mode: str) -> None:
    report = MineReport()
    options = SearchOptions(mode=mode)  # type: ignore[arg-type]
    mined = list(mine(engine, EXAMPLES, report, count=3, depth=30, margin=9, options=options))
    assert all(set(example.negatives) <= set(TEXTS) - {example.positive} for example in mined)
    assert report.negatives == sum(len(example.negatives) for example in mined) > 0
    assert report.copies == len(EXAMPLES)


def test_what_is_nearly_as_near_as_the_positive_is_dropped_and_counted(
    engine: SearchEngine, embedder: Embedder
) -> None:
    report = MineReport()
    options = SearchOptions(mode="dense")
    for example in mine(engine, EXAMPLES, report, count=30, depth=30, margin=0.9, options=options):
        query = embedder.encode_queries([example.query])[0]
        nearness = float(embedder.encode_passages([example.positive])[0] @ query)
        limit = nearness - 0.1 * abs(nearness)
        others = [text for text in TEXTS if text != example.positive]
        near = embedder.encode_passages(others) @ query
        assert set(example.negatives) == {text for text, score in zip(others, near, strict=True) if score <= limit}
    assert report.too_close > 0
    assert report.too_close + report.negatives + report.copies == 30 * len(EXAMPLES)


def test_negatives_that_were_there_stay_first(engine: SearchEngine) -> None:
    example = Example(query="bread", positive=SENTENCES[1], negatives=("mine",))
    (mined,) = mine(engine, [example], MineReport(), count=2, margin=9)
    assert mined.negatives[0] == "mine"
    assert len(mined.negatives) == 3


def test_similarities_equal_the_inner_products(engine: SearchEngine, embedder: Embedder) -> None:
    query = embedder.encode_queries(["bread"])[0]
    rows = np.array([3, 0, 29])
    wanted = embedder.encode_passages([TEXTS[row] for row in rows]) @ query
    np.testing.assert_allclose(engine.similarities(query, rows), wanted, atol=1e-5)


def test_passages_of_the_positive_are_no_negatives(tmp_path: Path, embedder: Embedder) -> None:
    whole = " ".join(SENTENCES)
    with SearchEngine.create(tmp_path / "cut", model=embedder, chunk_tokens=16, overlap=0) as engine:
        engine.add([Document("whole", whole), Document("other", TEXTS[-1])])
        assert len(engine.store.documents.passages(range(100))) > 5
        (mined,) = mine(engine, [Example(query="bread", positive=whole)], MineReport(), count=50, margin=99)
    assert mined.negatives
    assert all(text in TEXTS[-1] for text in mined.negatives)


@pytest.mark.parametrize("margin", [0.0, float("nan"), float("inf")])
def test_a_margin_that_is_no_share_is_refused(engine: SearchEngine, margin: float) -> None:
    with pytest.raises(ValueError, match="margin is"):
        next(mine(engine, EXAMPLES, MineReport(), margin=margin))


def test_the_command_looks_ids_up_in_the_index_and_keeps_what_was_there_until_it_is_done(
    engine: SearchEngine, tmp_path: Path
) -> None:
    engine.close()
    rows = [{"query": "bread rises", "positive_id": "1", "instruction": ""}, {"query": "a comet", "positive_id": "2"}]
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "mined.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out.write_text("before")
    command = ["mine", str(tmp_path / "i"), str(pairs), "--out", str(out)]
    assert CliRunner().invoke(main, [*command, "--margin", "nan"]).exit_code == 1
    assert out.read_text() == "before"
    assert CliRunner().invoke(main, command).exit_code == 0
    mined = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["positive"] for row in mined] == [TEXTS[1], TEXTS[2]]
    assert [row.get("instruction") for row in mined] == ["", None]
    assert all(row["negatives"] for row in mined)
    assert not list(tmp_path.glob("*.part"))
