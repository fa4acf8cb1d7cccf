"""Line charts as PNG and SVG in one house style, light or dark, for eyes of every kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from searchkit.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Series = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Style:
    """Colours of a chart.

    Args:
        paper: Behind everything.
        ink: Of titles and labels.
        quiet: Of the numbers along the axes.
        grid: Of the lines across.
        lines: Of the series in their order; 3:1 against the paper, and apart for red-, green- and blue-blind eyes.
    """

    paper: str
    ink: str
    quiet: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Style("#ffffff", "#1f2328", "#59636e", "#e4e7eb", ("#0072b2", "#d55e00", "#5c1a5e", "#00a37a"))
DARK = Style("#15191e", "#f0f3f6", "#9aa4af", "#2b323a", ("#56b4e9", "#ff8a3d", "#fff3b0", "#ad5cff"))

MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 and 4: only the 29th line looks like the first
_FEW = 40  # points of a line that all get a marker; of a longer one that is not alone, about ten do
FONT = "DejaVu Sans"  # comes with matplotlib
_WIDTH, _HEIGHT = 7.2, 4.0  # inches of a chart with one panel
_GAP = 20  # points between the axes and the names beside them


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Args:
        series: Name -> (x, y) points in the order of x.
        y_label: What y is, with its unit.
        faint: Draw the first series thin and pale, behind the others: the raw values of a smoothed line.
    """

    series: Series
    y_label: str
    faint: bool = False


def line_chart(
    file: Path, series: Series, *, title: str, x_label: str, y_label: str, log_x: bool = False, dark: bool = False
) -> list[Path]:
    """Draw lines, each named beside its end, and write FILE.png and FILE.svg.

    Args:
        file: Where to; .png or .svg at its end makes no difference.
        series: Name -> (x, y) points in the order of x.
        title: What the chart shows.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        log_x: Put equal factors of x at equal distances.
        dark: For a dark page.

    Returns:
        The two files.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: There is nothing to draw.
    """
    return panels_chart(file, [Panel(series, y_label)], title=title, x_label=x_label, log_x=log_x, dark=dark)


def panels_chart(
    file: Path, panels: Sequence[Panel], *, title: str, x_label: str, log_x: bool = False, dark: bool = False
) -> list[Path]:
    """Draw panels above each other along one x axis; otherwise like `line_chart`."""
    figure = figure_of(panels, title=title, x_label=x_label, log_x=log_x, dark=dark)
    return write_figure(figure, file)


def write_figure(figure: Figure, file: Path, *, ending: str = "") -> list[Path]:
    """Write a figure as FILE.png and FILE.svg, and return both; an ending such as "-dark" goes before the dot.

    A .png or .svg at the end of FILE makes no difference.
    """
    stem = file.with_suffix("") if file.suffix in (".png", ".svg") else file
    files = [stem.with_name(f"{stem.name}{ending}.{kind}") for kind in ("png", "svg")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    for written in files:
        figure.savefig(written, facecolor=figure.get_facecolor())
    return files


def figure_of(panels: Sequence[Panel], *, title: str, x_label: str, log_x: bool = False, dark: bool = False) -> Figure:
    """The figure that `panels_chart` writes, laid out; no window and no pyplot knows of it."""
    drawn = [_finite(panel.series) for panel in panels]
    if not drawn or not all(drawn):
        raise InputError(f"nothing to draw in {title!r}: a panel has no series with a point")
    if log_x and min(x for series in drawn for points in series.values() for x, _ in points) <= 0:
        raise InputError(f"{title!r} has an x of 0 or less, for which a logarithmic axis has no place")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"charts need {error.name}: pip install 'searchkit[plots]'", name=error.name) from error
    style = DARK if dark else LIGHT
    size = (_WIDTH, _HEIGHT + 2.2 * (len(panels) - 1))
    figure = Figure(figsize=size, dpi=160, facecolor=style.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Axes] = []
    labels = []
    whole_x = all(float(x).is_integer() for series in drawn for points in series.values() for x, _ in points)
    for n, (panel, series) in enumerate(zip(panels, drawn, strict=True), 1):
        one = figure.add_subplot(len(panels), 1, n, sharex=axes[0] if axes else None)
        axes.append(one)
        _furnish(one, panel.y_label, style, log_x=log_x, whole_x=whole_x)
        one.tick_params(labelbottom=n == len(panels))
        labels.append(_draw(one, series, style, faint=panel.faint))
    axes[-1].set_xlabel(x_label, color=style.quiet, fontsize=10, fontfamily=FONT)
    headline(figure, title, style, width=70)
    figure.draw_without_rendering()
    for one, names in zip(axes, labels, strict=True):
        _spread(one, names)
    return figure


def headline(figure: Figure, title: str, style: Style, *, width: int) -> None:
    """Put the title over a figure, in lines of at most `width` characters."""
    lines = "\n".join(wrap(title, width))
    figure.suptitle(lines, x=0.012, ha="left", color=style.ink, fontsize=12, fontweight="bold", fontfamily=FONT)


def clear(axes: Axes, style: Style) -> None:
    """Leave of a pair of axes its lower edge, lines across and quiet numbers."""
    axes.set_facecolor(style.paper)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(style.quiet)
    axes.grid(axis="y", color=style.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5, labelsize=9, labelcolor=style.quiet, labelfontfamily=FONT)


def mark(n: int, style: Style, size: float) -> dict[str, Any]:
    """How the n-th of several is marked: its own pair of shape and colour."""
    return {
        "marker": MARKERS[n % len(MARKERS)],
        "color": style.lines[n % len(style.lines)],
        "markersize": size,
        "markeredgecolor": style.paper,
        "markeredgewidth": 0.8,
    }


def legend(figure: Figure, names: Sequence[str], style: Style, size: float) -> None:
    """Say right of a figure which mark is whose; of the size that `mark` was given."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="", label=name, **mark(n, style, size)) for n, name in enumerate(names)]
    shown = figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=style.ink)
    for text in shown.get_texts():
        text.set_fontfamily(FONT)
        text.set_fontsize(9.5)


def _finite(series: Series) -> dict[str, list[tuple[float, float]]]:
    """The points that are numbers, of the series that have any."""
    kept = {name: [(x, y) for x, y in points if isfinite(x) and isfinite(y)] for name, points in series.items()}
    return {name: points for name, points in kept.items() if points}


def _furnish(axes: Axes, y_label: str, style: Style, *, log_x: bool, whole_x: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    clear(axes, style)
    axes.set_title(y_label, loc="left", color=style.quiet, fontsize=10, fontfamily=FONT)
    axes.margins(x=0.02, y=0.08)
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=whole_x))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(partial(_number, axis)))
    axes.tick_params(axis="x", length=3, color=style.quiet)


def _number(axis: Axis, value: float, _: int | None) -> str:
    """A tick's number, with as many decimals as the others need."""
    ticks = [value] if axis.get_scale() == "log" else [value, *axis.get_majorticklocs()]
    decimals = max(len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return f"{value:,.{decimals}f}"


def _draw(
    axes: Axes, series: Mapping[str, Sequence[tuple[float, float]]], style: Style, *, faint: bool
) -> list[Annotation]:
    """Draw the lines and put each one's name right of the axes, where no line is."""
    names = []
    for n, (name, points) in enumerate(series.items()):
        x, y = zip(*points, strict=True)
        if faint and n == 0:
            color, weight = style.quiet, "normal"
            axes.plot(x, y, color=color, linewidth=0.8, alpha=0.55, zorder=2)
        else:
            place, weight = n - faint, "bold"
            color = style.lines[place % len(style.lines)]
            every = 1 if len(points) <= _FEW else len(points) // 10
            alone = len(series) - faint == 1 and every > 1
            axes.plot(
                x, y, color=color, linewidth=2, zorder=3, markersize=5.5, markevery=((len(points) - 1) % every, every),
                marker="" if alone else MARKERS[place % len(MARKERS)],
                markeredgecolor=style.paper, markeredgewidth=0.8, solid_capstyle="round", solid_joinstyle="round",
            )  # fmt: skip
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 1, "shrinkA": 2, "shrinkB": 2, "relpos": (0, 0.5)}
        text = axes.annotate(
            name, (1, y[-1]), xycoords=axes.get_yaxis_transform(), xytext=(_GAP, 0), textcoords="offset points",
            va="center", color=color, fontsize=9.5, fontweight=weight, fontfamily=FONT, annotation_clip=False,
            arrowprops=arrow,
        )  # fmt: skip
        names.append(text)
    return names


def _spread(axes: Axes, names: Sequence[Annotation]) -> None:
    """Move names up and down, as little as it takes, until none lies over another."""
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    names = sorted(names, key=lambda name: name.xy[1])
    ends = [float(axes.get_yaxis_transform().transform((1, name.xy[1]))[1]) for name in names]
    tall = 1.15 * max(name.get_window_extent().height for name in names)
    bottom, top = axes.get_window_extent().y0 + tall / 2, axes.get_window_extent().y1 - tall / 2
    up, down = list(ends), list(ends)
    for n in range(1, len(ends)):
        up[n] = max(up[n], up[n - 1] + tall)
    for n in range(len(ends) - 2, -1, -1):
        down[n] = min(down[n], down[n + 1] - tall)
    places = [(low + high) / 2 for low, high in zip(down, up, strict=True)]
    shift = max(0.0, bottom - places[0]) - max(0.0, places[-1] - top)
    for name, end, place in zip(names, ends, places, strict=True):
        name.xyann = (_GAP, (place + shift - end) * 72 / figure.dpi)
