from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SENTENCES
from conftest import TEXTS as SPACED

from searchkit.embedder import Embedder
from searchkit.engine import SearchEngine
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
