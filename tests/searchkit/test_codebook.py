"""Parts that share a codebook, merged, are the index that one run with that codebook makes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clouds import DIM, NAMES, data, one_thread
from commands import printed
from forked import Server, Words, folder_in_memory, serve
from texts import TEXTS

from searchkit import merging
from searchkit.check import check
from searchkit.compression.training import train_recipe
from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.indexer.store import Store
from searchkit.merging import Part, Sample, merge
from searchkit.models.embedder import Embedder
from searchkit.records import Document

__all__ = ["one_thread"]  # a fixture

KILLS = int(os.environ.get("SEARCHKIT_KILLS", "6"))
QUERIES = ["why does bread rise", "note 17", "the oboe"]


def corpus() -> list[Document]:
    """600 documents with the vectors of the clouds; one in fifty has none."""
    rows, _ = data()
    return [
        Document(f"d{n:03}", f"{TEXTS[n % 30]} {n}", f"Note {n}", {"n": n}, vector=None if n % 50 == 9 else rows[n])
        for n in range(600)
    ]


def build(folder: Path, documents: Iterable[Document], recipe: Path | None = None, similarity: str = "cosine") -> Path:
    with SearchEngine.create(folder, dim=DIM, similarity=similarity) as engine:
        if recipe is not None:
            engine.store_like(recipe)
        kept = list(documents)
        engine.add(kept, vectors=[document.vector for document in kept], commit_every=120)
    return folder


def train(folder: Path, source: Path, recipe: str, **options: Any) -> Path:
    with SearchEngine.open(source) as engine:
        train_recipe(engine, recipe, folder, **options)
    return folder


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture(scope="module")
def flat() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield build(folder / "flat.index", corpus())


def files(folder: Path) -> list[tuple[str, bytes]]:
    """All that the segments hold, in order."""
    return [(file.name, file.read_bytes()) for file in sorted((folder / "segments").rglob("*.*"))]


def tables(folder: Path) -> list[Any]:
    """The database, apart from what counts commits and names tantivy's files, which it draws at random."""
    with Store(folder) as store, store.database.snapshot() as db:
        found = [
            db.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in ("documents", "passages", "segments")
        ]
        settings = dict(db.execute("SELECT key, value FROM settings"))
    return [
        *found,
        {key: value for key, value in settings.items() if key not in ("lexical_files", "seal", "generation")},
    ]


def check_equal(merged: Path, whole: Path, model: Embedder | None = None) -> None:
    """Both hold the same documents and codes, and rank alike."""
    assert [name for name, _ in files(merged)] == [name for name, _ in files(whole)]
    assert files(merged) == files(whole)
    with SearchEngine.open(merged, model=model) as one, SearchEngine.open(whole, model=model) as other:
        assert one.store.documents.checksum() == other.store.documents.checksum()
        assert list(one) == list(other)
        assert one.storage == other.storage
        modes = ("dense", "lexical", "hybrid")
        for mode in modes:
            for where in (None, {"n": {"$lt": 200}}):
                given = {} if model else {"vectors": data()[1][: len(QUERIES)]}
                found, right = (
                    each.search_many(QUERIES, mode=mode, where=where, k=20, **given) for each in (one, other)
                )
                assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in right]
                for mine, theirs in zip(found, right, strict=True):
                    assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", [name for name in NAMES if name != "flat"])
def test_parts_of_one_codebook_make_what_one_run_makes(recipe: str, flat: Path, tmp_path: Path) -> None:
    codebook = train(tmp_path / "codebook", flat, recipe)
    whole = build(tmp_path / "whole.index", corpus(), codebook)
    with SearchEngine.open(whole, writable=True) as engine:
        engine.compact()
    shuffled = random.Random(0).sample(corpus(), 600)
    parts = [build(tmp_path / f"part-{n}.index", filter(Part(n, 4).holds, shuffled), codebook) for n in range(1, 5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "_COMMIT", 250)
        for name, order in (("merged.index", parts), ("again.index", parts[::-1])):
            report = merge(order, tmp_path / name)
            assert (report.documents, report.copied) == (600, 600)
    check_equal(tmp_path / "merged.index", whole)
    assert files(tmp_path / "merged.index") == files(tmp_path / "again.index")
    assert tables(tmp_path / "merged.index") == tables(tmp_path / "again.index")
    assert all(finding.ok for finding in check(tmp_path / "merged.index"))


@pytest.mark.parametrize("similarity", ["inner-product", "euclidean"])
def test_other_similarities_share_codebooks_too(similarity: str, tmp_path: Path) -> None:
    first = build(tmp_path / "flat.index", corpus()[:300], similarity=similarity)
    codebook = train(tmp_path / "codebook", first, "pq:8" if similarity == "euclidean" else "ivf-pq:8")
    whole = build(tmp_path / "whole.index", corpus(), codebook, similarity)
    with SearchEngine.open(whole, writable=True) as engine:
        engine.compact()
    parts = [
        build(tmp_path / f"part-{n}.index", filter(Part(n, 3).holds, corpus()), codebook, similarity) for n in (1, 2, 3)
    ]
    merge(parts, tmp_path / "merged.index")
    check_equal(tmp_path / "merged.index", whole)


def test_a_part_can_be_the_codebook_of_the_others(tmp_path: Path) -> None:
    shares = [list(filter(Part(n, 2).holds, corpus())) for n in (1, 2)]
    first = build(tmp_path / "part-1.index", shares[0])
    with SearchEngine.open(first, writable=True) as engine:
        engine.store_as("pq:8", keep_vectors=False)
    second = build(tmp_path / "part-2.index", shares[1], first)
    assert not list(second.rglob("vectors.f16"))
    assert merge([first, second], tmp_path / "merged.index").documents == 600
    with SearchEngine.open(tmp_path / "merged.index") as engine, SearchEngine.open(first) as part:
        assert engine.storage.codebook == part.storage.codebook


def test_what_is_stored_already_is_coded_again_from_its_vectors(flat: Path, tmp_path: Path) -> None:
    codebook = train(tmp_path / "codebook", flat, "int8")
    shutil.copytree(flat, tmp_path / "copy.index")
    with SearchEngine.open(tmp_path / "copy.index", writable=True) as engine:
        assert engine.store_like(codebook).recipe == "int8"
        generation = engine.snapshot.generation
        engine.store_like(codebook)
        assert engine.snapshot.generation == generation  # nothing was left to do
    with SearchEngine.open(build(tmp_path / "new.index", corpus(), codebook), writable=True) as engine:
        engine.compact()
    assert files(tmp_path / "copy.index") == files(tmp_path / "new.index")


def test_codes_that_mean_something_else_are_refused(flat: Path, tmp_path: Path) -> None:
    codebooks = [train(tmp_path / f"codebook-{n}", flat, "pq:8", sample=300, seed=n) for n in (1, 2)]
    parts = [build(tmp_path / f"part-{n}.index", corpus()[n::2], codebooks[n]) for n in (0, 1)]
    with pytest.raises(InputError, match=r"as pq:8, but by codebooks of their own.*--recipe-from .*part-0"):
        merge(parts, tmp_path / "merged.index")
    with pytest.raises(InputError, match=r"as (flat and as pq:8|pq:8 and as flat).*--recipe-from .*part-0"):
        merge([flat, parts[0]], tmp_path / "merged.index")
    with SearchEngine.open(parts[0], writable=True) as engine:
        engine.store_like(codebooks[1])
    assert merge(parts, tmp_path / "merged.index").documents == 600


def test_what_no_codebook_can_be_made_of_is_refused(flat: Path, tmp_path: Path) -> None:
    with SearchEngine.open(flat) as engine:
        for recipe, options, message in (
            ("pq:8", {"sample": 100}, "trained on 256 vectors or more for 600 passages, and there are 100"),
            ("pq:8+rerank", {"drop_vectors": True}, "re-ranked by the vectors that are to be dropped"),
            ("pq:5", {}, "5 bytes do not divide"),
        ):
            with pytest.raises(InputError, match=message):
                train_recipe(engine, recipe, tmp_path / "codebook", **options)
        assert not (tmp_path / "codebook").exists()
        with pytest.raises(StoreError, match="exists; name another folder"):
            train_recipe(engine, "pq:8", flat)
    codebook = train(tmp_path / "codebook", flat, "pq:8", drop_vectors=True)
    with (
        SearchEngine.create(tmp_path / "other.index", dim=DIM + 1) as engine,
        pytest.raises(InputError, match=f"holds vectors of {DIM + 1} numbers"),
    ):
        engine.store_like(codebook)
    part = build(tmp_path / "part.index", corpus(), codebook)
    with SearchEngine.open(part, writable=True) as engine, pytest.raises(InputError, match="keeps no vectors beside"):
        engine.store_like(train(tmp_path / "codebook-2", flat, "pq:8", seed=1))


def test_a_sample_is_fixed_by_content_and_spread_over_the_parts() -> None:
    held = [document for document in corpus() if Sample(0.5).holds(document)]
    assert 250 < len(held) < 350
    assert 0.4 < sum(map(Part(1, 2).holds, held)) / len(held) < 0.6
    assert not [document for document in corpus() if Sample(0.25).holds(document) and not Sample(0.5).holds(document)]


def test_the_commands_train_once_index_parts_and_merge_them(tmp_path: Path) -> None:
    file, own = tmp_path / "corpus.jsonl", ("--vector-field", "v")
    rows = [
        {"id": each.id, "text": each.text, "v": None if each.vector is None else each.vector.tolist()}
        for each in corpus()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    codebook, recipe = tmp_path / "codebook", ("--recipe", "ivf-pq:8+rerank")
    output = printed("train-recipe", file, "--out", codebook, *recipe, *own, "--sample", 400)
    assert "ivf-pq:8 with 15 IVF lists, trained on" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codebook", "corpus.jsonl"]
    for number in (1, 2):
        index = tmp_path / f"part-{number}.index"
        printed("index", file, "--index", index, "--part", f"{number}/2", "--recipe-from", codebook, *own)
    printed("index", file, "--index", tmp_path / "whole.index", "--recipe-from", codebook, *own)
    printed("merge", tmp_path / "part-1.index", tmp_path / "part-2.index", "--index", tmp_path / "merged.index")
    check_equal(tmp_path / "merged.index", tmp_path / "whole.index")
    arguments = ("train-recipe", tmp_path / "part-1.index", "--out", tmp_path / "2", *recipe, "--passages", 600)
    made = json.loads(printed(*arguments, "--format", "json").splitlines()[-1])
    assert (made["lists"], made["code"]) == (15, 8)
    for arguments, message in (
        (("train-recipe", file, "--out", codebook, *recipe), "exists; name another folder"),
        (("train-recipe", "-", "--out", tmp_path / "x", *recipe), "standard input"),
        (("train-recipe", file, "--out", tmp_path / "x", *recipe, "--vectors", file), "index it, and give that index"),
        (("index", file, *own, *recipe, "--recipe-from", codebook), "--recipe cannot be combined with"),
    ):
        assert message in printed(*arguments, code=2)
    assert "differ in model" in printed(
        "index", file, "--index", tmp_path / "y.index", "--recipe-from", codebook, "--metadata-field", "none", code=1
    )
    assert not (tmp_path / "y.index").exists()
    assert not (tmp_path / "x.sample").exists()


# Kills


def texts() -> Iterator[Document]:
    for n in range(400):
        yield Document(f"d{n:03}", f"{TEXTS[n % 30]} {TEXTS[n * 7 % 29]} {n}", f"Note {n % 50}", {"n": n})


def _doomed(seconds: float | None) -> None:
    """Be killed after some seconds, wherever that is."""
    parent = os.getpid()
    if seconds is not None and os.fork() == 0:
        time.sleep(seconds)
        if os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
        os._exit(0)


def part(embedder: Words, folder: str, codebook: str, number: int, kill_after: float | None = None) -> float:
    _doomed(kill_after)
    began = time.monotonic()
    with SearchEngine.create(folder, model=embedder, chunk_tokens=24, exist_ok=True) as engine:
        engine.store_like(codebook)
        engine.add(filter(Part(number, 8).holds, texts()), commit_every=8)
    return time.monotonic() - began


def merged(embedder: Words, parts: list[str], target: str, kill_after: float | None = None) -> float:
    _doomed(kill_after)
    merging._COMMIT = 32
    began = time.monotonic()
    merge(parts, target)
    return time.monotonic() - began


def killed(forks: Server, task: str, seconds: float, chance: random.Random, kills: int, **given: Any) -> int:
    """Do a piece of work that is killed so often before it may end; returns how often it was."""
    done = 0
    for _ in range(kills):
        forks.start(task, kill_after=seconds * chance.random(), **given)
        status, _ = forks.finish()
        assert status in (0, signal.SIGKILL)
        done += status == signal.SIGKILL
        if status == 0:
            return done
    forks.do(task, **given)
    return done


def test_eight_parts_and_a_merge_killed_at_random_are_the_unbroken_index(forks: Server) -> None:
    embedder, chance = Words(), random.Random(8)
    with folder_in_memory() as root:
        with SearchEngine.create(root / "flat.index", model=embedder, chunk_tokens=24) as engine:
            engine.add(texts())
            train_recipe(engine, "ivf-pq:8+rerank", root / "codebook")
        with SearchEngine.create(root / "whole.index", model=embedder, chunk_tokens=24) as engine:
            engine.store_like(root / "codebook")
            engine.add(texts())
            engine.compact()
        parts = [str(root / f"part-{number}.index") for number in range(1, 9)]
        given = {"codebook": str(root / "codebook")}
        seconds = forks.do("part", folder=parts[0], number=1, **given)
        kills = sum(
            killed(forks, "part", seconds, chance, 1 + KILLS // 8, folder=folder, number=number, **given)
            for number, folder in enumerate(parts[1:], 2)
        )
        seconds = forks.do("merged", parts=parts, target=str(root / "unbroken.index"))
        kills += killed(forks, "merged", seconds, chance, KILLS, parts=parts, target=str(root / "merged.index"))
        print("killed:", kills)
        assert kills >= KILLS // 2
        check_equal(root / "merged.index", root / "whole.index", embedder)
        assert files(root / "merged.index") == files(root / "unbroken.index")
        assert tables(root / "merged.index") == tables(root / "unbroken.index")


if __name__ == "__main__":
    serve({"part": part, "merged": merged})
