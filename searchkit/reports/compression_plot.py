"""The Pareto chart of `searchkit compress`: what recall a vector's bytes buy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from searchkit.compression.choice import front
from searchkit.compression.measure import Candidate
from searchkit.errors import InputError, MissingExtraError
from searchkit.indexer.vectors.recipes import recipe_of
from searchkit.reports.style import DARK, FONT, LIGHT, MARKERS, Style, clear, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_FAMILIES = (("flat", "fp16", "int8"), ("pq", "opq"), ("rabitq", "binary"), ("ivf-pq", "ivf-int8", "hnsw", "cagra"))
_NAMES = ("scalars", "product codes", "bits", "cells and graphs")
_WIDTH, _HEIGHT = 9.6, 5.4  # inches of one panel
_RINGS = (7, 12, 18, 26, 36, 48, 62, 78, 96, 116, 138, 162)  # points from a mark to its label, nearest that is free


def check() -> None:
    """Raise ImportError, that says how to install it, unless charts can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"charts need {error.name}: pip install 'searchkit[plots]'", name=error.name) from error


def pareto_chart(file: Path, candidates: Sequence[Candidate], *, title: str, dark: bool = False) -> list[Path]:
    """Draw recall@10, and nDCG@10 where it is known, against bytes a vector; write FILE.png and FILE.svg.

    Args:
        file: Where to; .png or .svg at its end makes no difference.
        candidates: What `searchkit.compression.measure.measure` gave.
        title: What the chart shows.
        dark: For a dark page.

    Returns:
        The two files.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: There is nothing to draw.
    """
    return write_figure(figure_of(candidates, title=title, dark=dark), file)


def figure_of(candidates: Sequence[Candidate], *, title: str, dark: bool = False) -> Figure:
    """The figure that `pareto_chart` writes."""
    if not candidates:
        raise InputError(f"nothing to draw in {title!r}: no recipe was measured")
    check()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = DARK if dark else LIGHT
    recalls = [(one, one.recall_10) for one in candidates]
    ndcgs = [(one, one.ndcg_10) for one in candidates if one.ndcg_10 is not None]
    panels = [("k-NN recall@10", recalls)] + ([("nDCG@10, by judgements", ndcgs)] if ndcgs else [])
    best = {one.name for one in front(candidates)}
    figure = Figure(figsize=(_WIDTH, _HEIGHT * len(panels)), dpi=160, facecolor=style.paper, layout="constrained")
    FigureCanvasAgg(figure)
    drawn = []
    for number, (name, points) in enumerate(panels, 1):
        axes = figure.add_subplot(len(panels), 1, number)
        _furnish(axes, name, style)
        _draw(axes, points, best if number == 1 else set(), style)
        drawn.append((axes, points))
    drawn[0][0].legend(
        loc="lower right", frameon=False, fontsize=9, labelcolor=style.quiet, prop={"family": FONT, "size": 9}
    )
    drawn[-1][0].set_xlabel("bytes a vector (logarithmic)", color=style.quiet, fontsize=10, fontfamily=FONT)
    figure.suptitle(title, x=0.012, ha="left", color=style.ink, fontsize=12, fontweight="bold", fontfamily=FONT)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are put where there is room now
    for axes, points in drawn:
        _label(axes, points, best, style)
    return figure


def _furnish(axes: Axes, name: str, style: Style) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    clear(axes, style)
    axes.set_title(name, loc="left", color=style.quiet, fontsize=10, fontfamily=FONT)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.06, y=0.12)
    axes.tick_params(axis="x", length=3, color=style.quiet)


def _draw(axes: Axes, points: Sequence[tuple[Candidate, float]], best: set[str], style: Style) -> None:
    line = sorted((one.bytes_per_vector, value) for one, value in points if one.name in best)
    if line:
        x, y = zip(*line, strict=True)
        axes.plot(x, y, color=style.ink, linewidth=1.2, zorder=2, drawstyle="steps-post", label="Pareto front")
    for kind, family in enumerate(_FAMILIES):
        mine = [(one.bytes_per_vector, value) for one, value in points if recipe_of(one.recipe).name in family]
        if mine:
            x, y = zip(*mine, strict=True)
            axes.plot(
                x, y, linestyle="", marker=MARKERS[kind], color=style.lines[kind], markersize=6, zorder=3,
                markeredgecolor=style.paper, markeredgewidth=0.8, label=_NAMES[kind],
            )  # fmt: skip


def _label(axes: Axes, points: Sequence[tuple[Candidate, float]], best: set[str], style: Style) -> None:
    """Name every mark, each name at the nearest place where it covers no mark and no other name."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    if figure is None:
        return
    scale = figure.dpi / 72
    marks = [tuple(axes.transData.transform((one.bytes_per_vector, value))) for one, value in points]
    taken: list[Bbox] = [Bbox.from_bounds(x - 4 * scale, y - 4 * scale, 8 * scale, 8 * scale) for x, y in marks]
    for line in axes.get_lines():
        if line.get_drawstyle() == "steps-post":  # no name is struck through by the front
            corners = axes.transData.transform(line.get_xydata())
            for (x, y), (end, _) in pairwise(corners):
                taken.append(Bbox.from_bounds(x, y - scale, end - x, 2 * scale))
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    room = axes.get_window_extent()
    # The front first: its names are those that must be near.
    order = sorted(range(len(points)), key=lambda n: (points[n][0].name not in best, -points[n][1]))
    for n in order:
        one, value = points[n]
        weight = "bold" if one.name in best else "normal"
        kind = next(kind for kind, family in enumerate(_FAMILIES) if recipe_of(one.recipe).name in family)
        text = axes.annotate(
            one.name, (one.bytes_per_vector, value), xytext=(0, 0), textcoords="offset points", fontsize=7.5,
            fontweight=weight, fontfamily=FONT, color=style.ink if one.name in best else style.quiet, zorder=4,
            ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": style.lines[kind], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
        box = Text.get_window_extent(text)  # an annotation's own takes its line in
        place = _free(marks[n], box.width + 4, box.height + 2, taken, room, scale)
        x, y = place.x0 + place.width / 2, place.y0 + place.height / 2
        text.xyann = ((x - marks[n][0]) / scale, (y - marks[n][1]) / scale)
        taken.append(place)


def _free(
    mark: tuple[float, float], width: float, height: float, taken: Sequence[Bbox], room: Bbox, scale: float
) -> Bbox:
    """The nearest box of a size around a mark that overlaps none; the first tried when there is none."""
    from math import cos, pi, sin

    from matplotlib.transforms import Bbox

    tried = []
    for ring in _RINGS:
        for step in range(24):
            angle = 2 * pi * step / 24
            x = mark[0] + cos(angle) * (ring * scale + width / 2)
            y = mark[1] + sin(angle) * (ring * scale + height / 2)
            box = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
            tried.append(box)
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            if inside and not any(box.overlaps(other) for other in taken):
                return box
    return tried[0]
