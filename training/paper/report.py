"""The table and the picture of all runs of an experiment, as far as they have come."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from searchkit.reports.style import Panel, panels_chart
from searchkit.training.files import read_json, write_whole

logger = logging.getLogger(__name__)

RESULT = "result.json"


def write_report(out: Path) -> None:
    """Write table.md, curves.png and curves.svg in the folder of an experiment."""
    write_table(out)
    _draw(out, [read_json(run) for run in _runs(out)])


def write_table(out: Path) -> None:
    """Write table.md alone, where no curve has changed."""
    write_whole(out / "table.md", _table(out, _runs(out)))


def _runs(out: Path) -> list[Path]:
    return sorted((out / "runs").glob(f"*/{RESULT}"), key=lambda file: (file.parent.name.count("-"), file.parent.name))


def _table(out: Path, runs: list[Path]) -> str:
    references = [read_json(file) for file in sorted((out / "references").glob("*.json"))]
    names = [found["collection"] for found in references]
    sizes = [
        f"{name} ({found['queries']} of {found['documents']})" for name, found in zip(names, references, strict=True)
    ]
    lines = [
        "| nDCG@10 (queries of documents) | steps | tokens | minutes | " + " | ".join(sizes) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for reference in ("BM25", "built-in model"):
        cells = [f"{found[reference]:.4f}" for found in references]
        lines.append(f"| {reference} | | | | {' | '.join(cells)} |")
    for run in runs:
        result = read_json(run)
        for when in ("before", "after"):
            scores = [_score(run.parent / f"{when}-{name}.json") for name in names]
            if not any(scores):
                continue
            training = result.get("training", {}) if when == "after" else {}
            steps = training.get("steps", 0) if when == "after" else 0
            tokens = f"{training['tokens']:,}" if training else ""
            minutes = f"{training['seconds'] / 60:.0f}" if training else ""
            lines.append(f"| {result['name']}: {when} | {steps} | {tokens} | {minutes} | {' | '.join(scores)} |")
    return "\n".join(lines) + "\n"


def _score(file: Path) -> str:
    return f"{read_json(file)['dense']:.4f}" if file.is_file() else ""


def _draw(out: Path, results: list[dict[str, Any]]) -> None:
    """One panel a dev set, one line a run."""
    sets = list(dict.fromkeys(name for result in results for scores in result["curve"].values() for name in scores))
    panels = []
    for name in sets:
        series = {
            result["name"]: [(int(step), scores[name]) for step, scores in result["curve"].items() if name in scores]
            for result in results
        }
        panels.append(Panel({run: points for run, points in series.items() if points}, y_label=f"nDCG@10, {name}"))
    if panels:
        try:
            panels_chart(out / "curves", panels, title="A language model becomes an embedder", x_label="training steps")
        except ImportError as error:
            logger.warning("the picture is not drawn: %s", error)
