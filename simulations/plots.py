# SPDX-License-Identifier: Apache-2.0
"""Figures of the report: each function draws one and returns it as inline SVG.

Drawn with matplotlib's objects (no pyplot, no global figure). Text stays text, colours become CSS variables of the page (so one figure
serves light, dark and paper), and no name that a user wrote ever enters a figure: names stand in the page's legends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import numpy as np
import numpy.typing as npt

from common.metrics import CALIBRATION_BINS, calibration_bins

FloatArray = npt.NDArray[np.float64]
Points = Sequence[tuple[float, float]]

INK, MUTED, RULE, ACCENT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
CSS_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", ACCENT: "var(--accent)", PAPER: "var(--paper)"}
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (9, 3), (3, 1, 1, 1, 1, 1))
MAX_NAMED_LINES = len(DASHES)
MAX_CURVE_POINTS = 160
MIN_BIN_IMAGES = 5
WIDTH_INCHES, HEIGHT_INCHES, WIDE_INCHES = 4.4, 3.0, 4.9
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "wardround",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "lines.linewidth": 1.3,
    "lines.solid_capstyle": "round",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Line:
    """A curve through `points`. `role` (a key of `LOOKS`) decides how it looks; `dash` makes it one of a few named lines."""

    points: Points
    role: str = "alone"
    dash: int | None = None


@dataclass(frozen=True)
class Mark:
    """A row of the overview: a value, its interval, and whether it is the one that matters."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    role: str = "alone"


@dataclass(frozen=True)
class Judged:
    """Held-out labels [N] and scores ([N] or [N, C]) of one model."""

    labels: npt.NDArray[np.int64]
    scores: FloatArray
    role: str


LOOKS: dict[str, dict[str, Any]] = {
    "federated": {"color": ACCENT, "linewidth": 2.2, "zorder": 5},
    "pooled": {"color": INK, "linewidth": 1.3, "zorder": 4},
    "best": {"color": INK, "linewidth": 1.2, "linestyle": (0, (4, 2)), "zorder": 3},
    "alone": {"color": MUTED, "linewidth": 0.8, "alpha": 0.7, "zorder": 2},
    "group": {"color": INK, "linewidth": 1.3, "zorder": 3},
}


@contextmanager
def _figure(width: float = WIDTH_INCHES, height: float = HEIGHT_INCHES, left_inches: float = 0.62) -> Iterator[Any]:
    """An empty figure with fixed margins (measuring text would take longer than drawing it)."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        margins = {"left": left_inches / width, "right": 1 - 0.1 / width, "bottom": 0.45 / height, "top": 1 - 0.1 / height}
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(**margins)
        yield figure


def _svg(figure: Any, alt: str, prefix: str) -> str:
    """The figure as an <svg> element without scripts, namespaces, fixed size or fixed colours."""
    text = StringIO()
    figure.savefig(text, format="svg", facecolor="none", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]*pt" ?', r"<svg \1", svg)
    svg = re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]*pt" ?', r"<svg \1", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1).strip()


def glance(marks: Sequence[Mark], alt: str) -> str:
    """AUROC of every model and trivial baseline on one axis, the federated one in the accent colour."""
    with _figure(WIDE_INCHES, 0.55 + 0.25 * len(marks), left_inches=1.5) as figure:
        axes = figure.add_subplot()
        low = min([mark.value for mark in marks] + [mark.interval[0] for mark in marks if mark.interval])
        for row, mark in enumerate(reversed(marks)):
            colour = {"federated": ACCENT, "trivial": MUTED}.get(mark.role, INK)
            if mark.interval:
                axes.plot(mark.interval, [row, row], color=colour, linewidth=2, alpha=0.45)
            filled = "none" if mark.role == "trivial" else colour
            axes.plot([mark.value], [row], "o", color=colour, markersize=6, markerfacecolor=filled, clip_on=False)
        _name_rows(axes, [mark.name for mark in marks])
        axes.set_xlim(min(low - 0.03 * (1 - low), 0.97), 1.0)
        return _svg(figure, alt, "glance")


def curves(lines: Sequence[Line], levels: Sequence[tuple[float, str]], label: str, alt: str, prefix: str) -> str:
    """A quantity over the rounds. `levels` are horizontal reference lines: value and role."""
    with _figure() as figure:
        axes = figure.add_subplot()
        for value, role in levels:
            axes.axhline(value, **{**LOOKS[role], "linestyle": (0, (1, 2)) if role == "pooled" else (0, (4, 2))})
        for line in lines:
            axes.plot(*_columns(thin(line.points)), **_look(line), **_marker(line))
        axes.set_xlabel("round")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        return _svg(figure, alt, prefix)


def roc(models: Sequence[Judged], alt: str) -> str:
    """ROC curves; where all models are good, an inset enlarges the corner that matters."""
    with _figure() as figure:
        axes = figure.add_subplot()
        found = [(model.role, roc_points(model)) for model in models]
        _draw_roc(axes, found)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false alarms (1 − specificity)", ylabel="found cases (sensitivity)")
        if _all_near_the_corner(found):
            inset = axes.inset_axes((0.4, 0.12, 0.58, 0.58), facecolor=PAPER)
            _draw_roc(inset, found)
            inset.set(xlim=(0, 0.2), ylim=(0.8, 1.002), xticks=(0, 0.1, 0.2), yticks=(0.8, 0.9, 1.0))
            inset.tick_params(labelsize=7.5)
            inset.set_title("enlarged: upper left corner", fontsize=7.5, color=MUTED, pad=3)
        return _svg(figure, alt, "roc")


def reliability(models: Sequence[Judged], alt: str) -> str:
    """Observed against promised frequency in 10 bins of at least 5 images; below, how many images fall into each (federated)."""
    with _figure() as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        figure.align_ylabels()
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=1)
        for model in models:
            bins = calibration_bins(model.labels, model.scores)
            enough = bins.images >= MIN_BIN_IMAGES
            axes.plot(bins.confidence[enough], bins.observed[enough], marker="o", markersize=3.5, **LOOKS[model.role])
            if model.role == "federated":
                centres = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
                below.bar(centres, bins.images, width=0.9 / CALIBRATION_BINS, color=ACCENT, alpha=0.6)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylabel("observed share")
        below.set_ylabel("count")
        below.locator_params(axis="y", nbins=2)
        below.set_xlabel("promised probability")
        return _svg(figure, alt, "reliability")


def seed_dots(groups: Sequence[tuple[str, Sequence[float], float | None]], alt: str) -> str:
    """One row for each group: its letter, a dot for each seed, a bar at the mean, and a tick where its pooled model stands."""
    with _figure(WIDE_INCHES, 0.55 + 0.3 * len(groups), left_inches=0.3) as figure:
        axes = figure.add_subplot()
        for row, (_, values, pooled) in enumerate(reversed(groups)):
            axes.plot(values, [row] * len(values), "o", color=ACCENT, markersize=5, alpha=0.55, markeredgewidth=0)
            if values:
                axes.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=ACCENT, linewidth=2.2)
            if pooled is not None:
                axes.plot([pooled], [row], "|", color=INK, markersize=14)
        _name_rows(axes, [letter for letter, _, _ in groups])
        return _svg(figure, alt, "seeds")


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    """An axis of AUROC with one named row for each entry, the first on top."""
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("AUROC on held-out patients (right is better)")


def thin(points: Points) -> Points:
    """At most `MAX_CURVE_POINTS` points of a long curve, first and last kept."""
    if len(points) <= MAX_CURVE_POINTS:
        return points
    kept = np.unique(np.linspace(0, len(points) - 1, MAX_CURVE_POINTS).round().astype(int))
    return [points[index] for index in kept]


def roc_points(model: Judged) -> Points:
    """(false alarms, found cases), ascending; the mean over classes against the rest for scores [N, C]. Empty for one class."""
    from sklearn.metrics import roc_curve

    present = np.unique(model.labels)
    if len(present) < 2:
        return []
    if model.scores.ndim == 1:
        alarms, found, _ = roc_curve(model.labels, model.scores)
        return thin(list(zip(alarms.tolist(), found.tolist(), strict=True)))
    grid = np.concatenate([[0.0], np.linspace(0, 1, MAX_CURVE_POINTS - 1)])
    each = [np.interp(grid, *roc_curve(model.labels == c, model.scores[:, c])[:2]) for c in present]
    return list(zip(grid.tolist(), np.mean(each, axis=0).tolist(), strict=True))


def _draw_roc(axes: Any, found: Sequence[tuple[str, Points]]) -> None:
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=1)
    for role, points in found:
        axes.plot(*_columns(points), **LOOKS[role])


def _all_near_the_corner(found: Sequence[tuple[str, Points]]) -> bool:
    """Whether each main curve finds nine cases in ten at one false alarm in ten."""
    heights = [float(np.interp(0.1, *_columns(points))) for role, points in found if role != "alone" and points]
    return bool(heights and min(heights) > 0.9)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _look(line: Line) -> dict[str, Any]:
    if line.dash is None:
        return LOOKS[line.role]
    return LOOKS[line.role] | {"linestyle": (0, DASHES[line.dash % len(DASHES)]), "color": INK, "alpha": 1.0, "linewidth": 1.1}


def _marker(line: Line) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if len(line.points) <= 25 else {}
