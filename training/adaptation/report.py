"""What adapting a model changed: before and after by every way of searching, and on texts of other kinds."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from searchkit.errors import InputError
from searchkit.evaluation.evaluate import Evaluation
from searchkit.metrics import score
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import corpus_folder, read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import join_title
from searchkit.significance import compare_paired
from searchkit.training.stages import write_whole

logger = logging.getLogger(__name__)

_LIKELY_CHANCE = 0.05


@dataclass
class Compared:
    """One way of searching, before and after.

    Args:
        before: Metrics by name.
        after: Likewise.
        p: How likely so large a difference in nDCG@10 would be by chance.
        changes: Of every query's nDCG@10.
    """

    before: dict[str, float]
    after: dict[str, float]
    p: float
    changes: dict[str, float]

    @property
    def gain(self) -> float:
        """In nDCG@10."""
        return self.after["ndcg@10"] - self.before["ndcg@10"]


@dataclass
class AdaptReport:
    """What came of it.

    Args:
        judged_by: Name of the judgements.
        own_judgements: They came from the user, and not from the pairs.
        pairs: How many were read, trained on, held out, set aside.
        modes: Before and after by way of searching.
        elsewhere: nDCG@10 before and after on `corpora/intents`, which has nothing to do with the index; it decides
            nothing.
        kept: The index searches with the new model from now on.
        seconds: Of the stages that this run did.
    """

    judged_by: str
    own_judgements: bool
    pairs: dict[str, int]
    modes: dict[str, Compared] = field(default_factory=dict)
    elsewhere: tuple[float, float] | None = None
    kept: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def wins(self) -> bool:
        """It finds more, dense and hybrid taken together, and in neither does it find less by more than chance."""
        both = [self.modes[mode] for mode in ("dense", "hybrid")]
        lost = any(one.gain < 0 and one.p < _LIKELY_CHANCE for one in both)
        return not lost and sum(one.gain for one in both) > 0

    @property
    def certain(self) -> bool:
        """One of the gains is hardly chance."""
        return any(self.modes[mode].gain > 0 and self.modes[mode].p < _LIKELY_CHANCE for mode in ("dense", "hybrid"))


def compare(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> dict[str, Compared]:
    """Evaluations of the same modes by the same judgements, side by side."""
    found = {}
    for one, other in zip(before, after, strict=True):
        now, then = other.per_query["ndcg@10"], one.per_query["ndcg@10"]
        changes = {query: now[query] - value for query, value in then.items()}
        values = [np.array([side[query] for query in then]) for side in (then, now)]
        found[one.mode] = Compared(one.metrics, other.metrics, compare_paired(*values).p_randomisation, changes)
    return found


def elsewhere(embedder: Embedder) -> float:
    """nDCG@10 of a model on the collection that comes with searchkit, each query with its instruction."""
    folder = corpus_folder("intents")
    queries, qrels = read_beir_split(folder, "test")
    documents = list(read_corpus(folder))
    passages = embedder.encode_passages([join_title(document.title, document.text) for document in documents])
    run = {}
    for instruction in {query.instruction for query in queries}:
        asked = [query for query in queries if query.instruction == instruction]
        similar = embedder.encode_queries([query.text for query in asked], instruction) @ passages.T
        for query, row in zip(asked, similar, strict=True):
            run[query.id] = {documents[i].id: float(row[i]) for i in np.argsort(-row)[:100]}
    return score(run, qrels)[0]["ndcg@10"]


def write_report(file: Path, report: AdaptReport) -> None:
    """Write a report as JSON, whole or not at all."""
    values = {**asdict(report), "wins": report.wins, "certain": report.certain}
    write_whole(file, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_report(file: Path) -> AdaptReport:
    """Read what `write_report` wrote; ValueError when it is something else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        known = {each.name: values[each.name] for each in fields(AdaptReport)}
        modes = {mode: Compared(**compared) for mode, compared in values["modes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no report of searchkit adapt, or it is damaged") from error
    return AdaptReport(**{**known, "modes": modes})


def draw(file: Path, report: AdaptReport) -> None:
    """By how much every query gained or lost, from the worst to the best; writes FILE.png and FILE.svg."""
    from searchkit.reports.style import line_chart

    series = {
        mode: [(float(n), change) for n, change in enumerate(sorted(report.modes[mode].changes.values()), start=1)]
        for mode in ("dense", "hybrid")
    }
    try:
        line_chart(
            file, series, title=f"What adapting changed, by {Path(report.judged_by).name}",
            x_label="queries, from the greatest loss to the greatest gain", y_label="change in nDCG@10",
        )  # fmt: skip
    except ImportError as error:
        logger.warning("the run goes on without its picture: %s", error)
