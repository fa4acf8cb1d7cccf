"""A disk that fills up while an index is changed: the last commit is intact, and the same command continues later.

`SEARCHKIT_DISKS=20 pytest tests/searchkit/test_disk_full.py` fills more. Run as a program, this file changes
indexes on a small file system of its own, which an unprivileged user can have in a namespace.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Server, Words, serve

from searchkit.check import check
from searchkit.engine import SearchEngine
from searchkit.errors import SearchkitError
from searchkit.ranking import MODES, SearchOptions
from searchkit.records import Document

DISKS = int(os.environ.get("SEARCHKIT_DISKS", "4"))
INSIDE = ["unshare", "--user", "--map-root-user", "--mount"]
MOUNT = ["mount", "-t", "tmpfs", "-o", "size=64m", "none"]

FULL = re.compile("disk is full|No space left")

WORKS: dict[str, Callable[[SearchEngine], object]] = {
    "add": lambda engine: engine.add(notes(200, 290), commit_every=30),
    "delete": lambda engine: engine.delete(where={"n": {"$lt": 80}}),
    "compact": lambda engine: engine.compact(),
    "compress": lambda engine: engine.store_as("int8"),
}


def notes(start: int, stop: int) -> Iterator[Document]:
    for n in range(start, stop):
        yield Document(f"d{n}", f"A note, number {n}, " + "of many words " * 20, metadata={"n": n})


def make(embedder: Words, root: str) -> dict[str, int]:
    """Make a small disk with an index; returns the most bytes that each change takes while it runs."""
    disk = Path(root)
    subprocess.run([*MOUNT, root], check=True)
    with SearchEngine.create(disk / "sound", model=embedder) as engine:
        engine.add(notes(0, 200), commit_every=50)
        engine.delete([f"d{n}" for n in range(100, 150)])
    most = {}
    for work in WORKS:
        shutil.copytree(disk / "sound", disk / "work")
        most[work] = _watched(disk, lambda work=work: change(embedder, root, work))
        shutil.rmtree(disk / "work")
    return most


def _watched(disk: Path, work: Callable[[], object]) -> int:
    """The most space that is taken while some work is done."""
    before, least, ended = free(disk), [free(disk)], threading.Event()

    def look() -> None:
        while not ended.is_set():
            least[0] = min(least[0], free(disk))
            time.sleep(0.0005)

    watching = threading.Thread(target=look)
    watching.start()
    work()
    ended.set()
    watching.join()
    return before - min(least[0], free(disk))


def free(disk: Path) -> int:
    stats = os.statvfs(disk)
    return stats.f_bavail * stats.f_frsize


def fill(embedder: Words, root: str, left: int) -> None:
    """Copy the index, and fill the disk until so many bytes are left."""
    disk = Path(root)
    shutil.copytree(disk / "sound", disk / "work")
    with (disk / "ballast").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, free(disk) - left))


def empty(embedder: Words, root: str) -> None:
    (Path(root) / "ballast").unlink()


def remove(embedder: Words, root: str) -> None:
    shutil.rmtree(Path(root) / "work")


def change(embedder: Words, root: str, work: str) -> str:
    """Do it, as a command would; returns "" or the error."""
    try:
        with SearchEngine.open(Path(root) / "work", model=embedder, writable=True) as engine:
            WORKS[work](engine)
    except (SearchkitError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def state(embedder: Words, root: str) -> list[Any]:
    """(ids of all documents, those found in each mode, what a check reports)."""
    folder = Path(root) / "work"
    try:
        with SearchEngine.open(folder, model=embedder) as engine:
            ids = sorted(id for id, _, _, _ in engine.store.documents.living())
            hits = [sorted(h.id for h in engine.search("note", k=999, options=SearchOptions(mode))) for mode in MODES]
    except (SearchkitError, OSError) as error:
        return [f"{type(error).__name__}: {error}", [], []]
    return [ids, hits, [f"{each.part}: {each.damage}" for each in check(folder) if not each.ok]]


def ids(*numbers: int) -> list[str]:
    return sorted(f"d{n}" for n in numbers)


BEFORE = [*range(100), *range(150, 200)]
EXPECTED = {  # the commits that each change may have reached, the last one last
    "add": [ids(*BEFORE, *range(200, stop)) for stop in (200, 230, 260, 290)],
    "delete": [ids(*BEFORE), ids(*range(80, 100), *range(150, 200))],
    "compact": [ids(*BEFORE)],
    "compress": [ids(*BEFORE)],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if shutil.which(INSIDE[0]) is None:
        pytest.skip("a small file system needs unshare, which Linux has")
    tried = subprocess.run([*INSIDE, *MOUNT, str(tmp_path)], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no small file system can be mounted here: {tried.stderr.strip()}")
    made = Server(__file__, INSIDE)
    yield made
    made.close()


def test_a_full_disk_leaves_the_last_commit_and_the_change_can_be_repeated(server: Server, tmp_path: Path) -> None:
    root = str(tmp_path)
    most = server.do("make", root=root)
    chance, errors = random.Random(50), list[str]()
    for number in range(DISKS):
        work, step = list(WORKS)[number % 4], number // 4
        left = int(most[work] * (step + chance.random()) / -(-DISKS // 4))
        server.do("fill", root=root, left=left)
        error = server.do("change", root=root, work=work)
        errors += [f"{work} with {left} of {most[work]} bytes: {error}"] if error else []
        assert not error or FULL.search(error), errors[-1]
        for full in (True, False):
            if not full:
                server.do("empty", root=root)
            held, hits, damage = server.do("state", root=root)
            if full and isinstance(held, str):  # even reading a log that could not be folded back needs some space
                assert FULL.search(held), (work, left, error, held)
                continue
            assert held in EXPECTED[work][0 if error else -1 :], (work, left, full, error)
            assert hits == [held] * 3, (work, left, full, error)
            assert damage == [], (work, left, full, error)
        assert server.do("change", root=root, work=work) == ""
        held, hits, damage = server.do("state", root=root)
        assert (held, hits, damage) == (EXPECTED[work][-1], [held] * 3, [])
        server.do("remove", root=root)
    print("\n".join(errors))
    assert len(errors) >= DISKS // 2


if __name__ == "__main__":
    serve({"make": make, "fill": fill, "empty": empty, "remove": remove, "change": change, "state": state})
