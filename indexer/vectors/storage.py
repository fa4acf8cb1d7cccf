"""How an index stores its vectors: one record of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from searchkit.indexer.files import Stamp
from searchkit.indexer.vectors.recipes import Plan, Tuning
from searchkit.indexer.vectors.similarity import Similarity


@dataclass(frozen=True, slots=True)
class Codebook:
    """The file of a trained, empty index.

    Args:
        name: Its name in the folder of codebooks.
        stamp: Its size and checksum.
    """

    name: str
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Storage:
    """How vectors are stored and searched.

    Args:
        plan: The recipe with its numbers.
        tuning: How hard they are searched.
        keep_vectors: Whether half-precision vectors are kept beside compressed ones.
        codebook: What the recipe was trained to; None where it needs no training.
        chosen: How vectors are compared, where that is not the cosine of rows as wide as the plan's.
    """

    plan: Plan
    tuning: Tuning = field(default_factory=Tuning)
    keep_vectors: bool = True
    codebook: Codebook | None = None
    chosen: Similarity | None = None

    @property
    def similarity(self) -> Similarity:
        """How vectors are compared."""
        return self.chosen or Similarity("cosine", self.plan.dim)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Storage:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            plan = dict(values["plan"])
            plan["lists"] = plan.pop("cells", 0)  # the key is older than the name
            book = values["codebook"]
            if book is not None:
                stamp = book["stamp"] if "stamp" in book else (book["bytes"], book["sha256"])  # format 2
                book = Codebook(book["name"], Stamp(*stamp))
            chosen = Similarity.from_json(values["similarity"]) if "similarity" in values else None
            return cls(Plan(**plan), Tuning(**values["tuning"]), bool(values["keep_vectors"]), book, chosen)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no record of how vectors are stored ({type(error).__name__}: {error})") from error

    def to_json(self) -> dict[str, Any]:
        """The value of the setting "storage"."""
        plan = asdict(self.plan)
        plan["cells"] = plan.pop("lists")
        book = self.codebook
        return {
            "plan": {key: plan[key] for key in ("recipe", "dim", "code", "cells", "width")},
            "keep_vectors": self.keep_vectors,
            "codebook": None if book is None else {"name": book.name, "stamp": list(book.stamp)},
            "tuning": asdict(self.tuning),
            **({} if self.chosen is None else {"similarity": self.chosen.to_json()}),
        }
