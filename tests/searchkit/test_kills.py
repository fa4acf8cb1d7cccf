"""An index whose writer was killed again and again equals one that was never interrupted.

Run as a program, this file is the writer: it loads the model once and forks a child for every run, so that a kill costs
a fork and not the import of torch. `SEARCHKIT_KILLS=50 pytest tests/searchkit/test_kills.py` kills
more.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.indexer.store import Store
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions
from searchkit.records import Document

KILLS = int(os.environ.get("SEARCHKIT_KILLS", "6"))
QUERIES = ["why do bees dance", "the sun", "it is so", "salt 17", "oboe nobody"]


def generated() -> Iterator[Document]:
    for n in range(200):
        text = " ".join(TEXTS[(7 * n + m) % 30] for m in range(3 if n % 10 == 0 else 1))  # one in ten is cut
        yield Document(f"d{n}", text, title=f"Note {n % 50}", metadata={"n": n})  # the same text comes again


def make(embedder: Embedder, folder: str, answers: int) -> None:
    os.write(answers, b"ready\n")
    began = time.monotonic()
    with SearchEngine.create(folder, model=embedder, chunk_tokens=48, exist_ok=True) as engine:
        report = engine.add(generated(), commit_every=16)
    os.write(answers, (json.dumps({**asdict(report), "seconds": time.monotonic() - began}) + "\n").encode())


def updated() -> Iterator[Document]:
    for n in range(100, 140):
        yield Document(f"d{n}", f"Now it says {TEXTS[n % 30]}", title=f"Note {n % 50}", metadata={"n": n})


def change(embedder: Embedder, folder: str, answers: int) -> None:
    """Everything that changes an index; doing it twice leaves what doing it once leaves."""
    with SearchEngine.open(folder, model=embedder, writable=True) as engine:
        os.write(answers, b"ready\n")
        began = time.monotonic()
        engine.delete(where={"n": {"$lt": 60}})
        engine.compact()
        engine.store_as("int8")
        engine.add(updated(), update=True, commit_every=16)
        engine.delete([f"d{n}" for n in range(190, 200)])
        engine.compact()
        engine.store_as("fp16")
        engine.delete([f"d{n}" for n in range(185, 190)])  # few enough for the lexical index to be kept
        engine.compact()
    os.write(answers, (json.dumps({"seconds": time.monotonic() - began}) + "\n").encode())


def serve(model: str) -> None:
    """For every line "WORK SECONDS FOLDER" of standard input: do that, and be killed after those seconds."""
    # Loaded but never used here: torch can be forked until it has computed something.
    embedder = Embedder(model, device="cpu", dtype="float32")
    for line in sys.stdin:
        work, seconds, folder = line.rstrip("\n").split(" ", 2)
        answers, write = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                {"make": make, "change": change}[work](embedder, folder, write)
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        with open(answers) as lines:
            if lines.readline() == "ready\n" and seconds != "never":
                time.sleep(float(seconds))
                os.kill(child, signal.SIGKILL)
            report = lines.readline()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": status, "report": json.loads(report or "null")}), flush=True)


class Maker:
    """The process that forks, seen from the tests."""

    def __init__(self, model: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def make(self, folder: Path, kill_after: float | None = None, work: str = "make") -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(work, "never" if kill_after is None else kill_after, folder, file=self.process.stdin, flush=True)
        return dict(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def maker(mistral: Path) -> Iterator[Maker]:
    made = Maker(mistral)
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory if possible: on a disk, syncing takes nine tenths of the time, and it is not what fails."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK):
        with tempfile.TemporaryDirectory(dir=memory, prefix="searchkit-kills-") as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def unbroken(maker: Maker, root: Path) -> tuple[Path, float]:
    """An index made in peace, and the seconds it took."""
    maker.make(root / "warm")  # the first run is slower
    answer = maker.make(root / "unbroken")
    assert (answer["status"], answer["report"]["documents"]) == (0, 200)
    return root / "unbroken", answer["report"]["seconds"]


def committed(folder: Path) -> int:
    """Documents in the database as it is, read without any of our code."""
    if not folder.exists():
        return 0
    with closing(sqlite3.connect(f"{(folder / 'index.db').as_uri()}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM documents").fetchone()[0])


def content(folder: Path) -> dict[str, Any]:
    """Documents, passages and vectors, to the bit."""
    with closing(sqlite3.connect(folder / "index.db")) as db, Store(folder) as store:
        tables = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in ("documents", "passages")}
        segments = store.snapshot().segments
        vectors = np.concatenate([segment.vectors(np.arange(segment.count)) for segment in segments])
        # In how many segments is left open: a kill between a commit and the joining of segments joins more later.
        return {**tables, "vectors": vectors.tobytes()}


def results(folder: Path, embedder: Embedder) -> list[Any]:
    with SearchEngine.open(folder, model=embedder) as engine:
        return [engine.search_many(QUERIES, k=k, options=SearchOptions(mode=mode)) for mode in MODES for k in (5, 50)]


def check_equal(folder: Path, unbroken: Path, embedder: Embedder) -> None:
    assert content(folder) == content(unbroken)
    for found, expected in zip(results(folder, embedder), results(unbroken, embedder), strict=True):
        for mine, whole in zip(found, expected, strict=True):
            # Passages indexed again lie in other segments, where tantivy may add up a score in another order.
            np.testing.assert_allclose([hit.score for hit in mine], [hit.score for hit in whole], atol=1e-5)
            sure = whole[-1].score + 1e-5
            assert {hit.id for hit in mine if hit.score > sure} == {hit.id for hit in whole if hit.score > sure}
            texts = {hit.id: hit.text for hit in whole}
            assert all(hit.text == texts.get(hit.id, hit.text) for hit in mine)
    named = {entry.name for entry in (folder / "segments").iterdir()}
    with closing(sqlite3.connect(folder / "index.db")) as db:
        assert named == {name for (name,) in db.execute("SELECT name FROM segments")}


def test_killed_runs_resume_to_the_unbroken_index(
    maker: Maker, root: Path, unbroken: tuple[Path, float], embedder: Embedder
) -> None:
    whole, seconds = unbroken
    chance = random.Random(20)
    progress = []
    for number in range(KILLS):
        folder = root / f"killed-{number}"
        share = (number + chance.random()) / KILLS  # a moment in each of KILLS stretches of the run
        while (answer := maker.make(folder, kill_after=seconds * share))["status"] != signal.SIGKILL:
            seconds = answer["report"]["seconds"]  # it was done before: the machine is faster now
            shutil.rmtree(folder)
        progress.append(committed(folder))
        resumed = maker.make(folder)
        assert resumed["status"] == 0
        assert resumed["report"]["unchanged"] == progress[-1]  # nothing is lost, or embedded twice
        assert resumed["report"]["documents"] == 200 - progress[-1]
        check_equal(folder, whole, embedder)
    print("documents committed before each kill:", progress)
    assert KILLS < 6 or any(0 < documents < 200 for documents in progress)  # kills did come in the middle


def test_an_index_killed_many_times_over_is_still_the_unbroken_one(
    maker: Maker, root: Path, unbroken: tuple[Path, float], embedder: Embedder
) -> None:
    whole, seconds = unbroken
    chance = random.Random(30)
    folder, before = root / "often-killed", 0
    for _ in range(KILLS // 2):
        maker.make(folder, kill_after=seconds * chance.random() / 3)
        assert committed(folder) >= before
        before = committed(folder)
    assert maker.make(folder)["report"]["unchanged"] == before
    check_equal(folder, whole, embedder)


def held(folder: Path) -> dict[str, str]:
    """The texts of living documents by their ids, read without any of our code."""
    with closing(sqlite3.connect(f"{(folder / 'index.db').as_uri()}?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT id, text FROM documents WHERE deleted = 0").fetchall())


def check_answers(folder: Path, embedder: Embedder) -> int:
    """Check that all modes find what the database holds, and that some commit left it so; returns how far it got.

    The vectors are compared with those that the model makes of the passages found.
    """
    texts = held(folder)
    numbers = sorted(int(id[1:]) for id in texts)
    now = [n for n in numbers if texts[f"d{n}"].startswith("Now")]
    assert numbers in (list(range(200)), *(list(range(60, stop)) for stop in (200, 190, 185)))
    assert now == list(range(100, 100 + len(now)))  # in order, as they were committed
    assert not now or numbers[0] == 60
    assert numbers[-1] == 199 or len(now) == 40
    with SearchEngine.open(folder, model=embedder) as engine:
        query = "the note says"
        vector = embedder.encode_queries([query])[0]
        for mode in MODES:
            hits = engine.search(query, k=300, options=SearchOptions(mode=mode))
            assert sorted(int(hit.id[1:]) for hit in hits) == numbers  # "note" is in every title
            for hit in hits:
                assert texts[hit.id][hit.start : hit.stop] == hit.text
            if mode == "dense":
                expected = embedder.encode_passages([f"{hit.title} {hit.text}" for hit in hits[:5]]) @ vector
                np.testing.assert_allclose([hit.score for hit in hits[:5]], expected, atol=0.05)
            where = {"n": {"$gte": 120, "$lt": 125}}
            few = engine.search(query, k=300, options=SearchOptions(mode=mode, where=where))
            assert sorted(int(hit.id[1:]) for hit in few) == [120, 121, 122, 123, 124]
    return 200 - len(numbers) + len(now)


def test_an_index_killed_during_a_change_opens_at_a_commit_and_the_change_can_be_repeated(
    maker: Maker, root: Path, unbroken: tuple[Path, float], embedder: Embedder
) -> None:
    whole, _ = unbroken
    shutil.copytree(whole, root / "changed")
    assert check_answers(root / "changed", embedder) == 0
    answer = maker.make(root / "changed", work="change")
    assert answer["status"] == 0
    seconds, final = answer["report"]["seconds"], check_answers(root / "changed", embedder)
    assert final == 75 + 40
    chance, progress = random.Random(40), []
    for number in range(KILLS):
        folder = root / f"changing-{number}"
        share = (number + chance.random()) / KILLS
        shutil.copytree(whole, folder)
        while (answer := maker.make(folder, kill_after=seconds * share, work="change"))["status"] != signal.SIGKILL:
            seconds = answer["report"]["seconds"]
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
        progress.append(check_answers(folder, embedder))
        if number % 2:  # and while it is done again
            maker.make(folder, kill_after=seconds * chance.random(), work="change")
            assert check_answers(folder, embedder) >= progress[-1]
        assert maker.make(folder, work="change")["status"] == 0
        assert check_answers(folder, embedder) == final
        assert held(folder) == held(root / "changed")
        named = {entry.name for entry in (folder / "segments").iterdir()}
        with Store(folder) as store:
            assert named == {segment.entry.name for segment in store.snapshot().segments}
            assert store.leftovers() == []
            assert store.database.integrity() == []
        shutil.rmtree(folder)
    print("how far each change was when it was killed:", progress)


if __name__ == "__main__":
    serve(sys.argv[1])
