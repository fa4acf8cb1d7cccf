"""Charts: the files, and their legibility."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest

from searchkit.reports.style import DARK, LIGHT, Panel, Style, figure_of, line_chart, panels_chart

pytest.importorskip("matplotlib", reason="needs the plots extra")

CLOSE = {f"way {n} of searching": [(k, 1 - 0.001 * n - 0.4 / k) for k in (1, 2, 5, 10, 100)] for n in range(7)}

# Viénot, Brettel and Mollon 1999 for red and green, Brettel et al. 1997 simplified for blue; on linear RGB.
SIGHTS = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red cones": ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1)),
    "no green cones": ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1)),
    "no blue cones": ((1, 0.1462, -0.1462), (0, 0.8552, 0.1448), (0, 0.8552, 0.1448)),
}


def linear(color: str) -> list[float]:
    values = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def lightness(color: str) -> float:
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear(color), strict=True))


def lab(color: str, sight: str) -> tuple[float, float, float]:
    seen = [sum(w * v for w, v in zip(row, linear(color), strict=True)) for row in SIGHTS[sight]]
    rows = ((0.4124, 0.3576, 0.1805, 0.9505), (0.2126, 0.7152, 0.0722, 1), (0.0193, 0.1192, 0.9505, 1.089))
    x, y, z = (math.cbrt(max(0, sum(w * v for w, v in zip(row, seen, strict=False))) / row[3]) for row in rows)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])
def test_lines_and_texts_have_contrast_with_the_paper(style: Style) -> None:
    for color, least in [*((line, 3) for line in style.lines), (style.ink, 7), (style.quiet, 4.5)]:
        low, high = sorted((lightness(color), lightness(style.paper)))
        assert (high + 0.05) / (low + 0.05) >= least, color


@pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_are_distinct_for_every_colour_vision(style: Style, sight: str) -> None:
    for one, other in itertools.combinations([*style.lines, style.quiet], 2):
        assert math.dist(lab(one, sight), lab(other, sight)) > 12, (one, other)


@pytest.mark.parametrize("name", ["recall", "recall.png", "recall.svg", "v1.2"])
def test_a_chart_is_a_png_and_an_svg_of_the_same_name(tmp_path: Path, name: str) -> None:
    before = "matplotlib.pyplot" in sys.modules
    png, svg = line_chart(tmp_path / name, CLOSE, title="Recall", x_label="k", y_label="recall@k", log_x=True)
    stem = name.removesuffix(".png").removesuffix(".svg")
    assert (png, svg) == (tmp_path / f"{stem}.png", tmp_path / f"{stem}.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text("utf-8")[:800]
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("log_x", [False, True])
def test_texts_do_not_overlap_each_other_or_lines_or_leave_the_figure(log_x: bool, dark: bool) -> None:
    panels = [Panel(CLOSE, "recall@k"), Panel({"raw": CLOSE["way 0 of searching"], **CLOSE}, "nDCG@10", faint=True)]
    title = "A title that is long enough to be broken " * 3
    figure = figure_of(panels, title=title, x_label="k (hits)", log_x=log_x, dark=dark)
    names = [text for axes in figure.axes for text in axes.texts]
    assert len(names) == 7 + 8
    texts = [*names, *(axes.title for axes in figure.axes), *(axes._left_title for axes in figure.axes)]
    texts += [axes.xaxis.label for axes in figure.axes] + list(figure.texts)
    texts += [tick.label1 for axes in figure.axes for tick in axes.yaxis.get_major_ticks() if inside(axes, tick)]
    # Without the leader lines, which an annotation's get_window_extent() includes.
    boxes = [type(text).__mro__[1].get_window_extent(text) if text in names else text.get_window_extent()
             for text in texts if text.get_text() and text.get_visible()]  # fmt: skip
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes[: len(names)]:
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1


def inside(axes: object, tick: object) -> bool:
    low, high = axes.get_ylim()  # type: ignore[attr-defined]
    return bool(low <= tick.get_loc() <= high)  # type: ignore[attr-defined]


def test_ticks_have_the_decimals_they_need_and_thousands_separators(tmp_path: Path) -> None:
    series = {"all": [(0, 0.7), (2000, 0.72)]}
    (axes,) = figure_of([Panel(series, "nDCG@10")], title="t", x_label="step").axes
    assert {"1,000", "2,000"} <= {label.get_text() for label in axes.get_xticklabels()}
    assert "0.700" in {label.get_text() for label in axes.get_yticklabels()}


def test_points_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    series = {"all": [(1, math.nan), (2, 0.5), (3, math.inf)], "none": [(1, math.nan)]}
    (axes,) = figure_of([Panel(series, "y")], title="t", x_label="x").axes
    assert [text.get_text() for text in axes.texts] == ["all"]
    with pytest.raises(ValueError, match="nothing to draw in 'empty'"):
        line_chart(tmp_path / "x", {"none": []}, title="empty", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="x of 0 or less"):
        line_chart(tmp_path / "x", {"all": [(0, 1)]}, title="t", x_label="x", y_label="y", log_x=True)
    assert list(tmp_path.iterdir()) == []


def test_panels_share_their_x_axis(tmp_path: Path) -> None:
    panels = [Panel({"loss": [(n, 1 / n) for n in range(1, 100)]}, "loss"), Panel({"dev": [(50, 0.5)]}, "nDCG@10")]
    loss, dev = figure_of(panels, title="t", x_label="step").axes
    assert loss.get_xlim() == dev.get_xlim()
    assert len(panels_chart(tmp_path / "training", panels, title="t", x_label="step")) == 2


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'searchkit\[plots\]'"):
        line_chart(tmp_path / "x", CLOSE, title="t", x_label="x", y_label="y")
