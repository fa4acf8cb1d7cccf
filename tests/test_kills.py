"""An index whose making was killed again and again equals one that was made in peace.

Run as a program, this file is the maker: it loads the model once and forks a child for every run it is told to make, so
that a kill costs a fork and not the import of torch. `SEARCHKIT_KILLS=50 pytest tests/test_kills.py` kills more.
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
from conftest import TEXTS

from searchkit.embedder import Embedder
from searchkit.engine import SearchEngine
from searchkit.indexer import dense
from searchkit.indexer.store import Store
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


def serve(model: str) -> None:
    """For every line "SECONDS FOLDER" of standard input: make the index there, and be killed after that many."""
    # Loaded and never used here: torch can be forked until it has computed something.
    embedder = Embedder(model, device="cpu", dtype="float32")
    for line in sys.stdin:
        seconds, folder = line.rstrip("\n").split(" ", 1)
        answers, write = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                make(embedder, folder, write)
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
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def make(self, folder: Path, kill_after: float | None = None) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print("never" if kill_after is None else kill_after, folder, file=self.process.stdin, flush=True)
        return dict(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def maker(mistral: Path) -> Iterator[Maker]:
    made = Maker(mistral)
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: syncing takes nine tenths of the time on a disk, and is not what fails."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK):
        with tempfile.TemporaryDirectory(dir=memory, prefix="searchkit-kills-") as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def unbroken(maker: Maker, place: Path) -> tuple[Path, float]:
    """An index made in peace, and the seconds it took."""
    maker.make(place / "warm")  # the first run is slower
    answer = maker.make(place / "unbroken")
    assert (answer["status"], answer["report"]["documents"]) == (0, 200)
    return place / "unbroken", answer["report"]["seconds"]


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
        vectors = np.concatenate([dense.vectors_of(segment.index) for segment in store.segments()])
        return {**tables, "vectors": vectors.tobytes(), "segments": len(store.segments())}


def results(folder: Path, embedder: Embedder) -> list[Any]:
    with SearchEngine.open(folder, model=embedder) as engine:
        return [engine.search_many(QUERIES, k=k, options=SearchOptions(mode=mode)) for mode in MODES for k in (5, 50)]


def check_equal(folder: Path, unbroken: Path, embedder: Embedder) -> None:
    assert content(folder) == content(unbroken)
    assert results(folder, embedder) == results(unbroken, embedder)
    named = {entry.name for entry in (folder / "segments").iterdir()}
    with closing(sqlite3.connect(folder / "index.db")) as db:
        assert named == {name for (name,) in db.execute("SELECT name FROM segments")}


def test_killed_runs_resume_to_the_unbroken_index(
    maker: Maker, place: Path, unbroken: tuple[Path, float], embedder: Embedder
) -> None:
    whole, seconds = unbroken
    chance = random.Random(20)
    progress = []
    for number in range(KILLS):
        folder = place / f"killed-{number}"
        share = (number + chance.random()) / KILLS  # one moment in each of KILLS stretches of the whole run
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
    maker: Maker, place: Path, unbroken: tuple[Path, float], embedder: Embedder
) -> None:
    whole, seconds = unbroken
    chance = random.Random(30)
    folder, before = place / "often-killed", 0
    for _ in range(KILLS // 2):
        maker.make(folder, kill_after=seconds * chance.random() / 3)
        assert committed(folder) >= before
        before = committed(folder)
    assert maker.make(folder)["report"]["unchanged"] == before
    check_equal(folder, whole, embedder)


if __name__ == "__main__":
    serve(sys.argv[1])
