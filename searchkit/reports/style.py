"""Figures and line charts in the house style: light or dark, PNG and SVG, readable with any colour vision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    from matplotlib.ticker import Formatter

Series = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Style:
    """Colours of a chart.

    Args:
        paper: The background.
        ink: Titles and labels.
        quiet: Numbers along the axes.
        grid: Grid lines.
        lines: The series in their order: contrast of 3:1 with the paper, distinct for every colour vision deficiency.
    """

    paper: str
    ink: str
    quiet: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Style("#ffffff", "#1f2328", "#59636e", "#e4e7eb", ("#0072b2", "#d55e00", "#5c1a5e", "#00a37a"))
DARK = Style("#15191e", "#f0f3f6", "#9aa4af", "#2b323a", ("#56b4e9", "#ff8a3d", "#fff3b0", "#ad5cff"))

MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 markers and 4 colours: only the 29th series repeats the first
_FEW = 40  # points up to which all points of a line get a marker; longer lines get about ten
FONT = "DejaVu Sans"  # comes with matplotlib
_WIDTH, _HEIGHT = 7.2, 4.0  # inches of a chart with one panel
_GAP = 20  # points between the axes and the names beside them


# Figures


def new_figure(width: float, height: float, title: str, *, dark: bool, wrap_at: int = 96) -> tuple[Figure, Style]:
    """An empty figure with a title, in inches, and its colours; pyplot knows nothing of it.

    Raises:
        MissingExtraError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"charts need {error.name}: pip install 'searchkit[plots]'", name=error.name) from error
    style = DARK if dark else LIGHT
    figure = Figure(figsize=(width, height), dpi=160, facecolor=style.paper, layout="constrained")
    FigureCanvasAgg(figure)
    lines = "\n".join(wrap(title, wrap_at))
    figure.suptitle(lines, x=0.012, ha="left", color=style.ink, fontsize=12, fontweight="bold", fontfamily=FONT)
    return figure, style


def write_figure(figure: Figure, file: Path, *, ending: str = "") -> list[Path]:
    """Write a figure as FILE.png and FILE.svg, and return both; an ending such as "-dark" goes before the dot.

    A .png or .svg at the end of FILE makes no difference.
    """
    lay_out(figure)
    stem = file.with_suffix("") if file.suffix in (".png", ".svg") else file
    files = [stem.with_name(f"{stem.name}{ending}.{kind}") for kind in ("png", "svg")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    for written in files:
        figure.savefig(written, facecolor=figure.get_facecolor())
    return files


def lay_out(figure: Figure) -> None:
    """Give the axes the place that the texts leave them, once: matplotlib would find it again twice for each file."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def clear(axes: Axes, style: Style, *, title: str = "", x_label: str = "") -> None:
    """Reduce axes to their lower edge, horizontal grid lines and quiet numbers, with a title and a label in them."""
    axes.set_facecolor(style.paper)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(style.quiet)
    axes.grid(axis="y", color=style.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5, labelsize=9, labelcolor=style.quiet, labelfontfamily=FONT)
    axes.set_title(title, loc="left", color=style.quiet, fontsize=10, fontfamily=FONT)
    axes.set_xlabel(x_label, color=style.quiet, fontsize=10, fontfamily=FONT)


def log_x_axis(axes: Axes, style: Style, *, numticks: int | None = None) -> None:
    """Make the x axis logarithmic, with ticks at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=numticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.tick_params(axis="x", length=3, color=style.quiet)


def fixed_decimals(axis: Axis, decimals: int) -> None:
    """Show the numbers of an axis with so many decimals."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{decimals}f}"))


def mark(n: int, style: Style, size: float) -> dict[str, Any]:
    """Marker properties of the n-th series: its own pair of shape and colour."""
    return {
        "marker": MARKERS[n % len(MARKERS)],
        "color": style.lines[n % len(style.lines)],
        "markersize": size,
        "markeredgecolor": style.paper,
        "markeredgewidth": 0.8,
    }


def legend(figure: Figure, names: Sequence[str], style: Style, size: float) -> None:
    """Explain the marks of :func:`mark` to the right of the figure."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="", label=name, **mark(n, style, size)) for n, name in enumerate(names)]
    box = figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=style.ink)
    for text in box.get_texts():
        text.set_fontfamily(FONT)
        text.set_fontsize(9.5)


# Line charts


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
        file: The file to write; .png or .svg at its end makes no difference.
        series: Name -> (x, y) points in the order of x.
        title: What the chart shows.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        log_x: Make the x axis logarithmic.
        dark: For a dark page.

    Returns:
        The two files.

    Raises:
        MissingExtraError: matplotlib is missing.
        InputError: There is nothing to draw.
    """
    return panels_chart(file, [Panel(series, y_label)], title=title, x_label=x_label, log_x=log_x, dark=dark)


def panels_chart(
    file: Path, panels: Sequence[Panel], *, title: str, x_label: str, log_x: bool = False, dark: bool = False
) -> list[Path]:
    """Draw panels above each other along one x axis; otherwise like `line_chart`."""
    figure = figure_of(panels, title=title, x_label=x_label, log_x=log_x, dark=dark)
    return write_figure(figure, file)


def figure_of(panels: Sequence[Panel], *, title: str, x_label: str, log_x: bool = False, dark: bool = False) -> Figure:
    """The figure that `panels_chart` writes."""
    drawn = [_finite(panel.series) for panel in panels]
    if not drawn or not all(drawn):
        raise InputError(f"nothing to draw in {title!r}: a panel has no series with a point")
    all_x = [x for series in drawn for points in series.values() for x, _ in points]
    if log_x and min(all_x) <= 0:
        raise InputError(f"{title!r} has an x of 0 or less, which a logarithmic axis cannot show")
    figure, style = new_figure(_WIDTH, _HEIGHT + 2.2 * (len(panels) - 1), title, dark=dark, wrap_at=70)
    whole_x = all(float(x).is_integer() for x in all_x)
    every: list[Axes] = []
    names = []
    for n, (panel, series) in enumerate(zip(panels, drawn, strict=True), 1):
        last = n == len(panels)
        axes = figure.add_subplot(len(panels), 1, n, sharex=every[0] if every else None)
        clear(axes, style, title=panel.y_label, x_label=x_label if last else "")
        _scale(axes, style, log_x=log_x, whole_x=whole_x)
        axes.tick_params(labelbottom=last)
        every.append(axes)
        names.append(_draw(axes, series, style, faint=panel.faint))
    lay_out(figure)  # the axes must not move once names are spread
    for axes, labels in zip(every, names, strict=True):
        _spread(axes, labels)
    return figure


def _finite(series: Series) -> dict[str, list[tuple[float, float]]]:
    """The series without points that are not finite, and without series that have no others."""
    kept = {name: [(x, y) for x, y in points if isfinite(x) and isfinite(y)] for name, points in series.items()}
    return {name: points for name, points in kept.items() if points}


def _scale(axes: Axes, style: Style, *, log_x: bool, whole_x: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.margins(x=0.02, y=0.08)
    if log_x:
        log_x_axis(axes, style)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=whole_x))
    axes.xaxis.set_major_formatter(_numbers(apart=log_x))
    axes.yaxis.set_major_formatter(_numbers(apart=False))
    axes.tick_params(axis="x", length=3, color=style.quiet)


def _numbers(*, apart: bool) -> Formatter:
    """The numbers of ticks, all with as many decimals as one of them needs, or each with its own."""
    from matplotlib.ticker import Formatter

    class Numbers(Formatter):
        def format_ticks(self, values: Sequence[float]) -> list[str]:
            decimals = [len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in values]
            most = max(decimals, default=0)
            return [f"{value:,.{own if apart else most}f}" for value, own in zip(values, decimals, strict=True)]

        def __call__(self, value: float, _: int | None = None) -> str:
            return self.format_ticks([value])[0]

    return Numbers()


def _draw(
    axes: Axes, series: Mapping[str, Sequence[tuple[float, float]]], style: Style, *, faint: bool
) -> list[Annotation]:
    """Draw the lines and put their names to the right of the axes, where no line is."""
    names = []
    for n, (name, points) in enumerate(series.items()):
        x, y = zip(*points, strict=True)
        if faint and n == 0:
            color, weight = style.quiet, "normal"
            axes.plot(x, y, color=color, linewidth=0.8, alpha=0.55, zorder=2)
        else:
            position, weight = n - faint, "bold"
            color = style.lines[position % len(style.lines)]
            every = 1 if len(points) <= _FEW else len(points) // 10
            alone = len(series) - faint == 1 and every > 1
            axes.plot(
                x, y, color=color, linewidth=2, zorder=3, markersize=5.5, markevery=((len(points) - 1) % every, every),
                marker="" if alone else MARKERS[position % len(MARKERS)],
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
    """Move names up and down, as little as possible, until none overlaps another."""
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    names = sorted(names, key=lambda name: name.xy[1])
    ends = [float(axes.get_yaxis_transform().transform((1, name.xy[1]))[1]) for name in names]
    height = 1.15 * max(name.get_window_extent().height for name in names)
    bottom, top = axes.get_window_extent().y0 + height / 2, axes.get_window_extent().y1 - height / 2
    up, down = list(ends), list(ends)
    for n in range(1, len(ends)):
        up[n] = max(up[n], up[n - 1] + height)
    for n in range(len(ends) - 2, -1, -1):
        down[n] = min(down[n], down[n + 1] - height)
    centres = [(low + high) / 2 for low, high in zip(down, up, strict=True)]
    shift = max(0.0, bottom - centres[0]) - max(0.0, centres[-1] - top)
    for name, end, centre in zip(names, ends, centres, strict=True):
        name.xyann = (_GAP, (centre + shift - end) * 72 / figure.dpi)
