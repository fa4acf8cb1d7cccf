"""Opening an index: readers and writers, models, settings, and the lexical index behind."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from searching import DENSE, LEXICAL, ids
from texts import TEXTS
from tiny_models import build_model

from searchkit.check import check
from searchkit.engine import SearchEngine
from searchkit.errors import StoreError
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.lexical_files import LexicalFiles
from searchkit.lexical_sync import LexicalSync
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions, as_mode
from searchkit.records import Document


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
        engine.add([Document("a", " ".join(TEXTS[:10])), Document("b", "tea")])
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
