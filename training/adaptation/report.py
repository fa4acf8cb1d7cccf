"""What adapting a model changed: before and after in every search mode, and on a collection of another domain."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError
from searchkit.evaluation.evaluate import Evaluation
from searchkit.metrics import score
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import corpus_folder, read_corpus
from searchkit.readers.judgements import read_beir_split
from searchkit.records import Qrels, join_title
from searchkit.significance import compare_paired
from searchkit.training.files import read_json, write_json

logger = logging.getLogger(__name__)

_SIGNIFICANCE = 0.05
_WEIGHED = ("hybrid", "dense")
"""Search modes that decide, the default first; lexical search has nothing to do with the model."""


@dataclass
class Compared:
    """One search mode, before and after.

    Args:
        before: Metrics by name.
        after: Likewise.
        p: p-value of the difference in nDCG@10.
        changes: Change in nDCG@10 of every query.
    """

    before: dict[str, float]
    after: dict[str, float]
    p: float
    changes: dict[str, float]

    @property
    def gain(self) -> float:
        """Gain in nDCG@10."""
        return self.after["ndcg@10"] - self.before["ndcg@10"]

    @property
    def certain(self) -> bool:
        """The gain or loss is significant."""
        return self.gain != 0 and self.p < _SIGNIFICANCE


@dataclass
class AdaptReport:
    """The result of a run.

    Args:
        judged_by: Name of the judgements.
        own_judgements: They are the user's own, not held-out pairs.
        pairs: How many were read, trained on, held out and set aside.
        modes: Before and after, by search mode.
        without_pairs: Queries none of whose documents was trained on: how many ("queries"), and their mean change in
            nDCG@10 by search mode. The others show what is learnt about single documents.
        strength: How much of the fitted map is used, from 0 to 1; None where weights were trained.
        out_of_domain: nDCG@10 before and after on `corpora/intents`, which is unrelated to the index; decides nothing.
        kept: The index now searches with the new model.
        request: Checksum of what was asked for; "" in reports of earlier versions.
        seconds: Duration of the stages that had work to do.
    """

    judged_by: str
    own_judgements: bool
    pairs: dict[str, int]
    modes: dict[str, Compared] = field(default_factory=dict)
    without_pairs: dict[str, float] = field(default_factory=dict)
    strength: float | None = None
    out_of_domain: tuple[float, float] | None = None
    kept: bool = False
    request: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def wins(self) -> bool:
        """Hybrid search, the default, gains and dense search does not lose significantly; or dense search alone gains.

        An index that is replaced is searched in the default mode by most, so that this one must not lose at all.
        """
        hybrid, dense = (self.modes[mode] for mode in _WEIGHED)
        if hybrid.gain == 0:
            return dense.gain > 0
        return hybrid.gain > 0 and not (dense.gain < 0 and dense.certain)

    @property
    def certain(self) -> bool:
        """The gain in hybrid search is significant, or where hybrid search is unchanged, that in dense search."""
        hybrid, dense = (self.modes[mode] for mode in _WEIGHED)
        deciding = hybrid if hybrid.gain else dense
        return deciding.gain > 0 and deciding.certain

    @property
    def verdict(self) -> str:
        """What holds for which search mode, in words, with its significance."""
        hybrid, dense = (_in_words(self.modes[mode]) for mode in _WEIGHED)
        better = ("is better" if self.certain else "may be better") if self.wins else "is not better"
        return f"the new model {better}: hybrid search, the default, {hybrid}; dense search {dense}"

    def to_json(self) -> dict[str, Any]:
        """The report as it is written and shown."""
        values = asdict(self)
        return {
            **{"elsewhere" if name == "out_of_domain" else name: value for name, value in values.items()},
            "wins": self.wins,
            "certain": self.certain,
            "verdict": self.verdict,
        }


def _in_words(compared: Compared) -> str:
    if compared.gain == 0:
        return "is as good as before"
    chance = "" if compared.certain else ", which may be chance"
    return f"is {'better' if compared.gain > 0 else 'worse'} ({compared.gain:+.4f}, p {compared.p:.4f}{chance})"


def compare(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> dict[str, Compared]:
    """Evaluations of the same modes by the same judgements, side by side."""
    modes = {}
    for old, new in zip(before, after, strict=True):
        old_values, new_values = old.per_query["ndcg@10"], new.per_query["ndcg@10"]
        changes = {query: new_values[query] - value for query, value in old_values.items()}
        paired = [np.array([side[query] for query in old_values]) for side in (old_values, new_values)]
        modes[old.mode] = Compared(old.metrics, new.metrics, compare_paired(*paired).p_randomisation, changes)
    return modes


def without_pairs(modes: dict[str, Compared], qrels: Qrels, trained_on: Collection[str | None]) -> dict[str, float]:
    """What changed for queries none of whose documents was trained on, as :attr:`AdaptReport.without_pairs` has it."""
    relevant = {query: {id for id, gain in gains.items() if gain > 0} for query, gains in qrels.items()}
    result: dict[str, float] = {}
    for mode, compared in modes.items():
        changes = [change for query, change in compared.changes.items() if relevant[query].isdisjoint(trained_on)]
        result = {"queries": len(changes), **result, mode: float(np.mean(changes)) if changes else 0.0}
    return result


def out_of_domain(embedder: Embedder) -> float:
    """nDCG@10 of a model on the collection that comes with searchkit, each query with its instruction."""
    folder = corpus_folder("intents")
    queries, qrels = read_beir_split(folder, "test")
    documents = list(read_corpus(folder))
    passages = embedder.encode_passages([join_title(document.title, document.text) for document in documents])
    run = {}
    for instruction in {query.instruction for query in queries}:
        group = [query for query in queries if query.instruction == instruction]
        similarities = embedder.encode_queries([query.text for query in group], instruction) @ passages.T
        for query, row in zip(group, similarities, strict=True):
            run[query.id] = {documents[i].id: float(row[i]) for i in np.argsort(-row)[:100]}
    return score(run, qrels)[0]["ndcg@10"]


def write_report(file: Path, report: AdaptReport) -> None:
    """Write a report as JSON, whole or not at all."""
    write_json(file, report.to_json())


def read_report(file: Path) -> AdaptReport:
    """Read what `write_report` wrote.

    Raises:
        InputError: It is something else.
        OSError: It cannot be read.
    """
    values = read_json(file)
    try:
        modes = {mode: Compared(**compared) for mode, compared in values["modes"].items()}
        return AdaptReport(
            values["judged_by"], values["own_judgements"], values["pairs"], modes, values.get("without_pairs", {}),
            values.get("strength"), values["elsewhere"], values["kept"], values.get("request", ""), values["seconds"],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a report of searchkit adapt, or it is damaged") from error


def draw(file: Path, report: AdaptReport) -> None:
    """Draw the gain or loss of every query, from the worst to the best; writes FILE.png and FILE.svg."""
    from searchkit.reports.style import line_chart

    series = {
        mode: [(float(n), change) for n, change in enumerate(sorted(report.modes[mode].changes.values()), start=1)]
        for mode in ("dense", "hybrid")
    }
    try:
        line_chart(
            file, series, title=f"What adapting changed, by {Path(report.judged_by).name}",
            x_label="queries, from the largest loss to the largest gain", y_label="change in nDCG@10",
        )  # fmt: skip
    except ImportError as error:
        logger.warning("the picture is not drawn: %s", error)
