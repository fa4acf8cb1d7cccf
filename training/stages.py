"""The stages of a long job in one folder: each is done once, and again when what it depends on has changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from searchkit.training.files import remove, write_whole

FILE = "stages.json"


class Stages:
    """Which stages are done in a folder, and from which inputs.

    Args:
        folder: Where the stages write; created if missing.
        on_stage: Called with the name of every stage and whether it has work to do.

    Attributes:
        seconds: How long each stage took that had work to do.
    """

    def __init__(self, folder: Path, on_stage: Callable[[str, bool], None] | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}
        self._file = folder / FILE
        self._on_stage = on_stage
        self._done = _read(self._file)

    @contextmanager
    def stage(self, name: str, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Iterator[bool]:
        """Enter a stage, and mark it as done on leaving.

            with stages.stage("mine", {"pairs": digest(pairs)}, ["mined.jsonl"]) as needed:
                if needed:
                    ...

        Outputs of other inputs are removed first. Outputs of the same inputs stay, so that work that was interrupted
        can resume.

        Args:
            name: Of the stage.
            inputs: Everything the stage depends on, as JSON; files and folders by their `digest`.
            outputs: Names in the folder of the files and folders that the stage writes.

        Yields:
            Whether there is work to do: False if it was done from the same inputs and its outputs exist.
        """
        key = hashlib.sha256(json.dumps([name, inputs], sort_keys=True).encode()).hexdigest()
        entry = self._done.get(name, {})
        same = entry.get("inputs") == key
        needed = not (same and entry.get("done") and all((self.folder / output).exists() for output in outputs))
        if self._on_stage:
            self._on_stage(name, needed)
        if not needed:
            yield False
            return
        if not same:
            for output in outputs:
                remove(self.folder / output)
        self._note(name, key, done=False)
        start = time.monotonic()
        yield True
        self.seconds[name] = time.monotonic() - start
        self._note(name, key, done=True)

    def _note(self, name: str, key: str, *, done: bool) -> None:
        self._done[name] = {"inputs": key, "done": done}
        write_whole(self._file, json.dumps(self._done, indent=1) + "\n")


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """What is done; nothing if the file is missing or damaged, so that all is done again."""
    try:
        done = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return done if isinstance(done, dict) and all(isinstance(entry, dict) for entry in done.values()) else {}
