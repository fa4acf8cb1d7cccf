"""What was written, in one figure: task groups, languages, and the lengths of queries and passages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from searchkit.errors import InputError
from searchkit.reports.style import FONT, Style, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from searchkit.training.synthesis.settings import SynthesisReport

_MOST = 14  # bars of a panel; the rest shares one more


def synthesis_chart(file: Path, report: SynthesisReport, *, dark: bool = False) -> list[Path]:
    """Draw a report, and write FILE.png and FILE.svg.

    Args:
        file: Path without a suffix.
        report: Of a run that wrote something.
        dark: Draw for a dark page.

    Returns:
        The two files.

    Raises:
        MissingExtraError: matplotlib is missing.
        InputError: There is nothing to draw.
    """
    return write_figure(figure_of(report, dark=dark), file)


def figure_of(report: SynthesisReport, *, dark: bool = False) -> Figure:
    """The figure that `synthesis_chart` writes."""
    if not report.examples:
        raise InputError("nothing to draw: no example was written")
    figure, style = new_figure(9.6, 6.4, f"{report.examples:,} examples by {report.model}", dark=dark)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1), height_ratios=(1, 1), wspace=0.06, hspace=0.08)
    parts = ("kinds of query", report.kinds) if report.kinds else ("task groups", report.groups)
    panels = (
        (grid[0, 0], *parts, 0),
        (grid[:, 1], "languages", report.languages, 1),
    )
    for cell, name, counts, color in panels:
        _bars(figure.add_subplot(cell), f"{name}, % of the examples", _shares(counts), style, style.lines[color])
    _lengths(figure.add_subplot(grid[1, 0]), report, style)
    return figure


def _shares(counts: dict[str, int]) -> list[tuple[str, float]]:
    """Names and percentages, the largest first; what does not fit shares one bar."""
    total = sum(counts.values())
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(most) > _MOST + 1:
        rest = sum(count for _, count in most[_MOST:])
        most = [*most[:_MOST], (f"{len(most) - _MOST} others", rest)]
    return [(name, 100 * count / total) for name, count in most]


def _bars(axes: Axes, name: str, shares: Sequence[tuple[str, float]], style: Style, color: str) -> None:
    positions = range(len(shares))
    axes.barh(positions, [share for _, share in shares], color=color, height=0.66, zorder=2)
    for position, (_, share) in enumerate(shares):
        axes.annotate(
            f"{share:.1f}", (share, position), xytext=(4, 0), textcoords="offset points", va="center",
            color=style.quiet, fontsize=8.5, fontfamily=FONT,
        )  # fmt: skip
    axes.set_yticks(list(positions), [label for label, _ in shares])
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.margins(x=0.14)
    _furnish(axes, name, style)


def _lengths(axes: Axes, report: SynthesisReport, style: Style) -> None:
    """Two histograms side by side, over ranges that double."""
    lows = [int(name.partition("-")[0]) for counts in report.words.values() for name in counts]
    steps = range(min(lows).bit_length() - 1, max(lows).bit_length())
    ranges = ["1" if step == 0 else f"{1 << step}-{(2 << step) - 1}" for step in steps]  # empty ranges in between too
    for turn, (side, counts) in enumerate(report.words.items()):
        positions = [position + (turn - 0.5) * 0.4 for position in range(len(ranges))]
        heights = [100 * counts.get(name, 0) / report.examples for name in ranges]
        axes.bar(positions, heights, width=0.38, color=style.lines[turn + 2], label=side, zorder=2)
        for position, height in zip(positions, heights, strict=True):
            if height:
                axes.annotate(
                    f"{height:.0f}", (position, height), xytext=(0, 2), textcoords="offset points", ha="center",
                    color=style.quiet, fontsize=8.5, fontfamily=FONT,
                )  # fmt: skip
    axes.set_xticks(range(len(ranges)), ranges, rotation=30, ha="right")
    axes.set_yticks([])
    axes.margins(y=0.1)
    # Above the bars, which may be of any height.
    axes.legend(
        frameon=False, labelcolor=style.quiet, prop={"family": FONT, "size": 9}, ncols=2, loc="lower right",
        bbox_to_anchor=(1.02, 0.98),
    )  # fmt: skip
    _furnish(axes, "words per text, % of the texts", style)


def _furnish(axes: Axes, name: str, style: Style) -> None:
    axes.set_facecolor(style.paper)
    axes.set_title(name, loc="left", color=style.quiet, fontsize=10, fontfamily=FONT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, pad=5, labelsize=9, labelcolor=style.quiet, labelfontfamily=FONT)
