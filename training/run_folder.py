"""The folder of a training run: whose run it holds, its checkpoints, and what is removed at the end."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.training.config import TrainConfig
from searchkit.training.files import entries, read_json
from searchkit.training.log import TrainReport


class RunFolder:
    """A folder that holds one run.

    Attributes:
        path: The folder.
        work: A folder in it for the model files that the run needs, until the end.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.work = path, path / "work"
        self._checkpoints = path / "checkpoints"

    def claim(self, config: TrainConfig) -> Path | None:
        """Claim the folder for a run, and return the checkpoint to resume from, if any.

        Raises:
            InputError: The folder holds something else: another run that made a step, or a finished one.
        """
        saved, log = self.path / "training.json", self.path / "log.jsonl"
        checkpoint = max(self._checkpoints.glob("step-*"), default=None)
        if saved.is_file():
            made_steps = checkpoint is not None or (log.is_file() and log.stat().st_size > 0)
            if made_steps and replace(TrainConfig.load(saved), out=config.out) != config:
                raise InputError(f"{self.path} holds a run with other settings (training.json); choose another --out")
        elif entries(self.path):
            raise InputError(f"{self.path} is not empty and holds no training run; choose another --out")
        if (self.path / "modules.json").is_file():
            raise InputError(f"{self.path} holds a finished run; choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        config.save(saved)
        return checkpoint

    def save(self, accelerator: Any, report: TrainReport) -> None:
        """Write a checkpoint; it is complete before it gets its name, and only then the older one is removed."""
        final, staging = self._checkpoints / f"step-{report.steps:07d}", self._checkpoints / "unfinished"
        if accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(staging))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (staging / "report.json").write_text(json.dumps(asdict(report)))
            staging.rename(final)
            for old in self._checkpoints.glob("step-*"):
                if old != final:
                    shutil.rmtree(old)

    def load(self, checkpoint: Path, accelerator: Any, report: TrainReport, config: TrainConfig) -> None:
        """Restore the state and the report of a checkpoint.

        Raises:
            InputError: The examples have changed since it was written.
        """
        accelerator.load_state(str(checkpoint))
        saved = read_json(checkpoint / "report.json")
        before = saved.get("digests", report.digests)
        for source, now, then in zip(config.sources, report.digests, before, strict=True):
            if now != then:
                raise InputError(
                    f"the examples of {source} have changed since the checkpoint in {self.path} was written; restore "
                    "them (with their --corpus and --instructions), or choose another --out"
                )
        report.restore(saved)

    def clear(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self._checkpoints, ignore_errors=True)
