"""The chart of `searchkit compare`: quality against bytes and against time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from searchkit.errors import InputError, MissingExtraError
from searchkit.evaluation.comparison import System
from searchkit.metrics import means
from searchkit.reports.style import DARK, FONT, LIGHT, clear, headline, legend, mark, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from searchkit.reports.style import Style

_WIDTH, _HEIGHT = 10.4, 4.4  # inches
_MARK = 9  # points


def cost_charts(file: Path, systems: Sequence[System], metric: str, *, title: str) -> list[Path]:
    """Draw every system's quality against what it costs: FILE.png and FILE.svg, FILE-dark.png and FILE-dark.svg.

    Args:
        file: Where to; .png or .svg at its end makes no difference.
        systems: Those with a known time or size; others are left out.
        metric: What quality is.
        title: What the chart shows.

    Returns:
        The four files, the light ones first, .png before .svg.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: No system has a known time or size.
    """
    light, dark = (figure_of(systems, metric, title=title, dark=dark) for dark in (False, True))
    return write_figure(light, file) + write_figure(dark, file, ending="-dark")


def figure_of(systems: Sequence[System], metric: str, *, title: str, dark: bool = False) -> Figure:
    """The figure that `cost_charts` writes: a panel a cost, marks named in a legend beside them."""
    costs = [
        ("bytes a document, for ranking", [one.bytes_per_document for one in systems]),
        ("milliseconds a query, all asked at once", [_thousand(one.seconds_per_query) for one in systems]),
    ]
    panels = [(name, values) for name, values in costs if any(values)]
    if not panels:
        raise InputError("nothing to draw: no system has a known time or size; compare indexes or their reports")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"charts need {error.name}: pip install 'searchkit[plots]'", name=error.name) from error
    style = DARK if dark else LIGHT
    quality = [means(one.per_query)[metric] for one in systems]
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=160, facecolor=style.paper, layout="constrained")
    FigureCanvasAgg(figure)
    first: Axes | None = None
    for number, (name, values) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number, sharey=first)
        _furnish(axes, name, style)
        for n, (x, y) in enumerate(zip(values, quality, strict=True)):
            if x:
                axes.plot([x], [y], linestyle="", zorder=3, **mark(n, style, _MARK))
        if first is None:
            axes.set_title(f"{metric} (higher is better)", loc="left", color=style.quiet, fontsize=10, fontfamily=FONT)
        first = first or axes
    legend(figure, [one.name for one in systems], style, _MARK)
    headline(figure, title, style, width=96)
    return figure


def _thousand(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _furnish(axes: Axes, x_label: str, style: Style) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    clear(axes, style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3f}"))
    axes.set_xlabel(f"{x_label} (logarithmic)", color=style.quiet, fontsize=10, fontfamily=FONT)
    axes.margins(x=0.12, y=0.12)
    axes.tick_params(axis="x", length=3, color=style.quiet)
