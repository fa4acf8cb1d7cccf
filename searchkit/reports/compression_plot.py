"""The Pareto chart of `searchkit compress`: recall against bytes per vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import cos, pi, sin
from pathlib import Path
from typing import TYPE_CHECKING

from searchkit.compression.choice import front
from searchkit.compression.measure import Candidate
from searchkit.errors import InputError
from searchkit.indexer.vectors.recipes import recipe_of
from searchkit.reports.style import FONT, MARKERS, Style, clear, lay_out, log_x_axis, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_FAMILIES = {
    "scalars": ("flat", "fp16", "int8"),
    "product codes": ("pq", "opq"),
    "bits": ("rabitq", "binary"),
    "IVF lists and graphs": ("ivf-pq", "ivf-int8", "hnsw", "cagra"),
}
_WIDTH, _HEIGHT = 9.6, 5.4  # inches of one panel
_RINGS = (7, 12, 18, 26, 36, 48, 62, 78, 96, 116, 138, 162)  # points from a mark to its label, the nearest free one
_ANGLES = 24

Point = tuple[Candidate, float]


def pareto_chart(file: Path, candidates: Sequence[Candidate], *, title: str, dark: bool = False) -> list[Path]:
    """Draw recall@10, and nDCG@10 if it is known, against bytes per vector; write FILE.png and FILE.svg.

    Args:
        file: The file to write; .png or .svg at its end makes no difference.
        candidates: What `searchkit.compression.measure.measure` returned.
        title: What the chart shows.
        dark: For a dark page.

    Returns:
        The two files.

    Raises:
        MissingExtraError: matplotlib is missing.
        InputError: There is nothing to draw.
    """
    return write_figure(figure_of(candidates, title=title, dark=dark), file)


def figure_of(candidates: Sequence[Candidate], *, title: str, dark: bool = False) -> Figure:
    """The figure that `pareto_chart` writes."""
    if not candidates:
        raise InputError(f"nothing to draw in {title!r}: no recipe was measured")
    panels = {"k-NN recall@10": [(candidate, candidate.recall_10) for candidate in candidates]}
    if judged := [(candidate, candidate.ndcg_10) for candidate in candidates if candidate.ndcg_10 is not None]:
        panels["nDCG@10, by judgements"] = judged
    best = {candidate.name for candidate in front(candidates)}
    figure, style = new_figure(_WIDTH, _HEIGHT * len(panels), title, dark=dark)
    for number, (name, points) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(len(panels), 1, number)
        clear(axes, style, title=name, x_label="bytes a vector (logarithmic)" if number == len(panels) else "")
        log_x_axis(axes, style)
        axes.margins(x=0.06, y=0.12)
        _draw(axes, points, best if number == 1 else set(), style)
    figure.axes[0].legend(
        loc="lower right", frameon=False, fontsize=9, labelcolor=style.quiet, prop={"family": FONT, "size": 9}
    )
    lay_out(figure)  # the axes must not move once labels are placed
    for axes, points in zip(figure.axes, panels.values(), strict=True):
        _label(axes, points, best, style)
    return figure


def _family(candidate: Candidate) -> int:
    recipe = recipe_of(candidate.recipe).name
    return next(n for n, recipes in enumerate(_FAMILIES.values()) if recipe in recipes)


def _draw(axes: Axes, points: Sequence[Point], best: set[str], style: Style) -> None:
    line = sorted((candidate.bytes_per_vector, value) for candidate, value in points if candidate.name in best)
    if line:
        x, y = zip(*line, strict=True)
        axes.plot(x, y, color=style.ink, linewidth=1.2, zorder=2, drawstyle="steps-post", label="Pareto front")
    for n, name in enumerate(_FAMILIES):
        members = [(candidate.bytes_per_vector, value) for candidate, value in points if _family(candidate) == n]
        if members:
            x, y = zip(*members, strict=True)
            axes.plot(
                x, y, linestyle="", marker=MARKERS[n], color=style.lines[n], markersize=6, zorder=3,
                markeredgecolor=style.paper, markeredgewidth=0.8, label=name,
            )  # fmt: skip


def _label(axes: Axes, points: Sequence[Point], best: set[str], style: Style) -> None:
    """Name every mark at the nearest position where the name covers no mark and no other name."""
    # adjustText 1.3 took 2.5 s for the 54 names of a Cranfield run and left two overlapping; this takes 0.4 s.
    from matplotlib.text import Text

    figure = axes.get_figure(root=True)
    if figure is None:
        return
    scale, room = figure.dpi / 72, axes.get_window_extent()
    taken = _taken(axes, points, scale)
    # The front first: its names must be near their marks.
    for candidate, value in sorted(points, key=lambda point: (point[0].name not in best, -point[1])):
        on_front = candidate.name in best
        arrow = {"arrowstyle": "-", "color": style.lines[_family(candidate)], "linewidth": 0.6, "shrinkA": 0}
        text = axes.annotate(
            candidate.name, (candidate.bytes_per_vector, value), xytext=(0, 0), textcoords="offset points",
            fontsize=7.5, fontweight="bold" if on_front else "normal", fontfamily=FONT,
            color=style.ink if on_front else style.quiet, zorder=4, ha="center", va="center",
            arrowprops={**arrow, "shrinkB": 3},
        )  # fmt: skip
        x, y = axes.transData.transform((candidate.bytes_per_vector, value))
        box = Text.get_window_extent(text)  # an annotation's own extent includes its line
        boxes = list(_around(x, y, box.width + 4, box.height + 2, scale))
        inside = (one for one in boxes if room.contains(*one.min) and room.contains(*one.max))
        chosen = next((one for one in inside if not one.count_overlaps(taken)), boxes[0])
        taken.append(chosen)
        text.xyann = (((chosen.x0 + chosen.x1) / 2 - x) / scale, ((chosen.y0 + chosen.y1) / 2 - y) / scale)


def _taken(axes: Axes, points: Sequence[Point], scale: float) -> list[Bbox]:
    """Boxes that no name may cover: the marks, the front's line and the legend."""
    from matplotlib.transforms import Bbox

    marks = [axes.transData.transform((candidate.bytes_per_vector, value)) for candidate, value in points]
    boxes = [Bbox.from_bounds(x - 4 * scale, y - 4 * scale, 8 * scale, 8 * scale) for x, y in marks]
    for line in axes.get_lines():
        if line.get_drawstyle() == "steps-post":
            corners = axes.transData.transform(line.get_xydata())
            boxes += [Bbox.from_bounds(x, y - scale, end - x, 2 * scale) for (x, y), (end, _) in pairwise(corners)]
    legend = axes.get_legend()
    return boxes if legend is None else [*boxes, legend.get_window_extent()]


def _around(x: float, y: float, width: float, height: float, scale: float) -> Iterator[Bbox]:
    """Boxes of a size around a point, nearest first."""
    from matplotlib.transforms import Bbox

    for ring in _RINGS:
        for step in range(_ANGLES):
            angle = 2 * pi * step / _ANGLES
            left = x + cos(angle) * (ring * scale + width / 2) - width / 2
            low = y + sin(angle) * (ring * scale + height / 2) - height / 2
            yield Bbox.from_bounds(left, low, width, height)
