"""Readers that search while a writer commits: no error, and every answer comes from exactly one commit.

`SEARCHKIT_COMMITS=100 pytest tests/searchkit/test_concurrent_readers.py` commits more often. Run as a program, this
file is the readers and the writer.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from forked import Server, Words, folder_in_memory, serve

from searchkit.engine import SearchEngine
from searchkit.ranking import MODES, SearchOptions
from searchkit.records import Document

COMMITS = int(os.environ.get("SEARCHKIT_COMMITS", "15"))
READERS = (1, 1, 2)
"""Threads of each reading process; threads of one process share an engine."""

State = dict[str, str]
"""The texts of all documents by their ids."""

FILTERS: list[dict[str, Any] | None] = [None, {"first": True}]


def history(commits: int) -> list[tuple[str, State, list[str]]]:
    """What each commit does: its kind, the documents it writes, and the ids it deletes."""
    done: list[tuple[str, State, list[str]]] = [("add", {f"a{n}": "a note at first" for n in range(12)}, [])]
    added: list[str] = []
    for commit in range(1, commits + 1):
        kind = ["update", "add", "delete", "update some", "compact"][commit % 5]
        count = {"update": 12, "update some": 5, "add": 3}.get(kind, 0)
        ids = [f"b{commit}-{n}" if kind == "add" else f"a{n}" for n in range(count)]
        gone = added[:2] if kind == "delete" else []
        added = [*added[len(gone) :], *(ids if kind == "add" else [])]
        done.append((kind, dict.fromkeys(ids, f"a note of commit {commit}"), gone))
    return done


def states_after(commits: int) -> list[State]:
    """What the index holds after each commit."""
    states, now = [], State()
    for _, written, gone in history(commits):
        now = {id: text for id, text in (now | written).items() if id not in gone}
        states.append(now)
    return states


def documents(texts: State) -> list[Document]:
    return [Document(id, text, metadata={"first": first(id)}) for id, text in texts.items()]


def first(id: str) -> bool:
    return id.startswith("a")


def write(embedder: Words, folder: Path, commits: int) -> None:
    with SearchEngine.open(folder, model=embedder, writable=True) as engine:
        for kind, written, gone in history(commits)[1:]:
            if kind == "compact":
                engine.compact()
            elif gone:
                assert engine.delete(gone) == (len(gone), [])
            else:
                assert engine.add(documents(written), update=True).documents == len(written)


def read(folder: Path, commits: int, threads: int, done: Path) -> tuple[int, list[str], set[int]]:
    """(answers, what was wrong, commits that were seen) of some threads with one engine."""
    expected = states_after(commits)
    with SearchEngine.open(folder, model=Words()) as engine, ThreadPoolExecutor(threads) as pool:

        def work(number: int) -> tuple[int, list[str], set[int]]:
            answers, at, wrong, seen, last = 0, 0, list[str](), set[int](), False
            while not last and not wrong:
                last = done.exists()  # the answer that follows is of the last commit
                options = SearchOptions(MODES[(number + answers) % 3], where=FILTERS[answers % 4 == 3])
                if last or answers % 2:
                    engine.reload()
                try:
                    hits = engine.search("a note", k=1000, options=options)
                except Exception:
                    return answers, [traceback.format_exc()], seen
                answers += 1
                texts = {hit.id: hit.text for hit in hits}
                fits = [
                    commit
                    for commit, state in enumerate(expected)
                    if texts == {id: text for id, text in state.items() if options.where is None or first(id)}
                ]
                later = [commit for commit in fits if commit >= at]  # never back to an earlier one
                if len(texts) != len(hits) or not later or (last and len(expected) - 1 not in later):
                    wrong.append(f"{options.mode} {options.where} after commit {at}, fits {fits}: {texts}")
                else:
                    at = later[0]
                    seen.add(at)
            return answers, wrong, seen

        ended = list(pool.map(work, range(threads)))
    return (
        sum(each[0] for each in ended),
        [fault for each in ended for fault in each[1]],
        ended[0][2].union(*(each[2] for each in ended)),
    )


def race(embedder: Words, root: str, commits: int) -> dict[str, Any]:
    folder, done = Path(root) / "an.index", Path(root) / "done"
    with SearchEngine.create(folder, model=embedder) as engine:
        engine.add(documents(states_after(0)[0]))
    with multiprocessing.get_context("fork").Pool(len(READERS)) as pool:
        readers = [pool.apply_async(read, (folder, commits, threads, done)) for threads in READERS]
        try:
            write(embedder, folder, commits)
        finally:
            done.touch()
        ended = [reader.get(60) for reader in readers]
    with SearchEngine.open(folder, model=embedder) as engine:
        held = {id: text for id, _, text, _ in engine.store.documents.living()}
    return {
        "answers": [each[0] for each in ended],
        "wrong": [wrong for each in ended for wrong in each[1]],
        "seen": [len(each[2]) for each in ended],
        "held": held,
    }


def test_every_answer_while_a_writer_commits_comes_from_one_commit(forks: Server) -> None:
    with folder_in_memory() as root:
        ended = forks.do("race", root=str(root), commits=COMMITS)
    print(f"answers {ended['answers']}, of so many commits {ended['seen']}", file=sys.stderr)
    assert ended["wrong"] == []
    assert ended["held"] == states_after(COMMITS)[-1]
    assert min(ended["answers"]) > 3


if __name__ == "__main__":
    serve({"race": race})
