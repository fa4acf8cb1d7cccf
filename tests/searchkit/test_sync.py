from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import ReadReport, read_corpus
from searchkit.readers.rejects import Rejects
from searchkit.records import Document
from searchkit.sync import sync


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "old").mkdir(parents=True)
    for n, text in enumerate(TEXTS[:8]):
        (folder / f"note-{n}.txt").write_text(text)
    return folder


@pytest.fixture
def engine(tmp_path: Path, notes: Path, embedder: Embedder) -> Iterator[SearchEngine]:
    with SearchEngine.create(tmp_path / "notes.index", model=embedder) as made:
        made.add(read_corpus(notes))
        yield made


def held(engine: SearchEngine) -> dict[str, str]:
    return {document.id: document.text for document in engine}


def test_the_index_becomes_what_the_folder_is(engine: SearchEngine, notes: Path) -> None:
    (notes / "new.md").write_text("# Comets\nThey have two tails.")
    (notes / "note-0.txt").write_text("Rewritten.")
    (notes / "note-1.txt").rename(notes / "old" / "kept.txt")
    (notes / "note-2.txt").unlink()
    (notes / "note-3.txt").touch()
    planned = sync(engine, read_corpus(notes), dry_run=True)
    assert "new.md" not in engine
    report = sync(engine, read_corpus(notes))
    for each in (planned, report):
        assert (each.new, each.changed, each.vanished) == (["new.md"], ["note-0.txt"], ["note-2.txt"])
        assert each.moved == {"note-1.txt": "old/kept.txt"}
        assert each.unchanged == 5
    assert report.passages == 3
    assert held(engine) == {document.id: document.text for document in read_corpus(notes)}
    again = sync(engine, read_corpus(notes))
    assert (again.new, again.changed, again.moved, again.vanished, again.passages) == ([], [], {}, [], 0)


def test_two_files_of_one_text_move_one_each(engine: SearchEngine, notes: Path) -> None:
    (notes / "note-0.txt").write_text("The same.")
    (notes / "note-1.txt").write_text("The same.")
    sync(engine, read_corpus(notes))
    (notes / "note-0.txt").rename(notes / "a.txt")
    (notes / "note-1.txt").unlink()
    report = sync(engine, read_corpus(notes))
    assert (report.moved, report.vanished, report.new) == ({"note-0.txt": "a.txt"}, ["note-1.txt"], [])


def test_what_cannot_be_read_this_time_stays(engine: SearchEngine, notes: Path, tmp_path: Path) -> None:
    (notes / "note-4.txt").write_bytes(b"\xff\xfe\x00broken")
    with Rejects(tmp_path / "rejects.jsonl") as rejects:
        report = sync(engine, read_corpus(notes, rejects=rejects), still_exists=lambda id: (notes / id).exists())
    assert (report.kept, report.vanished) == (["note-4.txt"], [])
    assert held(engine)["note-4.txt"] == TEXTS[4]


def test_an_empty_folder_does_not_empty_the_index(engine: SearchEngine) -> None:
    with pytest.raises(InputError, match=r"no document came, and .* holds 8"):
        sync(engine, [])
    assert len(engine) == 8


def test_a_document_that_cannot_be_stored_is_refused_and_the_rest_is_done(engine: SearchEngine) -> None:
    refused: list[str] = []
    report = sync(
        engine,
        [Document("bad", "x\0y"), Document("good", "Salt lowers the freezing point.")],
        on_refused=lambda document, reason: refused.append(document.id),
    )
    assert (refused, report.new, report.refused, len(report.vanished)) == (["bad"], ["good"], 1, 8)
    assert list(held(engine)) == ["good"]


def test_a_reader_may_only_look(engine: SearchEngine, notes: Path) -> None:
    (notes / "note-5.txt").unlink()
    with SearchEngine.open(engine.store.folder) as reader:
        assert sync(reader, read_corpus(notes), dry_run=True).vanished == ["note-5.txt"]
        with pytest.raises(StoreError, match="open for reading"):
            sync(reader, read_corpus(notes))


def test_what_lies_in_a_folder_that_cannot_be_listed_stays(engine: SearchEngine, notes: Path, tmp_path: Path) -> None:
    (notes / "old" / "deep.txt").write_text("Kept.")
    engine.add(read_corpus(notes))
    (notes / "note-0.txt").unlink()
    report = ReadReport(unread={"old/", "note-1.txt"})
    left = [each for each in read_corpus(notes) if each.id not in ("old/deep.txt", "note-1.txt")]
    done = sync(engine, left, still_exists=report.is_unread)
    assert (done.kept, done.vanished) == (["note-1.txt", "old/deep.txt"], ["note-0.txt"])
    assert "old/deep.txt" in engine
