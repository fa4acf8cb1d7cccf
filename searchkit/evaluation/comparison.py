"""Set systems beside each other: means, paired tests, and the queries that changed most."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError
from searchkit.metrics import METRICS, means, score_queries, top
from searchkit.readers.judgements import read_run
from searchkit.readers.values import quoted
from searchkit.records import Qrels, Run
from searchkit.significance import FLIPS, PairedTest, compare_paired, holm

BEST = "best"
SHOWN = 10
"""Documents a query that a system keeps for showing them."""


@dataclass(frozen=True, slots=True)
class System:
    """One way of answering a set of queries, measured.

    Args:
        name: What it is called in tables.
        per_query: {metric: {query id: value}}, of every judged query.
        top: The first documents of every query that found any, best first.
        seconds_per_query: Embedding and search; None where it is not known.
        bytes_per_document: What ranking needs on disk, a document; None where it is not known.
    """

    name: str
    per_query: dict[str, dict[str, float]]
    top: dict[str, list[str]]
    seconds_per_query: float | None = None
    bytes_per_document: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """One system against the one all are compared with, in one metric.

    Args:
        system: Name of the system.
        metric: Name of the metric.
        test: What the paired tests found.
        adjusted_randomisation: p of the randomisation test after Holm's correction for all tests of the comparison.
        adjusted_t: The same of the t test.
    """

    system: str
    metric: str
    test: PairedTest
    adjusted_randomisation: float
    adjusted_t: float


@dataclass(frozen=True, slots=True)
class Change:
    """A query that two systems answer differently.

    Args:
        query: Its id.
        before: Value of the system compared with.
        after: Value of the other.
        documents_before: Ids of its first documents, best first.
        documents_after: The same of the other.
    """

    query: str
    before: float
    after: float
    documents_before: list[str]
    documents_after: list[str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Systems beside each other.

    Args:
        systems: All of them, in the order given.
        against: Name of the system the others are compared with.
        metrics: Names of the metrics, the first of which decides what is best and what changed most.
        differences: Of every other system in every metric.
        tests: How many tests Holm's correction counted.
        changes: System name -> the queries that changed most against `against`, most first.
    """

    systems: list[System]
    against: str
    metrics: list[str]
    differences: list[Difference]
    tests: int
    changes: dict[str, list[Change]]

    def summary(self) -> dict[str, Any]:
        """Everything as JSON would have it; p values that could not be had are None."""
        return {
            "against": self.against,
            "metrics": self.metrics,
            "queries": len(next(iter(self.systems[0].per_query.values()))),
            "tests": self.tests,
            "systems": {
                one.name: {
                    **{name: value for name, value in means(one.per_query).items() if name in self.metrics},
                    "seconds_per_query": one.seconds_per_query,
                    "bytes_per_document": one.bytes_per_document,
                }
                for one in self.systems
            },
            "differences": [
                {
                    "system": one.system,
                    "metric": one.metric,
                    **{name: _number(value) for name, value in asdict(one.test).items()},
                    "adjusted_randomisation": _number(one.adjusted_randomisation),
                    "adjusted_t": _number(one.adjusted_t),
                }
                for one in self.differences
            ],
            "changes": {name: [asdict(change) for change in changes] for name, changes in self.changes.items()},
        }


def compare(
    systems: Sequence[System],
    *,
    against: str | None = None,
    metrics: Sequence[str] = METRICS,
    changed: int = 5,
    flips: int = FLIPS,
    seed: int = 0,
) -> Comparison:
    """Compare systems that answered the same queries, by paired tests.

    p values are corrected by Holm's steps for every test the comparison makes, all metrics included. Where `against`
    is "best", which system is compared with was chosen by the same values, so that every pair counts as tested.

    Args:
        systems: Two or more, with different names.
        against: Name of the system to compare the others with, or "best"; None takes the first.
        metrics: Some of those that all systems have.
        changed: How many of the queries that changed most to keep, of every system.
        flips: Sign patterns of the randomisation test.
        seed: Of those.

    Raises:
        ValueError: Fewer than two systems, equal names, different queries, an unknown system or metric.
    """
    by_name = {one.name: one for one in systems}
    if len(systems) < 2:
        raise InputError(f"{len(systems)} system came; a comparison takes two or more")
    if len(by_name) < len(systems):
        names = [one.name for one in systems]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"several systems are called {quoted(twice)}; give each a name of its own: NAME=FILE")
    chosen = _checked(metrics, systems)
    queries = list(systems[0].per_query[chosen[0]])
    for one in systems[1:]:
        if differing := queries_apart(one, set(queries), chosen):
            raise InputError(
                f"{systems[0].name} and {one.name} were judged on different queries, such as {quoted(differing[:3])}; "
                "only answers to the same queries can be compared"
            )
    pairs = len(systems) - 1
    base = by_name.get(systems[0].name if against is None else against)
    if base is None:
        if against != BEST:
            raise InputError(f"no system is called {against!r}; there are {quoted(by_name)}, and {BEST!r}")
        base = max(systems, key=lambda one: means(one.per_query)[chosen[0]])
        pairs = len(systems) * (len(systems) - 1) // 2
    others = [one for one in systems if one is not base]
    differences = []
    for one in others:
        for metric in chosen:
            before, after = (np.array([system.per_query[metric][query] for query in queries]) for system in (base, one))
            test = compare_paired(before, after, flips=flips, seed=seed)
            differences.append(Difference(one.name, metric, test, test.p_randomisation, test.p_t))
    tests = pairs * len(chosen)
    adjusted = zip(
        differences,
        holm([one.test.p_randomisation for one in differences], tests=tests),
        holm([one.test.p_t for one in differences], tests=tests),
        strict=True,
    )
    differences = [replace(one, adjusted_randomisation=p, adjusted_t=p_t) for one, p, p_t in adjusted]
    changes = {one.name: _changes(base, one, queries, chosen[0], changed) for one in others}
    return Comparison(list(systems), base.name, chosen, differences, tests, changes)


def queries_apart(system: System, queries: set[str], metrics: Sequence[str]) -> list[str]:
    """The queries that a system has and the others do not, or the other way round."""
    return sorted({query for metric in metrics for query in queries ^ system.per_query[metric].keys()})


def system_of(name: str, run: Run, qrels: Qrels, *, seconds: float | None = None, size: float | None = None) -> System:
    """A run, judged; `seconds` a query and `size` in bytes a document where they are known."""
    shown = {query: list(top(found, SHOWN)) for query, found in run.items() if query in qrels and found}
    return System(name, score_queries(run, qrels), shown, seconds, size)


def read_systems(path: Path, qrels: Qrels | None, *, name: str | None = None, drop_self: bool = False) -> list[System]:
    """Read a TREC run as one system, or a report of `searchkit evaluate --report` as one system a mode.

    Args:
        path: The file.
        qrels: Judgements, which a TREC run needs; a report has its values in it.
        name: What to call it; None takes the file's name, and of a report with several modes those too.
        drop_self: Leave out the document whose id is the query's.

    Raises:
        ValueError: It is neither, or does not belong to the judgements.
    """
    name = name or path.name.removesuffix(".gz").removesuffix(path.suffix)
    if _starts_with_brace(path):
        return _read_report(path, name)
    run = read_run(path)
    if qrels is None:
        raise InputError(f"{path} is a run, which is judged first: give --beir SET, or --qrels FILE")
    if not run.keys() & qrels.keys():
        raise InputError(
            f"{path}: none of its {len(run)} queries, such as {quoted(sorted(run)[:3])}, has a judgement; "
            "run and judgements are of different sets"
        )
    if drop_self:
        run = {query: {id: value for id, value in found.items() if id != query} for query, found in run.items()}
    return [system_of(name, run, qrels)]


def _starts_with_brace(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _read_report(path: Path, name: str) -> list[System]:
    try:
        modes = json.loads(path.read_text(encoding="utf-8"))["modes"]
        systems = []
        for mode, values in modes.items():
            per_query = {
                key.removeprefix("per_query_"): {str(query): float(value) for query, value in found.items()}
                for key, found in values.items()
                if key.startswith("per_query_")
            }
            if not per_query or not all(per_query.values()):
                raise KeyError("per_query_ndcg@10")
            systems.append(
                System(
                    name if len(modes) == 1 else f"{name}:{mode}",
                    per_query,
                    values.get("top10", {}),
                    values.get("seconds_per_query"),
                    values.get("bytes_per_document"),
                )
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path} is no report of `searchkit evaluate --report` ({type(error).__name__}: {error}); "
            "give such a report, or a TREC run"
        ) from None
    return systems


def _checked(metrics: Sequence[str], systems: Sequence[System]) -> list[str]:
    """The metrics without repetition; ValueError for one that a system does not have."""
    chosen = list(dict.fromkeys(metrics))
    for one in systems:
        if missing := [name for name in chosen if name not in one.per_query]:
            raise InputError(
                f"{one.name} has no values of {quoted(missing)} query by query; it has {quoted(one.per_query)}"
            )
    if not chosen:
        raise InputError(f"no metric came; expected some of {', '.join(systems[0].per_query)}")
    return chosen


def _changes(base: System, other: System, queries: list[str], metric: str, count: int) -> list[Change]:
    before, after = base.per_query[metric], other.per_query[metric]
    changed = [query for query in queries if abs(after[query] - before[query]) > 1e-9]
    changed.sort(key=lambda query: -abs(after[query] - before[query]))
    return [
        Change(query, before[query], after[query], base.top.get(query, []), other.top.get(query, []))
        for query in changed[:count]
    ]


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
