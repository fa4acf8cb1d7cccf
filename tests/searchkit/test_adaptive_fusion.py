from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from texts import SENTENCES

from searchkit.engine import SearchEngine
from searchkit.indexer.fusion import lexical_share, weighted
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.records import Document, Query
from searchkit.tasks import WEB_SEARCH

CLAIM = "bees find flowers by dancing over the river"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> SearchEngine:
    made = SearchEngine.create(tmp_path_factory.mktemp("adaptive") / "x.index", model=embedder)
    made.add(Document(str(n), text) for n, text in enumerate(SENTENCES))
    return made


@pytest.mark.parametrize(
    ("evidence", "agreement", "terms", "share"),
    [
        (0.5, 1.0, 8, 1.0),  # much was matched, and the instruction changes nothing
        (0.1, 1.0, 8, 0.0),  # a question word alone
        (0.2, 1.0, 8, 0.5),
        (0.3, 0.97, 8, 1.0),  # an instruction that only says to search
        (0.35, 0.955, 8, 1.0),  # the instruction changes something, and more evidence is wanted
        (0.3, 0.955, 8, 0.5),
        (0.4, 0.95, 8, 0.5),
        (0.5, 0.9, 8, 0.0),  # the instruction asks for something else
        (0.5, 0.945, 8, 0.5),
        (0.5, 0.9, 3, 0.5),  # of three keywords the agreement says little
    ],
)
def test_lexical_matches_count_as_far_as_they_answer_what_was_asked(
    evidence: float, agreement: float, terms: int, share: float
) -> None:
    assert lexical_share(evidence, agreement, terms) == pytest.approx(share)


def test_the_weight_follows_from_evidence_and_agreement(engine: SearchEngine, embedder: Embedder) -> None:
    """The whole ranking, computed again by numpy from both sides."""
    instruction = "Find what the dance of an insect means"
    hits = engine.search(CLAIM, instruction=instruction, k=10, explain=True)
    passages = embedder.encode_passages(SENTENCES)
    similar, neutral = (passages @ embedder.encode_queries([CLAIM], text)[0] for text in (instruction, WEB_SEARCH))
    bm25 = {int(hit.id): hit.score for hit in engine.search(CLAIM, k=10, mode="lexical")}
    index = engine._lexical.index_of(engine._ranker.snapshot)
    ceiling, terms = index.ceiling(CLAIM)
    share = lexical_share(max(bm25.values()) / ceiling, float(np.corrcoef(similar, neutral)[0, 1]), terms)
    expected = weighted(dict(enumerate(similar.tolist())), bm25, 1 - 0.5 * share)
    assert {int(hit.id): hit.score for hit in hits} == pytest.approx(expected, abs=1e-4)
    for hit in hits:
        why = hit.explanation
        assert why is not None
        assert why.dense_score == pytest.approx(similar[int(hit.id)], abs=1e-4)
        assert why.dense_rank == 1 + int((similar > similar[int(hit.id)]).sum())
        assert why.lexical_score == pytest.approx(bm25.get(int(hit.id)))
        assert why.dense_weight == pytest.approx(1 - 0.5 * share)


def test_the_ceiling_is_that_of_bm25(engine: SearchEngine) -> None:
    """One term in one of ten passages: its idf times k1 + 1, of which a real passage reaches about four fifths."""
    ceiling, terms = engine._lexical.index_of(engine._ranker.snapshot).ceiling("yeast")
    assert (ceiling, terms) == (pytest.approx(0.8 * 2.2 * np.log(1 + 9.5 / 1.5)), 1)


def test_a_lone_question_word_does_not_lift_a_document(tmp_path: Path) -> None:
    notes = {
        "books": "The Overstory, Piranesi. Lent Piranesi to Sam.",
        "meeting": "Tom worries about churn; we agreed to interview five customers who left.",
        "tomatoes": "Leaves turn yellow from below: mulch and water in the morning.",
        "bread": "How to keep a sourdough starter alive",
    }
    with SearchEngine.create(tmp_path / "notes.index") as engine:
        engine.add(Document(id, text) for id, text in notes.items())
        assert engine.search("who did I lend a novel to", k=1)[0].id == "books"


@pytest.mark.parametrize("own", [None, "", WEB_SEARCH])
def test_without_an_instruction_of_its_own_a_query_is_embedded_once(
    engine: SearchEngine, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    calls = []
    encode = Embedder.encode_queries
    monkeypatch.setattr(
        Embedder, "encode_queries", lambda self, texts, how=None: calls.append(how) or encode(self, texts, how)
    )
    engine.search_many([Query("a", CLAIM, own), Query("b", "yeast", own)])
    assert calls == [own]
    calls.clear()
    engine.search_many([Query("a", CLAIM, own), Query("b", "yeast", "Find recipes")])
    assert calls == [own, "Find recipes", WEB_SEARCH]


def test_one_side_alone_is_explained_too(engine: SearchEngine) -> None:
    dense, lexical = (engine.search(CLAIM, k=3, mode=mode, explain=True) for mode in ("dense", "lexical"))
    assert [hit.explanation.dense_rank for hit in dense] == [1, 2, 3]  # type: ignore[union-attr]
    assert all(hit.explanation.lexical_score is None for hit in dense)  # type: ignore[union-attr]
    assert [hit.explanation.lexical_score for hit in lexical] == [hit.score for hit in lexical]  # type: ignore[union-attr]
    rrf = engine.search(CLAIM, k=3, options=SearchOptions(fusion="rrf"), explain=True)
    assert rrf[0].explanation.dense_weight is None  # type: ignore[union-attr]
    assert engine.search(CLAIM, k=1)[0].explanation is None


def test_a_query_that_the_model_cannot_read_is_ranked_by_its_lexical_matches(tmp_path: Path) -> None:
    texts = ["糖尿病患者请减糖", "股票暴跌", "流感疫苗", "吸尘器坏了", "请问您贵姓"]
    with SearchEngine.create(tmp_path / "zh.index") as engine:
        engine.add(Document(str(n), text) for n, text in enumerate(texts))
        hits = engine.search_many(["疫苗接种", "how to vaccinate"], explain=True)
        assert hits[0][0].id == "2"
        assert {hit.explanation.dense_weight for hit in hits[0]} == {0.0}  # type: ignore[union-attr]
        assert {hit.explanation.dense_weight for hit in hits[1]} == {0.5}  # type: ignore[union-attr]
        assert len(engine.search("天气", k=5)) == 5  # nothing matches: vectors are all there is
        plain = engine.search("疫苗接种", options=SearchOptions(fusion="weighted"), explain=True)
        assert {hit.explanation.dense_weight for hit in plain} == {0.5}  # type: ignore[union-attr]
