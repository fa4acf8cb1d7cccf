"""What became of every example that was asked for: usable, or why not, by group and prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """What one prompt gave in one group.

    Args:
        group: Kind of query where there is an index, else the task group.
        prompt: Label of the prompt, with its version.
        usable: Examples that passed every check, those beyond the wanted number included.
        refused: Reason -> examples that failed for it; an answer that cannot be read fails for all that it was to hold.
    """

    group: str
    prompt: str
    usable: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def asked(self) -> int:
        """Examples that were asked for; requests that the server left without an answer do not count."""
        return self.usable + self.refused.total()

    @property
    def share(self) -> float:
        """The usable ones of those that were asked for."""
        return self.usable / self.asked if self.asked else 0.0

    def to_json(self) -> dict[str, Any]:
        """As it stands in the report."""
        return {
            "group": self.group,
            "prompt": self.prompt,
            "asked": self.asked,
            "usable": self.usable,
            "share": round(self.share, 4),
            "refused": dict(self.refused.most_common()),
        }


class Outcomes:
    """The outcomes by group and prompt."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, str], Outcome] = {}

    def usable(self, group: str, prompt: str) -> None:
        """Count a usable example."""
        self._of(group, prompt).usable += 1

    def refused(self, group: str, prompt: str, reason: str) -> None:
        """Count an example that is of no use."""
        self._of(group, prompt).refused[reason] += 1

    def all(self) -> list[Outcome]:
        """By prompt, then by group."""
        return [self._by_name[name] for name in sorted(self._by_name, key=lambda name: (name[1], name[0]))]

    def total(self) -> Outcome:
        """All examples together."""
        whole = Outcome("all", "")
        for outcome in self._by_name.values():
            whole.usable += outcome.usable
            whole.refused += outcome.refused
        return whole

    def _of(self, group: str, prompt: str) -> Outcome:
        return self._by_name.setdefault((group, prompt), Outcome(group, prompt))
