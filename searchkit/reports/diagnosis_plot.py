"""The charts of `searchkit evaluate --diagnose`: recall by rank, and nDCG@10 of groups of queries."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from searchkit.errors import InputError
from searchkit.evaluation.diagnosis import Diagnosis, Group
from searchkit.reports.style import Panel, clear, fixed_decimals, legend, mark, new_figure, write_figure
from searchkit.reports.style import figure_of as lines_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
"""Ranks at which the recall curve is drawn."""

_WIDTH, _HEIGHT = 8.4, 4.2  # inches
_MARK = 7  # points
_SHIFT = 0.13  # from the mark of one mode to the next, as a share of the distance between two groups


def diagnosis_charts(folder: Path, diagnosis: Diagnosis, *, title: str) -> list[Path]:
    """Draw recall.png, words.png and, if documents are too long, documents.png; .svg, and -dark of each.

    Args:
        folder: The folder to write to.
        diagnosis: What was diagnosed.
        title: Name of the set; it stands in every title.

    Returns:
        The files, the light ones first.

    Raises:
        MissingExtraError: matplotlib is missing.
    """
    done = "cut" if diagnosis.cut else "split"
    where = "the model stops reading" if diagnosis.cut else "a passage ends"
    written = []
    for dark in (False, True):
        figures = {
            "recall": recall_figure(diagnosis, title=f"{title}: recall by rank", dark=dark),
            "words": groups_figure(
                diagnosis.by_words,
                title=f"{title}: quality by length of the query",
                x_label="words of the query",
                dark=dark,
            ),
        }
        if len(diagnosis.by_document) > 1:
            figures["documents"] = groups_figure(
                diagnosis.by_document,
                title=f"{title}: quality by whether relevant documents were {done}",
                x_label=f"relevant documents longer than {diagnosis.documents.room} tokens, where {where}",
                dark=dark,
            )
        for name, figure in figures.items():
            written += write_figure(figure, folder / name, ending="-dark" if dark else "")
    return written


def recall_figure(diagnosis: Diagnosis, *, title: str, dark: bool = False) -> Figure:
    """A line for each mode, from rank 1 to the deepest."""
    series = {
        mode: [(float(rank), curve[rank - 1]) for rank in sorted({*RANKS, len(curve)}) if rank <= len(curve)]
        for mode, curve in diagnosis.recall.items()
    }
    panel = Panel(series, "recall@k, mean over judged queries")
    return lines_of([panel], title=title, x_label="rank k (logarithmic)", log_x=True, dark=dark)


def groups_figure(groups: Sequence[Group], *, title: str, x_label: str, dark: bool = False) -> Figure:
    """A mark with its confidence interval for every mode in every group; the number of queries under each group.

    Raises:
        MissingExtraError: matplotlib is missing.
        InputError: There is no group.
    """
    if not groups:
        raise InputError(f"nothing to draw in {title!r}: there is no group of queries")
    figure, style = new_figure(_WIDTH, _HEIGHT, title, dark=dark, wrap_at=80)
    axes = figure.add_subplot()
    clear(axes, style, title="nDCG@10, with 95 % intervals", x_label="\n".join(wrap(x_label, 80)))
    fixed_decimals(axes.yaxis, 2)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xticks(range(len(groups)), [_tick(group) for group in groups])
    modes = list(groups[0].scores)
    for n, mode in enumerate(modes):
        scores = [group.scores[mode] for group in groups]
        x = [group + _SHIFT * (n - (len(modes) - 1) / 2) for group in range(len(groups))]
        ends = [(0.0, 0.0) if isnan(one.low) else (one.mean - one.low, one.high - one.mean) for one in scores]
        axes.errorbar(
            x, [one.mean for one in scores], yerr=list(zip(*ends, strict=True)), linestyle="", elinewidth=1.6,
            capsize=0, zorder=3, **mark(n, style, _MARK),
        )  # fmt: skip
    legend(figure, modes, style, _MARK)
    return figure


def _tick(group: Group) -> str:
    count = len(group.queries)
    return f"{group.name}\n{count:,} {'query' if count == 1 else 'queries'}"
