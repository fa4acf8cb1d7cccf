"""The chart of `searchkit compare`: quality against bytes and against time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from searchkit.comparison import System
from searchkit.metrics import means
from searchkit.plots import DARK, LIGHT, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from searchkit.plots import Style

_FONT = "DejaVu Sans"  # comes with matplotlib
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 and 4: only the 29th mark looks like the first
_WIDTH, _HEIGHT = 10.4, 4.4  # inches


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
        raise ValueError("nothing to draw: no system has a known time or size; compare indexes or their reports")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(f"charts need {error.name}: pip install 'searchkit[plots]'", name=error.name) from error
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
                axes.plot([x], [y], linestyle="", zorder=3, **_mark(n, style))
        if first is None:
            axes.set_title(f"{metric} (higher is better)", loc="left", color=style.quiet, fontsize=10, fontfamily=_FONT)
        first = first or axes
    _legend(figure, [one.name for one in systems], style)
    lines = "\n".join(wrap(title, 96))
    figure.suptitle(lines, x=0.012, ha="left", color=style.ink, fontsize=12, fontweight="bold", fontfamily=_FONT)
    return figure


def _thousand(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _mark(n: int, style: Style) -> dict[str, Any]:
    """How the n-th system is marked: its own pair of shape and colour."""
    return {
        "marker": _MARKERS[n % len(_MARKERS)],
        "color": style.lines[n % len(style.lines)],
        "markersize": 9,
        "markeredgecolor": style.paper,
        "markeredgewidth": 0.8,
    }


def _furnish(axes: Axes, x_label: str, style: Style) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_facecolor(style.paper)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(style.quiet)
    axes.grid(axis="y", color=style.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3f}"))
    axes.set_xlabel(f"{x_label} (logarithmic)", color=style.quiet, fontsize=10, fontfamily=_FONT)
    axes.margins(x=0.12, y=0.12)
    axes.tick_params(length=0, pad=5, labelsize=9, labelcolor=style.quiet, labelfontfamily=_FONT)
    axes.tick_params(axis="x", length=3, color=style.quiet)


def _legend(figure: Figure, names: Sequence[str], style: Style) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="", label=name, **_mark(n, style)) for n, name in enumerate(names)]
    legend = figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=style.ink)
    for text in legend.get_texts():
        text.set_fontfamily(_FONT)
        text.set_fontsize(9.5)
