from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from searching import DENSE, LEXICAL, ids
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.indexer.fusion import reciprocal_rank, weighted
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions, as_mode
from searchkit.records import Document, Query

STORY = " ".join(TEXTS[:10])
QUERIES = ["why does bread rise", "stars and comets", "money"]


def similarities(embedder: Embedder, documents: list[Document], query: str) -> np.ndarray:
    """The inner product of every document with the query, by numpy alone."""
    rows = embedder.encode_passages([f"{document.title} {document.text}".strip() for document in documents])
    return np.asarray(rows @ embedder.encode_queries([query])[0])


# Searching


@pytest.mark.parametrize("query", QUERIES)
def test_dense_search_equals_brute_force(
    engine: SearchEngine, embedder: Embedder, documents: list[Document], query: str
) -> None:
    expected = similarities(embedder, documents, query)
    hits = engine.search(query, k=7, options=DENSE)
    assert ids(hits) == [str(n) for n in np.argsort(-expected)[:7]]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:7], atol=1e-5)


def test_hits_hold_what_was_added(engine: SearchEngine, documents: list[Document]) -> None:
    hits = engine.search("yeast makes gas", k=5)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        document = documents[int(hit.id)]
        assert (hit.title, hit.text, hit.metadata) == (document.title, document.text.strip(), document.metadata)
        assert document.text[hit.start : hit.stop] == hit.text


def test_lexical_search_matches_terms_alone(engine: SearchEngine) -> None:
    assert set(ids(engine.search("yeast", options=LEXICAL))) == {"1", "11", "21"}
    assert engine.search("xylophone", options=LEXICAL) == []


def test_lexical_search_and_an_empty_index_load_no_model(
    engine: SearchEngine, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    SearchEngine.create(tmp_path / "empty.index", model=embedder).close()
    monkeypatch.setattr(Embedder, "__init__", lambda *_, **__: pytest.fail("a model was loaded"))
    with SearchEngine.open(engine.store.folder) as reader, SearchEngine.open(tmp_path / "empty.index") as empty:
        assert len(reader.search("yeast", options=LEXICAL)) == 3
        assert empty.search("yeast") == []


@pytest.mark.parametrize("mode", MODES)
def test_documents_that_tie_at_the_cut_are_returned_on_request(tmp_path: Path, embedder: Embedder, mode: str) -> None:
    how = SearchOptions(mode=as_mode(mode))
    with SearchEngine.create(tmp_path / "copies.index", model=embedder) as engine:
        engine.add(Document(str(n), TEXTS[n % 3]) for n in range(90))
        for query in ("why does bread rise", "the tail of the comet over the river"):
            (whole,) = engine.rank([query], k=90, options=how)
            for k in (1, 7, 30, 31, 90):
                (ranking,) = engine.rank([query], k=k, options=how, ties=True)
                least = np.float32(whole[:k][-1].score)
                wanted = {item.doc for item in whole if np.float32(item.score) >= least}
                assert {item.doc for item in ranking} == wanted
                assert len(engine.rank([query], k=k, options=how)[0]) == min(k, len(whole))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_hybrid_is_the_weighted_sum_of_both_sides(
    engine: SearchEngine, embedder: Embedder, documents: list[Document], weight: float
) -> None:
    query = "the sun and the moon"
    vectors = dict(enumerate(similarities(embedder, documents, query).tolist()))
    bm25 = {int(hit.id): hit.score for hit in engine.search(query, k=30, options=LEXICAL)}
    expected = weighted(vectors, bm25, weight)
    hits = engine.search(query, k=30, options=SearchOptions(fusion="weighted", dense_weight=weight))
    assert {int(hit.id): hit.score for hit in hits} == pytest.approx(expected, abs=1e-4)


def test_hybrid_by_reciprocal_rank_uses_ranks_only(engine: SearchEngine) -> None:
    query = "the sun and the moon"
    sides = [{int(h.id): h.score for h in engine.search(query, k=30, options=side)} for side in (DENSE, LEXICAL)]
    hits = engine.search(query, k=30, options=SearchOptions(fusion="rrf", rrf_k=7))
    assert {int(hit.id): hit.score for hit in hits} == pytest.approx(reciprocal_rank(sides, 7))


def test_a_document_found_by_lexical_search_alone_has_its_similarity_too(
    engine: SearchEngine, embedder: Embedder, documents: list[Document]
) -> None:
    vectors = similarities(embedder, documents, "yeast")
    bm25 = {int(hit.id): hit.score for hit in engine.search("yeast", k=3, options=LEXICAL)}
    candidates = {*np.argsort(-vectors)[:3].tolist(), *bm25}
    assert len(candidates) > 3
    expected = weighted({n: float(vectors[n]) for n in candidates}, bm25, 0.5)
    hits = engine.search("yeast", k=3, options=SearchOptions(depth=3))
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True)[:3], abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_k_beyond_the_size_returns_every_document(engine: SearchEngine, mode: str) -> None:
    hits = engine.search("note", k=1000, options=SearchOptions(mode=as_mode(mode)))  # in every title
    assert sorted(ids(hits), key=int) == [str(n) for n in range(30)]


def test_many_queries_return_what_each_returns_alone(engine: SearchEngine) -> None:
    for query, hits in zip(QUERIES, engine.search_many(QUERIES, k=4), strict=True):
        alone = engine.search(query, k=4)
        assert ids(hits) == ids(alone)
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-4)


def test_no_queries_give_no_rankings(engine: SearchEngine) -> None:
    assert engine.search_many([]) == []


@pytest.mark.parametrize("mode", MODES)
def test_equal_documents_keep_their_order(tmp_path: Path, embedder: Embedder, mode: str) -> None:
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine:
        engine.add([Document(name, "the same words") for name in "qwerty"])
        assert ids(engine.search("words", options=SearchOptions(mode=as_mode(mode)))) == list("qwerty")


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(engine: SearchEngine, query: str) -> None:
    with pytest.raises(ValueError, match="a query is empty"):
        engine.search(query)


def test_misspelt_and_impossible_options_are_refused(engine: SearchEngine) -> None:
    with pytest.raises(ValueError, match="k is 0; expected 1 or more"):
        engine.search("tea", k=0)
    with pytest.raises(ValueError, match="expected one of dense, lexical, hybrid"):
        as_mode("sparse")
    with pytest.raises(ValueError, match="fusion is 'max'; expected one of adaptive, weighted, rrf"):
        SearchOptions(fusion="max")
    with pytest.raises(ValueError, match="dense_weight is 2; expected 0 to 1"):
        SearchOptions(dense_weight=2)


# Instructions


def test_each_query_keeps_its_own_instruction(engine: SearchEngine, embedder: Embedder) -> None:
    own = ["Find the opposite", None, "", "Find the opposite"]
    queries = [Query(str(n), "the sun", instruction) for n, instruction in enumerate(own)]
    results = engine.search_many(queries, instruction="Find notes", k=30, options=DENSE)
    for instruction, hits in zip(own, results, strict=True):
        chosen = "Find notes" if instruction is None else instruction
        alone = engine.search("the sun", instruction=chosen, k=30, options=DENSE)
        assert ids(hits) == ids(alone)
    assert len({tuple(ids(hits)) for hits in results}) == 3


def test_the_instruction_reaches_the_model(engine: SearchEngine, embedder: Embedder) -> None:
    rows = embedder.encode_passages([f"Note {n} {text}".strip() for n, text in enumerate(TEXTS)])
    query = embedder.encode_passages(["Instruct: Find teas\nQuery: the sun"])[0]
    hits = engine.search("the sun", instruction="Find teas", k=30, options=DENSE)
    assert ids(hits) == [str(n) for n in np.argsort(-(rows @ query))]


def test_a_task_stands_for_its_instruction(engine: SearchEngine) -> None:
    instruction = "Given a scientific claim, retrieve documents that support or refute the claim"
    assert engine.search("sun", task="SciFact") == engine.search("sun", instruction=instruction)
    with pytest.raises(ValueError, match="give one of them"):
        engine.search("sun", task="scifact", instruction=instruction)
    with pytest.raises(ValueError, match="no task is called 'scifun'"):
        engine.search("sun", task="scifun")


# Long documents


def test_long_documents_are_found_and_shown_by_their_best_passage(tmp_path: Path, embedder: Embedder) -> None:
    documents = [Document(name, text) for name, text in (("story", STORY), ("tea", "Tea is a drink."))]
    with SearchEngine.create(tmp_path / "x", model=embedder, chunk_tokens=24, overlap=0) as engine:
        assert engine.add(documents).passages > 5
        spans = [
            p
            for p in engine.store.documents.passages(range(engine.store.documents.counts()[1])).values()
            if p.id == "story"
        ]
        scores = embedder.encode_passages([p.text for p in spans]) @ embedder.encode_queries(["the orchestra"])[0]
        hits = {hit.id: hit for hit in engine.search("the orchestra", options=DENSE)}
        best = spans[int(np.argmax(scores))]
    assert (hits["story"].text, hits["story"].score) == (best.text, pytest.approx(scores.max(), abs=1e-5))
    assert STORY[best.start : best.stop] == best.text
    assert len(hits) == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_document_with_many_good_passages_does_not_crowd_out_others(
    tmp_path: Path, embedder: Embedder, mode: str
) -> None:
    crowd = Document("crowd", "The yeast bread rises by yeast again, and so on. " * 60)
    others = [Document(f"other {n}", f"{text} Yeast.") for n, text in enumerate(TEXTS[:4])]
    with SearchEngine.create(tmp_path / "x", model=embedder, chunk_tokens=16, overlap=0) as engine:
        assert engine.add([crowd, *others]).passages > 60
        options = SearchOptions(mode=as_mode(mode), depth=5)
        hits = engine.search("The yeast bread rises by yeast again, and so on.", k=5, options=options)
    assert sorted(ids(hits)) == ["crowd", *(f"other {n}" for n in range(4))]


def test_passages_carry_the_title_and_stay_within_the_model(tmp_path: Path, embedder: Embedder) -> None:
    with SearchEngine.create(tmp_path / "x", model=embedder, chunk_tokens=40) as engine:
        report = engine.add([Document("a", STORY, title="Ten short stories")])
        longest = max(len(embedder.offsets(f"{title} {text}")) for _, title, text in engine.store.documents.texts())
        assert report.truncated == 0
        assert longest <= 41
        assert set(ids(engine.search("stories", options=LEXICAL))) == {"a"}


def test_whole_documents_are_truncated_for_the_model_only_and_counted(tmp_path: Path, embedder: Embedder) -> None:
    with SearchEngine.create(tmp_path / "x", model=embedder, chunk_tokens=0) as engine:
        report = engine.add([Document("a", f"{STORY * 3} zymurgy"), Document("b", "short")])
        assert (report.documents, report.passages, report.truncated) == (2, 2, 1)
        assert ids(engine.search("zymurgy", options=LEXICAL)) == ["a"]


def test_a_document_with_only_a_title_is_found(tmp_path: Path, embedder: Embedder) -> None:
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine:
        engine.add([Document("a", "", title="Bread"), Document("b", "  \n", title="Tea")])
        assert ids(engine.search("bread", k=1)) == ["a"]


@pytest.mark.parametrize(("tokens", "overlap"), [(7, 0), (100_000, 0), (16, 9), (16, -1)])
def test_impossible_passage_lengths_are_refused_before_anything_is_made(
    tmp_path: Path, embedder: Embedder, tokens: int, overlap: int
) -> None:
    with pytest.raises(ValueError, match=r"chunk_tokens is \d+; expected 0|overlap is -?\d; expected 0 to 8"):
        SearchEngine.create(tmp_path / "x", model=embedder, chunk_tokens=tokens, overlap=overlap)
    assert not (tmp_path / "x").exists()
