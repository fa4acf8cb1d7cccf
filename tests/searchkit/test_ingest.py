from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchkit import ingest
from searchkit.engine import SearchEngine
from searchkit.ingest import chunk_settings, to_passages
from searchkit.models.embedder import Embedder
from searchkit.records import Document


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": " ", "text": "tea"}, "the id is empty"),
        ({"id": "1", "text": " \n"}, "neither text nor title"),
        ({"id": "1", "text": "te\0a"}, "NUL byte"),
        ({"id": "1", "text": "\ud800"}, "lone surrogate"),
        ({"id": "1", "text": "tea", "metadata": {"set": {1}}}, "metadata holds a set"),
        ({"id": 7, "text": "tea"}, "document 7: id is 7; expected a string"),
        ({"id": "1", "text": None}, "text is None; expected a string"),
        ({"id": "1", "text": "tea", "metadata": None}, "metadata is None; expected a dict"),
        ({"id": "1", "text": "tea", "metadata": {"year": float("nan")}}, "NaN or Infinity"),
    ],
)
def test_a_document_that_cannot_be_stored_is_refused(
    tmp_path: Path, embedder: Embedder, fields: dict[str, Any], reason: str
) -> None:
    refused = []
    with SearchEngine.create(tmp_path / "i", model=embedder) as engine:
        with pytest.raises(ValueError, match=reason):
            engine.add([Document(**fields)])
        engine.add([Document(**fields), Document("ok", "tea")], on_refused=lambda _, why: refused.append(why))
        assert len(engine) == 1
    assert reason in refused[0]


def test_an_overlong_title_is_cut_instead_of_the_text(embedder: Embedder) -> None:
    document = Document("1", "bread rises because yeast makes gas " * 8, title="A title of words " * 30)
    new, texts = to_passages(document, "", embedder, 32, 4)
    assert new.title == document.title
    assert all(len(ids) <= 32 + embedder.special_tokens for ids in embedder.tokenize(texts))
    assert "".join(document.text[start:stop] for start, stop in new.spans).count("yeast") >= 8


def test_passages_take_what_the_model_takes(embedder: Embedder) -> None:
    room = embedder.max_length - embedder.special_tokens
    assert chunk_settings(embedder, None, None) == {"chunk_tokens": room, "overlap": room // 8}
    with pytest.raises(ValueError, match=f"8 to {room} for this model"):
        chunk_settings(embedder, room + 1, None)


def test_a_document_prefix_leaves_room_for_a_passage(mistral: Path) -> None:
    embedder = Embedder(mistral, device="cpu", dtype="float32")
    embedder.conventions = replace(embedder.conventions, document_prefix="Represent this passage: ")
    least = 8 + len(embedder.offsets("Represent this passage: "))
    with pytest.raises(ValueError, match=rf"chunk_tokens is 8; expected 0 \(whole documents\) or {least} to"):
        chunk_settings(embedder, 8, None)
    settings = chunk_settings(embedder, least, None)
    document = Document("1", "bread rises because yeast makes gas " * 3, title="A title of words")
    _, texts = to_passages(document, "", embedder, settings["chunk_tokens"], settings["overlap"])
    assert max(embedder.passage_tokens(texts)) <= least + embedder.special_tokens


def test_whenever_commits_fall_the_vectors_are_the_same_to_the_bit(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit after every window, two runs, and one commit: texts of many lengths, so that batches matter."""
    documents = [Document(str(n), "tea and rye " * (n * 7 % 40 + 1)) for n in range(700)]
    vectors, commits = [], []
    for name, seconds, parts in (("often", 0.0, [700]), ("once", 1e9, [700]), ("resumed", 0.0, [384, 700])):
        monkeypatch.setattr(ingest, "COMMIT_SECONDS", seconds)
        monkeypatch.setattr(ingest, "COMMIT_SHARE", 1e9)
        for part in parts:
            with SearchEngine.create(tmp_path / name, model=embedder, chunk_tokens=0, exist_ok=True) as engine:
                engine.add(documents[:part])
                commits.append(engine.snapshot.generation)
                vectors.append(engine.vectors_of(np.arange(part)))
    assert commits[0] > commits[1] + 5
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[3], vectors[1])
