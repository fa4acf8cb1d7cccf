"""A process that forks a child for each piece of work: a crash then costs a fork and not a start of Python.

A test file that needs one runs itself as a program, and calls `serve` there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder, EncodeStats

PATIENCE = 600
"""Seconds after which a child counts as hanging, and is ended by a signal like one that crashed."""


class Words(Embedder):
    """Texts to vectors by their words' hashes. Tested here are files: a real model costs each child seconds."""

    token_budget = 4096

    def __init__(self) -> None:
        self.dim, self.conventions, self.stats = 64, Conventions(max_length=256), EncodeStats()
        self.name = "words"
        self.frame = ([], [])

    def identity(self) -> dict[str, Any]:
        return {"model": "words", "adapter": None, "weights": "hashes", "dim": self.dim, **asdict(self.conventions)}

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [found.span() for found in re.finditer(r"\w+", text)]

    def encode_passages(self, passages: Sequence[str], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        rows = [sum(map(_of_word, re.findall(r"\w+", text.lower())), np.zeros(self.dim)) for text in passages]
        vectors = np.array(rows, dtype=np.float32).reshape(-1, self.dim)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def encode_queries(self, queries: Sequence[str], instruction: str | None = None) -> np.ndarray:
        return self.encode_passages(queries)


@cache
def _of_word(word: str) -> np.ndarray:
    return np.random.default_rng(crc32(word.encode())).standard_normal(64)


def serve(works: dict[str, Callable[..., Any]]) -> None:
    """For every line of standard input, {"task": name, ...}: do that in a child, and print how it ended."""
    embedder = Words()
    for line in sys.stdin:
        given = json.loads(line)
        answers, write = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(PATIENCE)
                answer = works[given.pop("task")](embedder, **given)
                with open(write, "w") as stream:
                    json.dump(answer, stream)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        os.close(write)
        with open(answers) as stream:
            answer = stream.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": status, "answer": json.loads(answer or "null")}), flush=True)


class Server:
    """The process that forks, seen from the tests.

    Args:
        file: The test file.
        wrapped: A command to run it by.
    """

    def __init__(self, file: str, wrapped: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*wrapped, sys.executable, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def start(self, task: str, **given: Any) -> None:
        """Have a piece of work begun."""
        assert self._process.stdin is not None
        print(json.dumps({"task": task, **given}), file=self._process.stdin, flush=True)

    def finish(self) -> tuple[int, Any]:
        """(exit status as of os.waitpid, answer) of the work that was begun."""
        assert self._process.stdout is not None
        ended = json.loads(self._process.stdout.readline())
        return ended["status"], ended["answer"]

    def do(self, task: str, **given: Any) -> Any:
        """The answer of a piece of work that must end well."""
        self.start(task, **given)
        status, answer = self.finish()
        assert status == 0
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder in memory where there is one: syncing takes nine tenths of the time on a disk, and is not what fails."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="searchkit-") as folder:
        yield Path(folder)
