from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import TEXTS
from tiny_models import build_model

from searchkit.check import check
from searchkit.engine import SearchEngine
from searchkit.errors import StoreError
from searchkit.indexer.conditions import Condition
from searchkit.indexer.fusion import reciprocal_rank, weighted
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.lexical_files import LexicalFiles
from searchkit.lexical_sync import LexicalSync
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions, as_mode
from searchkit.records import Document, Hit, Query

DENSE, LEXICAL = SearchOptions(mode="dense"), SearchOptions(mode="lexical")
STORY = " ".join(TEXTS[:10])
QUERIES = ["why does bread rise", "stars and comets", "money"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[SearchEngine]:
    """The thirty documents, each in one passage. No test changes what it holds."""
    documents = [Document(str(n), text, title=f"Note {n}", metadata={"n": n}) for n, text in enumerate(TEXTS)]
    with SearchEngine.create(tmp_path_factory.mktemp("engine") / "notes.index", model=embedder) as made:
        made.add(documents)
        yield made


def ids(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


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


# Adding


def test_adding_twice_changes_and_embeds_nothing(
    engine: SearchEngine, embedder: Embedder, documents: list[Document]
) -> None:
    before, texts = engine.search("sun", k=30), embedder.stats.texts
    report = engine.add(documents)
    assert (report.documents, report.passages, report.unchanged, report.refused) == (0, 0, 30, 0)
    assert (len(engine), embedder.stats.texts - texts) == (30, 0)
    assert engine.search("sun", k=30) == before


def test_an_index_grows_as_if_built_at_once(
    engine: SearchEngine, tmp_path: Path, embedder: Embedder, documents: list[Document]
) -> None:
    with SearchEngine.create(tmp_path / "steps", model=embedder) as steps:
        for start in range(0, 30, 7):
            steps.add(documents[start : start + 7])
    with SearchEngine.open(tmp_path / "steps", model=embedder) as steps:
        for query in QUERIES:
            at_once, grown = engine.search(query, k=30), steps.search(query, k=30)
            assert ids(grown) == ids(at_once)
            assert [hit.score for hit in grown] == pytest.approx([hit.score for hit in at_once], abs=1e-4)


@pytest.mark.parametrize("change", ["text", "title", "metadata"])
def test_changed_content_is_refused_and_the_old_content_stays(engine: SearchEngine, change: str) -> None:
    values: dict[str, Any] = {"text": TEXTS[3], "title": "Note 3", "metadata": {"n": 3}}
    changed = Document("3", **{**values, change: {"n": 4} if change == "metadata" else "Other"}, place="x.jsonl:4")
    with pytest.raises(ValueError, match=r"x\.jsonl:4: id '3' is in the index with other content; to replace it"):
        engine.add([changed])
    assert engine.add([Document("3", **values)]).unchanged == 1


def test_an_id_that_comes_twice_is_refused_with_both_places(tmp_path: Path, embedder: Embedder) -> None:
    twice = [Document("a", "tea", place="x.jsonl:1"), Document("a", "tea", place="x.jsonl:9")]
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine:
        with pytest.raises(ValueError, match=r"x\.jsonl:9: id 'a' came before, at x\.jsonl:1; ids must be unique"):
            engine.add(twice)
        with pytest.raises(ValueError, match=r"^id 'a' came before; ids must be unique"):
            engine.add([Document("a", "tea"), Document("a", "tea")])


def test_refused_documents_go_to_the_callback_and_the_others_are_added(tmp_path: Path, embedder: Embedder) -> None:
    refused: list[tuple[str, str]] = []
    batch = [Document("a", "tea"), Document("b", "milk"), Document("a", "coffee"), Document("c", "cocoa")]
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine:
        report = engine.add(batch, on_refused=lambda document, reason: refused.append((document.text, reason)))
        assert sorted(ids(engine.search("milk", options=DENSE))) == ["a", "b", "c"]
    assert (report.documents, report.refused) == (3, 1)
    assert refused == [("coffee", "id 'a' came before; ids must be unique")]


def test_no_more_documents_are_read_than_the_next_commit_needs(tmp_path: Path, embedder: Embedder) -> None:
    ahead: list[int] = []
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine:

        def stream() -> Iterator[Document]:
            for n in range(40):
                ahead.append(n - engine.store.documents.counts()[0])  # read, and not committed
                yield Document(str(n), f"document {n}")

        report = engine.add(stream(), commit_every=8)
    assert ahead == [n % 8 for n in range(40)]
    assert (report.documents, report.passages) == (40, 40)


def test_no_batch_to_embed_is_larger_than_a_commit(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    encode = embedder.encode_passages
    monkeypatch.setattr(
        embedder, "encode_passages", lambda texts, *rest: batches.append(len(texts)) or encode(texts, *rest)
    )
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine:
        engine.add((Document(str(n), f"document {n}") for n in range(20)), commit_every=8)
    assert batches == [8, 8, 4]


def test_what_was_committed_before_a_failure_is_kept_and_not_embedded_again(
    tmp_path: Path, embedder: Embedder, documents: list[Document]
) -> None:
    def broken() -> Iterator[Document]:
        yield from documents[:20]
        raise OSError("the disk is gone")

    with SearchEngine.create(tmp_path / "x", model=embedder) as engine, pytest.raises(OSError, match="disk is gone"):
        engine.add(broken(), commit_every=8)
    with SearchEngine.open(tmp_path / "x", model=embedder, writable=True) as engine:
        assert len(engine) == 16
        report = engine.add(documents, commit_every=8)
        assert (report.unchanged, report.documents) == (16, 14)
        assert len(engine.search("note", k=100, options=LEXICAL)) == 30


def test_a_resumed_index_holds_the_bytes_of_an_unbroken_one(
    tmp_path: Path, embedder: Embedder, documents: list[Document]
) -> None:
    def vectors(name: str) -> np.ndarray:
        with SearchEngine.open(tmp_path / name, model=embedder) as engine:
            parts = engine.store.snapshot().segments
            return np.concatenate([segment.vectors(np.arange(segment.count)) for segment in parts])

    for name, parts in (("broken", (documents[:16], documents)), ("whole", (documents,))):
        with SearchEngine.create(tmp_path / name, model=embedder) as engine:
            for part in parts:
                engine.add(part, commit_every=8)
    np.testing.assert_array_equal(vectors("broken"), vectors("whole"))


def test_progress_counts_up_to_everything(tmp_path: Path, embedder: Embedder, documents: list[Document]) -> None:
    seen: list[tuple[float, int]] = []
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine:
        engine.add(documents[:10])
        engine.add(documents, commit_every=8, on_progress=lambda *done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == (pytest.approx(30), 20)


# Changing


@pytest.fixture
def notes(tmp_path: Path, embedder: Embedder, documents: list[Document]) -> Iterator[SearchEngine]:
    with SearchEngine.create(tmp_path / "notes.index", model=embedder) as made:
        made.add(documents)
        yield made


@pytest.mark.parametrize("mode", MODES)
def test_deleted_documents_disappear_from_results_immediately(notes: SearchEngine, mode: str) -> None:
    options = SearchOptions(mode=as_mode(mode))
    assert notes.delete(["3", "x", "3"], where={"n": {"$lt": 2}}) == (3, ["x"])
    left = [str(n) for n in range(30) if n not in (0, 1, 3)]
    for _ in range(2):
        assert len(notes) == 27
        assert sorted(ids(notes.search("note", k=100, options=options)), key=int) == left
        notes.compact()
    assert notes.delete(["3"]) == (0, ["3"])


@pytest.mark.parametrize("mode", MODES)
def test_an_updated_document_replaces_the_old_one(notes: SearchEngine, mode: str) -> None:
    options = SearchOptions(mode=as_mode(mode))
    report = notes.add([Document("3", "A note on zymurgy"), Document("4", TEXTS[4], "Note 4", {"n": 4})], update=True)
    assert (report.documents, report.updated, report.unchanged) == (1, 1, 1)
    for _ in range(2):
        hits = {hit.id: hit.text for hit in notes.search("zymurgy note", k=100, options=options)}
        assert (len(hits), hits["3"]) == (30, "A note on zymurgy")
        notes.compact()


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_holds_in_every_mode(notes: SearchEngine, mode: str) -> None:
    options = SearchOptions(mode=as_mode(mode), where={"n": {"$gte": 12, "$lt": 20}})
    assert sorted(ids(notes.search("note", k=100, options=options)), key=int) == [str(n) for n in range(12, 20)]
    assert notes.search("note", options=SearchOptions(mode=as_mode(mode), where={"n": 99})) == []


def test_the_matches_of_a_filter_are_read_once_a_commit(notes: SearchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Condition] = []
    passing = notes.store.passing
    monkeypatch.setattr(
        notes.store, "passing", lambda condition, *rest: (read.append(condition), passing(condition, *rest))[1]
    )
    options = [SearchOptions(where={"n": {"$lt": n}}) for n in range(1, 11)]
    for _ in range(2):
        assert len(notes.search("note", k=100, options=options[4])) == 5
    assert len(read) == 1
    notes.delete(["3"])
    assert len(notes.search("note", k=100, options=options[4])) == 4
    assert len(read) == 2
    for n, option in enumerate(options, 1):  # more than are cached
        assert len(notes.search("note", k=100, options=option)) == n - (n > 3)
    assert len(notes.search("note", k=100, options=options[0])) == 1


def test_a_reader_stays_in_its_commit_until_a_compaction_moves_it_to_a_newer_one(
    notes: SearchEngine, embedder: Embedder, documents: list[Document]
) -> None:
    with SearchEngine.open(notes.store.folder, model=embedder) as reader:
        assert len(reader.search("note", k=100)) == 30
        notes.delete(["3"])
        assert len(reader.search("note", k=100)) == 30  # as it was opened
        notes.compact()  # and that commit cannot be shown any more
        assert "3" not in ids(reader.search("note", k=100))
        assert len(reader) == 29
    with SearchEngine.open(notes.store.folder, model=embedder) as late:
        notes.delete(["4"])
        notes.compact()
        for mode in MODES:  # nothing was opened before the files went
            assert len(late.search("note", k=100, options=SearchOptions(mode=as_mode(mode)))) == 28


def test_compacting_where_nothing_was_deleted_merges_segments_alone(notes: SearchEngine) -> None:
    notes.add([Document("late", "A late note")])
    lexical, segments = notes.snapshot.lexical, notes.snapshot.segments
    before = ids(notes.search("note", k=100))
    assert (len(segments), notes.compact()) == (2, 0)
    assert (len(notes.snapshot.segments), notes.snapshot.lexical) == (1, lexical)
    assert ids(notes.search("note", k=100)) == before
    commit = notes.snapshot.generation
    assert (notes.compact(), notes.snapshot.generation) == (0, commit)
    notes.delete(["late"])
    notes.compact()
    assert notes.snapshot.lexical != lexical


@pytest.mark.parametrize("linked", [True, False])
def test_compacting_after_few_deletions_changes_the_lexical_index_and_builds_none(
    notes: SearchEngine, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("not permitted")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)

    def scores() -> dict[str, float]:
        return {hit.id: hit.score for hit in notes.search("the sun and the note", k=30, options=LEXICAL)}

    before = scores()
    notes.delete(["3"])
    with monkeypatch.context() as patch:
        patch.setattr(LexicalIndex, "add", refuse)
        notes.compact()
    assert scores() == {id: score for id, score in before.items() if id != "3"}
    assert [finding for finding in check(notes.store.folder) if not finding.ok] == []
    notes.add([Document("late", "A late note about the sun")])
    assert "late" in ids(notes.search("the sun", k=30, options=LEXICAL))
    notes.delete(["4", "5"])  # with the one before, a tenth
    notes.compact()
    assert notes._lexical.index_of(notes.snapshot).deleted == 0
    assert len(notes.search("note", k=30, options=LEXICAL)) == 28


def test_segments_without_deleted_passages_stay_as_they_are(
    notes: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = notes.snapshot.segments
    notes.add([Document("late", "A late note")])
    notes.delete(["late"])
    notes.compact()
    assert [segment.entry for segment in notes.snapshot.segments] == [first.entry]
    assert len(notes.search("note", k=100)) == 30


@pytest.mark.parametrize("before", [True, False])
def test_erasing_leaves_nothing_of_deleted_documents_in_any_file(notes: SearchEngine, before: bool) -> None:
    def holding(word: str) -> list[str]:
        files = (file for file in notes.store.folder.rglob("*") if file.is_file())
        return sorted(file.name for file in files if word.encode() in file.read_bytes())

    def counted() -> int:
        index = notes._lexical.index_of(notes.snapshot)
        return int(index._index.searcher().doc_freq("text", "xylophon"))  # deleted passages included

    private = Document("private", "Our xylophone is for sale", metadata={"owner": "Quetzalcoatl"})
    notes.add([private, Document("other", "Another note")])
    notes.search("xylophone")
    notes.delete(["private"])
    if before:
        notes.compact()
        assert counted() == 1
    notes.compact(erase=True)
    assert counted() == 0
    assert len(notes.search("note", k=100, options=LEXICAL)) == 31
    notes.close()
    assert holding("xylophon") + holding("Quetzalcoatl") == []


def test_a_copy_without_hidden_files_is_compacted(notes: SearchEngine, tmp_path: Path) -> None:
    notes.search("bread", options=LEXICAL)
    copy = tmp_path / "copy.index"
    shutil.copytree(notes.store.folder, copy, ignore=shutil.ignore_patterns(".*"))
    with SearchEngine.open(copy, writable=True) as engine:
        engine.delete(["0"])
        engine.compact()
        assert len(engine.search("note", k=100, options=LEXICAL)) == len(notes) - 1
        engine.add([Document("new", "bread and salt")])
        assert "new" in ids(engine.search("bread", options=LEXICAL))
    assert [finding for finding in check(copy) if not finding.ok] == []


def test_an_index_can_be_emptied_compacted_and_filled_again(notes: SearchEngine) -> None:
    notes.delete(where={})
    assert (len(notes), notes.search("note")) == (0, [])
    assert notes.compact() == 30
    assert notes.search("note") == []
    notes.add([Document("0", "A new note")])
    assert ids(notes.search("note")) == ["0"]


# Opening


def test_a_reader_sees_only_what_was_committed_when_it_opened(
    tmp_path: Path, embedder: Embedder, documents: list[Document]
) -> None:
    with SearchEngine.create(tmp_path / "x", model=embedder) as writer:
        writer.add(documents[:10])
        with SearchEngine.open(tmp_path / "x", model=embedder) as reader:
            writer.add(documents[10:])
            assert len(reader.search("note", options=LEXICAL)) == 10
            reader._lexical.index_of(reader._ranker.snapshot).reload()  # as tantivy may at any moment
            for mode in MODES:
                hits = reader.search("note", k=100, options=SearchOptions(mode=as_mode(mode)))
                assert sorted(ids(hits), key=int) == [str(n) for n in range(10)]
        with SearchEngine.open(tmp_path / "x", model=embedder) as later:
            assert len(later.search("note", k=100)) == 30


def test_a_reader_refuses_to_write(engine: SearchEngine, embedder: Embedder) -> None:
    with (
        SearchEngine.open(engine.store.folder, model=embedder) as reader,
        pytest.raises(StoreError, match="open for reading; open it for writing"),
    ):
        reader.add([Document("new", "tea")])


def test_a_second_writer_is_refused(engine: SearchEngine, embedder: Embedder) -> None:
    with pytest.raises(StoreError, match=r"is being written by process \d+; wait"):
        SearchEngine.open(engine.store.folder, model=embedder, writable=True)


def test_passages_a_killed_writer_left_out_of_the_lexical_index_are_added(
    tmp_path: Path, embedder: Embedder, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine, monkeypatch.context() as patch:
        patch.setattr(LexicalSync, "catch_up", lambda *_: None)  # killed after the commit each time
        engine.add(documents)
    with SearchEngine.open(tmp_path / "x") as reader:
        assert len(reader.search("yeast", options=LEXICAL)) == 3


@pytest.mark.parametrize("writable", [False, True], ids=["reader", "writer"])
def test_lexical_files_a_killed_writer_did_not_commit_are_undone_and_added_again(
    tmp_path: Path,
    embedder: Embedder,
    documents: list[Document],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    writable: bool,
) -> None:
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine, monkeypatch.context() as patch:
        engine.add(documents[:20])
        patch.setattr(LexicalFiles, "commit", lambda _: None)  # killed before it each time
        engine.add(documents[20:])
        before = engine.search("yeast", options=LEXICAL)
    made = {file.name for file in (tmp_path / "x" / "lexical" / "000001").glob("*.term")}
    with SearchEngine.open(tmp_path / "x", model=embedder, writable=writable) as again:
        assert again.search("yeast", options=LEXICAL) == before
    kept = {file.name for file in (tmp_path / "x" / "lexical" / "000001").glob("*.term")}
    assert made & kept, "the lexical index was rebuilt"
    assert "rebuilding" not in caplog.text
    assert all(finding.ok for finding in check(tmp_path / "x"))


def test_another_model_is_refused_naming_both(engine: SearchEngine, mistral: Path, tmp_path: Path) -> None:
    other = Embedder(build_model(tmp_path / "other-model", "mistral", seed=1), device="cpu", dtype="float32")
    both = f"built with {re.escape(str(mistral))}, which differs from .*other-model.*weights: index '[0-9a-f]+', model"
    with pytest.raises(StoreError, match=both):
        SearchEngine.open(engine.store.folder, model=other)
    with (
        SearchEngine.open(engine.store.folder, model=other.name, device="cpu") as late,
        pytest.raises(StoreError, match=both),
    ):
        late.search("sun")


def test_another_dim_or_length_is_another_model(engine: SearchEngine, mistral: Path) -> None:
    for changed in (
        Embedder(mistral, device="cpu", dim=32, force_dim=True),
        Embedder(mistral, device="cpu", max_length=32),
    ):
        with pytest.raises(StoreError, match=r"(dim: index 64, model 32|max_length: index \d+, model 32)"):
            SearchEngine.open(engine.store.folder, model=changed)


def test_a_model_that_has_moved_is_given_by_its_new_folder(tmp_path: Path, documents: list[Document]) -> None:
    old = build_model(tmp_path / "old", "mistral")
    with SearchEngine.create(tmp_path / "x", model=Embedder(old, device="cpu", dtype="float32")) as engine:
        engine.add(documents)
        expected = ids(engine.search("sun", options=DENSE))
    old.rename(tmp_path / "new")
    with (
        SearchEngine.open(tmp_path / "x", device="cpu") as lost,
        pytest.raises(StoreError, match=r"old, which cannot be loaded: .*If the model has moved, name its folder"),
    ):
        lost.search("sun")
    with SearchEngine.open(tmp_path / "x", model=tmp_path / "new", device="cpu", dtype="float32") as moved:
        assert ids(moved.search("sun", options=DENSE)) == expected


def test_an_index_loads_its_own_model_with_its_own_settings(tmp_path: Path, mistral: Path) -> None:
    model = Embedder(mistral, device="cpu", max_length=32, dim=32, force_dim=True)
    with SearchEngine.create(tmp_path / "x", model=model) as engine:
        engine.add([Document("a", STORY), Document("b", "tea")])
    with SearchEngine.open(tmp_path / "x", device="cpu") as engine:
        assert sorted(ids(engine.search("tea"))) == ["a", "b"]
        assert (engine.embedder.dim, engine.embedder.max_length) == (32, 32)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"language": "german"}, "built with language english, now it is german"),
     ({"chunk_tokens": 32}, r"built with chunk_tokens \d+, now it is 32"),
     ({"overlap": 3}, r"built with overlap \d+, now it is 3")],
)  # fmt: skip
def test_other_settings_for_an_existing_index_are_refused(
    tmp_path: Path, embedder: Embedder, settings: dict[str, Any], said: str
) -> None:
    SearchEngine.create(tmp_path / "x", model=embedder).close()
    for _ in range(2):  # and the writer's lock is let go
        with pytest.raises(StoreError, match=said):
            SearchEngine.create(tmp_path / "x", model=embedder, exist_ok=True, **settings)
    SearchEngine.create(tmp_path / "x", model=embedder, exist_ok=True).close()


def test_an_index_is_not_made_over_another_or_over_other_files(tmp_path: Path, embedder: Embedder) -> None:
    SearchEngine.create(tmp_path / "x", model=embedder).close()
    with pytest.raises(StoreError, match="is an index already; open it"):
        SearchEngine.create(tmp_path / "x", model=embedder)
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="exists and is not an index; name another folder"):
        SearchEngine.create(tmp_path / "y", model=embedder)
    with pytest.raises(StoreError, match="is not an index"):
        SearchEngine.open(tmp_path / "z")


def test_an_unknown_language_is_reported_before_anything_is_made(tmp_path: Path, embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="no stemmer for language 'klingon'"):
        SearchEngine.create(tmp_path / "x", model=embedder, language="klingon")
    assert not (tmp_path / "x").exists()


def test_the_language_decides_which_words_share_a_stem(tmp_path: Path, embedder: Embedder) -> None:
    counts = {}
    for language in ("english", "none"):
        with SearchEngine.create(tmp_path / language, model=embedder, language=language) as engine:
            engine.add([Document("a", "The bridges were closed")])
            counts[language] = len(engine.search("bridge", options=LEXICAL))
    assert counts == {"english": 1, "none": 0}


@pytest.mark.parametrize(
    ("file", "writable"),
    [
        ("meta.json", False),
        ("*.term", True),
        (".managed.json", False),
        ("*", True),
        ("no folder", False),
        ("no folders", True),
    ],
)
def test_a_damaged_lexical_index_is_rebuilt(
    tmp_path: Path, embedder: Embedder, documents: list[Document], file: str, writable: bool
) -> None:
    with SearchEngine.create(tmp_path / "i", model=embedder) as engine:
        engine.add(documents)
        before = engine.search("bread yeast", options=LEXICAL)
    lexical = tmp_path / "i" / "lexical"
    if file == "no folders":
        shutil.rmtree(lexical)
    elif file == "no folder":
        shutil.rmtree(lexical / "000001")
    else:
        for damaged in (lexical / "000001").glob(file):
            damaged.write_bytes(b"")
    for _ in range(2):
        with SearchEngine.open(tmp_path / "i", model=embedder, writable=writable) as engine:
            assert ids(engine.search("bread yeast", options=LEXICAL)) == ids(before)
            if writable:
                engine.add([Document("more", "yeast")], update=True)
                engine.delete(["more"])


def test_a_reader_waits_for_the_lexical_index_of_a_commit(
    tmp_path: Path, embedder: Embedder, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Event()
    with SearchEngine.create(tmp_path / "i", model=embedder) as writer:
        writer.add(documents[:10])
        with SearchEngine.open(tmp_path / "i", model=embedder) as reader:
            assert len(reader.search("note", k=100, options=LEXICAL)) == 10
            index = LexicalIndex.add
            monkeypatch.setattr(LexicalIndex, "add", lambda *args: (written.set(), time.sleep(0.5), index(*args)))
            adding = threading.Thread(target=writer.add, args=(documents,))
            adding.start()
            written.wait()
            reader.reload()  # its vectors are there, its lexical index is not yet
            assert len(reader) == 30
            assert len(reader.search("note", k=100, options=LEXICAL)) == 30
            adding.join()


def test_an_index_in_a_read_only_folder_can_be_searched(
    tmp_path: Path, embedder: Embedder, documents: list[Document]
) -> None:
    with SearchEngine.create(tmp_path / "i", model=embedder) as engine:
        engine.add(documents)
        before = engine.search("bread yeast")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):  # pytest's own folders, one more with xdist
            parent.chmod(0o755)
    for path in [tmp_path / "i", *(tmp_path / "i").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    me = os.geteuid()
    try:
        if me == 0:
            os.seteuid(65534)  # root may write everywhere
        with SearchEngine.open(tmp_path / "i", model=embedder) as engine:
            assert engine.search("bread yeast") == before
    finally:
        os.seteuid(me)
        for path in [tmp_path / "i", *(tmp_path / "i").rglob("*")]:
            path.chmod(0o755)
