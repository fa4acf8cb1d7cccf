"""The table of what `scale.py` measured."""

from __future__ import annotations

import json
from pathlib import Path

GROWTH = {
    "build, CPU s": ("build", "cpu_s"),
    "build, peak MiB": ("build", "peak_mib"),
    "build, without mapped files, MiB": ("build", "anonymous_mib"),
    "database, MiB": ("disk", "index.db"),
    "columns, MiB": ("disk", "columns"),
    "vectors, MiB": ("disk", "segments"),
    "lexical index, MiB": ("disk", "lexical"),
    "open, ms": ("open", "open", "cpu_ms"),
    "first dense search, ms": ("open", "first dense", "cpu_ms"),
    "first lexical search, ms": ("open", "first lexical", "cpu_ms"),
    "get, ms": ("open", "get", "p50_cpu_ms"),
    "unknown id, first, ms": ("open", "unknown id", "first_cpu_ms"),
    "unknown id, ms": ("open", "unknown id", "p50_cpu_ms"),
    "dense, p50 ms": ("search", "dense", "p50_cpu_ms"),
    "lexical, p50 ms": ("search", "lexical", "p50_cpu_ms"),
    "hybrid, p50 ms": ("search", "hybrid", "p50_cpu_ms"),
    "hybrid, p99 ms": ("search", "hybrid", "p99_cpu_ms"),
    "recall@10 of dense": ("search", "recall@10 of dense"),
    "hybrid by 8 callers, ms a query": ("callers", "cpu_ms_a_query"),
    **{
        f"filter of {share}, {label}, ms": ("filters", name, *path)
        for name, share in (("half", "50 %"), ("percent", "1 %"), ("few", ".01 %"))
        for label, path in (
            ("first of all", ("first of all", "cpu_ms")),
            ("another", ("another", "cpu_ms")),
            ("repeated, dense", ("repeated, dense", "p50_cpu_ms")),
            ("repeated, hybrid", ("repeated, hybrid", "p50_cpu_ms")),
        )
    },
    "first facet, ms": ("facets", "topic", "first_cpu_ms"),
    "facet of 10,000 values, first, ms": ("facets", "shelf", "first_cpu_ms"),
    "all facets, first, ms": ("facets", "all", "first_cpu_ms"),
    "over FAISS, batch of 1": ("bare", "batch 1", "over"),
    "over FAISS, batch of 64": ("bare", "batch 64", "over"),
    "over FAISS, re-ranked, batch of 1": ("bare", "re-ranked, batch 1", "over"),
    "over FAISS, re-ranked, batch of 64": ("bare", "re-ranked, batch 64", "over"),
    "add one, p50 ms": ("change", "add one", "p50_cpu_ms"),
    "add 2,000, s": ("change", "add 2,000", "cpu_s"),
    "delete one, p50 ms": ("change", "delete one", "p50_cpu_ms"),
    "delete 2,000, s": ("change", "delete 2,000", "cpu_s"),
    "compact, s": ("change", "compact", "cpu_s"),
    "compact after deleting old ones, s": ("change", "compact old ones", "cpu_s"),
}
"""Rows of the table, with where their figures are among the results; times are CPU time."""


def growth(folder: Path) -> str:
    """A table in Markdown of what was measured at every number of passages."""
    files = sorted((file for file in folder.glob("*.json") if file.stem.isdigit()), key=lambda file: int(file.stem))
    results = [json.loads(file.read_text()) for file in files]
    lines = [["", *(f"{int(file.stem):,}" for file in files)], ["---"] * (1 + len(files))]
    for label, path in GROWTH.items():
        found = []
        for result in results:
            value = result
            for step in path:
                value = value.get(step, {}) if isinstance(value, dict) else {}
            found.append("" if isinstance(value, dict) else f"{value:,}")
        if any(found):
            lines.append([label, *found])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
