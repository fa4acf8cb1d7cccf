"""The chart of `searchkit compare`: quality against size and time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from searchkit.errors import InputError
from searchkit.evaluation.comparison import System
from searchkit.metrics import means
from searchkit.reports.style import clear, fixed_decimals, legend, log_x_axis, mark, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 10.4, 4.4  # inches
_MARK = 9  # points


def cost_charts(file: Path, systems: Sequence[System], metric: str, *, title: str) -> list[Path]:
    """Draw every system's quality against its cost: FILE.png and FILE.svg, FILE-dark.png and FILE-dark.svg.

    Args:
        file: The file to write; .png or .svg at its end makes no difference.
        systems: The systems; those of unknown time and size are left out.
        metric: The metric of quality.
        title: What the chart shows.

    Returns:
        The four files, the light ones first, .png before .svg.

    Raises:
        MissingExtraError: matplotlib is missing.
        InputError: No system has a known time or size.
    """
    light, dark = (figure_of(systems, metric, title=title, dark=dark) for dark in (False, True))
    return write_figure(light, file) + write_figure(dark, file, ending="-dark")


def figure_of(systems: Sequence[System], metric: str, *, title: str, dark: bool = False) -> Figure:
    """The figure that `cost_charts` writes: a panel for each cost, and a legend of the marks."""
    costs = {
        "bytes a document, for ranking": [system.bytes_per_document for system in systems],
        "milliseconds a query, all in one batch": [
            None if system.seconds_per_query is None else 1000 * system.seconds_per_query for system in systems
        ],
    }
    panels = {name: values for name, values in costs.items() if any(values)}
    if not panels:
        raise InputError("nothing to draw: no system has a known time or size; compare indexes or their reports")
    figure, style = new_figure(_WIDTH, _HEIGHT, title, dark=dark)
    quality = [means(system.per_query)[metric] for system in systems]
    first: Axes | None = None
    for number, (name, values) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number, sharey=first)
        heading = "" if first else f"{metric} (higher is better)"
        first = first or axes
        clear(axes, style, title=heading, x_label=f"{name} (logarithmic)")
        log_x_axis(axes, style, numticks=20)
        fixed_decimals(axes.yaxis, 3)
        axes.margins(x=0.12, y=0.12)
        for n, (x, y) in enumerate(zip(values, quality, strict=True)):
            if x:
                axes.plot([x], [y], linestyle="", zorder=3, **mark(n, style, _MARK))
    legend(figure, [system.name for system in systems], style, _MARK)
    return figure
