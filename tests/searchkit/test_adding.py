"""Adding documents: commits, interruptions and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searching import DENSE, LEXICAL, ids
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.records import Document


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
        for query in ["why does bread rise", "stars and comets", "money"]:
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
