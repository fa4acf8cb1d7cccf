"""The pictures of `searchkit evaluate --diagnose`: recall by rank, and nDCG@10 of groups of queries."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from searchkit.errors import InputError, MissingExtraError
from searchkit.evaluation.diagnosis import Diagnosis, Group
from searchkit.reports.style import DARK, FONT, LIGHT, Panel, clear, headline, legend, mark, write_figure
from searchkit.reports.style import figure_of as lines_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from searchkit.reports.style import Style

RANKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
"""Ranks that the curve is drawn at."""

_WIDTH, _HEIGHT = 8.4, 4.2  # inches
_MARK = 7  # points
_APART = 0.13  # of the distance between two groups: from one mode's mark to the next


def diagnosis_charts(folder: Path, found: Diagnosis, *, title: str) -> list[Path]:
    """Draw recall.png, words.png and, where documents are too long, documents.png; .svg, and -dark of each.

    Args:
        folder: Where to.
        found: What was found.
        title: Of the set; it stands in every title.

    Returns:
        The files, the light PNGs first.

    Raises:
        ImportError: matplotlib is missing.
    """
    written = []
    for dark in (False, True):
        figures = {"recall": recall_figure(found, title=f"{title}: recall by rank", dark=dark)}
        figures["words"] = groups_figure(
            found.by_words, title=f"{title}: quality by length of the query", x_label="words of the query", dark=dark
        )
        if len(found.by_document) > 1:
            figures["documents"] = groups_figure(
                found.by_document,
                title=f"{title}: quality by whether relevant documents were {'cut' if found.cut else 'split'}",
                x_label=f"relevant documents longer than {found.documents.room} tokens, where "
                + ("the model stops reading" if found.cut else "a passage ends"),
                dark=dark,
            )
        for name, figure in figures.items():
            written += write_figure(figure, folder / name, ending="-dark" if dark else "")
    return written


def recall_figure(found: Diagnosis, *, title: str, dark: bool = False) -> Figure:
    """A line a mode, from rank 1 to the deepest."""
    series = {
        mode: [(float(rank), curve[rank - 1]) for rank in sorted({*RANKS, len(curve)}) if rank <= len(curve)]
        for mode, curve in found.recall.items()
    }
    return lines_of(
        [Panel(series, "recall@k, mean over judged queries")],
        title=title,
        x_label="rank k (logarithmic)",
        log_x=True,
        dark=dark,
    )


def groups_figure(groups: Sequence[Group], *, title: str, x_label: str, dark: bool = False) -> Figure:
    """A mark for every mode in every group, with its confidence interval; the number of queries under each group.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: There is no group.
    """
    if not groups:
        raise InputError(f"nothing to draw in {title!r}: there is no group of queries")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"charts need {error.name}: pip install 'searchkit[plots]'", name=error.name) from error
    style = DARK if dark else LIGHT
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=160, facecolor=style.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _furnish(axes, groups, x_label, style)
    modes = list(groups[0].scores)
    for n, mode in enumerate(modes):
        scores = [group.scores[mode] for group in groups]
        places = [place + _APART * (n - (len(modes) - 1) / 2) for place in range(len(groups))]
        ends = [(0.0, 0.0) if isnan(one.low) else (one.mean - one.low, one.high - one.mean) for one in scores]
        axes.errorbar(
            places, [one.mean for one in scores], yerr=list(zip(*ends, strict=True)), linestyle="", elinewidth=1.6,
            capsize=0, zorder=3, **mark(n, style, _MARK),
        )  # fmt: skip
    legend(figure, modes, style, _MARK)
    headline(figure, title, style, width=80)
    return figure


def _furnish(axes: Axes, groups: Sequence[Group], x_label: str, style: Style) -> None:
    from matplotlib.ticker import FuncFormatter

    clear(axes, style)
    axes.set_title("nDCG@10, with 95 % intervals", loc="left", color=style.quiet, fontsize=10, fontfamily=FONT)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    counts = [len(group.queries) for group in groups]
    labels = [
        f"{group.name}\n{count:,} {'query' if count == 1 else 'queries'}"
        for group, count in zip(groups, counts, strict=True)
    ]
    axes.set_xticks(range(len(groups)), labels)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    axes.set_xlabel("\n".join(wrap(x_label, 80)), color=style.quiet, fontsize=10, fontfamily=FONT)
