"""Compare systems: means, paired tests, and the queries that changed most."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError
from searchkit.metrics import METRICS, drop_own, means, score_queries, top
from searchkit.readers.judgements import read_run
from searchkit.readers.values import quoted
from searchkit.records import Qrels, Run
from searchkit.significance import FLIPS, PairedTest, compare_paired, holm

BEST = "best"
SHOWN = 10
"""Documents of a query that a system keeps, to be shown."""


@dataclass(frozen=True, slots=True)
class System:
    """A system that answered a set of queries, measured.

    Args:
        name: Its name in tables.
        per_query: {metric: {query id: value}}, of every judged query.
        top: The first documents of every query with hits, best first.
        seconds_per_query: Embedding and search; None if unknown.
        bytes_per_document: Disk space needed for ranking; None if unknown.
    """

    name: str
    per_query: dict[str, dict[str, float]]
    top: dict[str, list[str]]
    seconds_per_query: float | None = None
    bytes_per_document: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A system against the baseline, in one metric.

    Args:
        system: Name of the system.
        metric: Name of the metric.
        test: Result of the paired tests.
        adjusted_randomisation: p of the randomisation test after Holm's correction for all tests of the comparison.
        adjusted_t: The same for the t test.
    """

    system: str
    metric: str
    test: PairedTest
    adjusted_randomisation: float
    adjusted_t: float


@dataclass(frozen=True, slots=True)
class Change:
    """A query that a system answers differently from the baseline.

    Args:
        query: Its id.
        before: The baseline's value.
        after: The system's value.
        documents_before: Ids of the baseline's first documents, best first.
        documents_after: Ids of the system's.
    """

    query: str
    before: float
    after: float
    documents_before: list[str]
    documents_after: list[str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of comparing systems.

    Args:
        systems: All of them, in the given order.
        against: Name of the baseline, with which the others are compared.
        metrics: Names of the metrics; the first decides which system is best and which queries changed most.
        differences: Of every other system in every metric.
        tests: Number of tests that Holm's correction counted.
        changes: System name -> the queries that changed most, largest change first.
    """

    systems: list[System]
    against: str
    metrics: list[str]
    differences: list[Difference]
    tests: int
    changes: dict[str, list[Change]]

    def summary(self) -> dict[str, Any]:
        """Everything, ready for JSON; p values that are not defined are None."""
        return {
            "against": self.against,
            "metrics": self.metrics,
            "queries": len(next(iter(self.systems[0].per_query.values()))),
            "tests": self.tests,
            "systems": {
                system.name: {
                    **{name: value for name, value in means(system.per_query).items() if name in self.metrics},
                    "seconds_per_query": system.seconds_per_query,
                    "bytes_per_document": system.bytes_per_document,
                }
                for system in self.systems
            },
            "differences": [
                {
                    "system": difference.system,
                    "metric": difference.metric,
                    **{name: _number(value) for name, value in asdict(difference.test).items()},
                    "adjusted_randomisation": _number(difference.adjusted_randomisation),
                    "adjusted_t": _number(difference.adjusted_t),
                }
                for difference in self.differences
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

    p values are corrected by Holm's method for all tests of the comparison, over all metrics. With `against` "best",
    the baseline was chosen by the same values, so every pair counts as tested.

    Args:
        systems: Two or more, with different names.
        against: Name of the baseline, or "best"; None takes the first.
        metrics: Some of those that all systems have.
        changed: Number of changed queries to keep for every system, largest change first.
        flips: Sign patterns of the randomisation test.
        seed: Seed of the sign patterns.

    Raises:
        InputError: Fewer than two systems, equal names, different queries, an unknown system or metric.
    """
    check_names([system.name for system in systems], against)
    chosen = checked_metrics(metrics, systems)
    queries = list(systems[0].per_query[chosen[0]])
    for system in systems[1:]:
        if differing := _queries_apart(system, set(queries), chosen):
            raise InputError(
                f"{systems[0].name} and {system.name} were judged on different queries, such as "
                f"{quoted(differing[:3])}; only answers to the same queries can be compared"
            )
    pairs = len(systems) - 1
    base = {system.name: system for system in systems}.get(systems[0].name if against is None else against)
    if base is None:  # against is "best"
        base = max(systems, key=lambda system: means(system.per_query)[chosen[0]])
        pairs = len(systems) * (len(systems) - 1) // 2
    others = [system for system in systems if system is not base]
    values = {
        metric: [np.array([s.per_query[metric][query] for query in queries]) for s in (base, *others)]
        for metric in chosen
    }
    results = [
        (system.name, metric, compare_paired(values[metric][0], values[metric][n], flips=flips, seed=seed))
        for n, system in enumerate(others, 1)
        for metric in chosen
    ]
    tests = pairs * len(chosen)
    randomisation = holm([test.p_randomisation for _, _, test in results], tests=tests)
    student = holm([test.p_t for _, _, test in results], tests=tests)
    differences = [Difference(*result, *p) for result, *p in zip(results, randomisation, student, strict=True)]
    changes = {system.name: _changes(base, system, queries, chosen[0], changed) for system in others}
    return Comparison(list(systems), base.name, chosen, differences, tests, changes)


def check_names(names: Sequence[str], against: str | None) -> None:
    """Raise InputError for fewer than two systems, equal names, or an unknown name to compare with."""
    if len(names) < 2:
        raise InputError(f"{len(names)} system came; a comparison takes two or more")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several systems are called {quoted(repeated)}; give each a name of its own: NAME=FILE")
    if against not in (None, BEST, *names):
        raise InputError(f"no system is called {against!r}; there are {quoted(names)}, and {BEST!r}")


def checked_metrics(metrics: Sequence[str], systems: Sequence[System]) -> list[str]:
    """The metrics without repetition; InputError for one that a system does not have."""
    chosen = list(dict.fromkeys(metrics))
    for system in systems:
        if missing := [name for name in chosen if name not in system.per_query]:
            raise InputError(
                f"{system.name} has no values of {quoted(missing)} for each query; it has {quoted(system.per_query)}"
            )
    if not chosen:
        raise InputError(f"no metric came; expected some of {', '.join(systems[0].per_query)}")
    return chosen


def _queries_apart(system: System, queries: set[str], metrics: Sequence[str]) -> list[str]:
    """The queries that only a system has, or only the others."""
    return sorted({query for metric in metrics for query in queries ^ system.per_query[metric].keys()})


def system_of(name: str, run: Run, qrels: Qrels, *, seconds: float | None = None, size: float | None = None) -> System:
    """A run, scored; `seconds` per query and `size` in bytes per document if they are known."""
    shown = {query: list(top(ranking, SHOWN)) for query, ranking in run.items() if query in qrels and ranking}
    return System(name, score_queries(run, qrels), shown, seconds, size)


def read_systems(path: Path, qrels: Qrels | None, *, name: str | None = None, drop_self: bool = False) -> list[System]:
    """Read a TREC run as one system, or a report of `searchkit evaluate --report` as one system per mode.

    Args:
        path: The file.
        qrels: Judgements, which a TREC run needs; a report contains its values.
        name: Name of the system; None takes the file's name. Modes are appended if a report has several.
        drop_self: Leave out the document whose id is the query's.

    Raises:
        InputError: It is neither, or does not belong to the judgements.
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
        run = drop_own(run)
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
                key.removeprefix("per_query_"): {str(query): float(value) for query, value in scores.items()}
                for key, scores in values.items()
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
            f"{path} is not a report of `searchkit evaluate --report` or lacks its values for each query; "
            "give such a report, or a TREC run"
        ) from error
    return systems


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
