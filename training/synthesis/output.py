"""What a run writes: the examples, the rejects with their reasons, and the counts of both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from searchkit.training.files import json_line, replacing
from searchkit.training.synthesis.quality import Candidate
from searchkit.training.synthesis.settings import SynthesisReport, SynthesizeConfig


class Output:
    """Writes examples and rejects, and counts them in a report.

    Files get their names once complete; after an error the examples of an earlier run stay.

    Attributes:
        report: Counts so far.
        trouble: Why the last answer or example was rejected.
    """

    def __init__(self, config: SynthesizeConfig) -> None:
        self._config = config
        self._files = ExitStack()
        self.report = SynthesisReport(wanted=config.count, model=config.model, seed=config.seed)
        self.trouble = ""

    def __enter__(self) -> Output:
        self._examples = self._files.enter_context(replacing(Path(self._config.out)))
        self._rejects = self._files.enter_context(replacing(self._config.beside(".rejects.jsonl"), always=True))
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def write(self, candidate: Candidate) -> None:
        """Write an example."""
        self._examples.write(json_line(candidate.row(self._config.model)))
        self.report.add(candidate)

    def reject(self, reason: str, detail: str, row: dict[str, Any], groups: Sequence[str]) -> None:
        """Write down an answer or an example that is of no use.

        Args:
            reason: By which it is counted.
            detail: What is wrong in this case.
            row: What identifies it, its prompt included.
            groups: The group of each example that is lost with it.
        """
        self.report.refused[reason] = self.report.refused.get(reason, 0) + 1
        self.trouble = f"{reason}: {detail}" if detail else reason
        self._rejects.write(json_line({"reason": reason, "detail": detail, **row}))
        for group in groups:
            self.report.outcomes.refused(group, row["prompt"], reason)

    def reject_example(self, reason: str, detail: str, candidate: Candidate) -> None:
        """Write down an example that a check failed."""
        self.reject(reason, detail, candidate.row(self._config.model), [candidate.named_group])
