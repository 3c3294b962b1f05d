# SPDX-License-Identifier: Apache-2.0
"""Figures of the audit's page, inline SVG in the style of the reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulations.audit.verdict import Bound
from simulations.plots import ACCENT, INK, MUTED, Points, _figure, _svg, thin

FloatArray = npt.NDArray[np.float64]
BINS = 40


def score_histogram(scores: FloatArray, included: npt.NDArray[np.bool_], thresholds: tuple[float, float], alt: str, prefix: str) -> str:
    """Scores of canaries that were in (filled) and out (outline); the two lines are the last guesses on either side."""
    ranks = np.sign(scores) * np.log1p(np.abs(scores))
    edges = np.histogram_bin_edges(ranks, BINS)
    with _figure() as figure:
        axes = figure.add_subplot()
        axes.hist(ranks[included], edges, color=ACCENT, alpha=0.55)
        axes.hist(ranks[~included], edges, histtype="step", color=INK, linewidth=1.2)
        for threshold in thresholds:
            axes.axvline(np.sign(threshold) * np.log1p(abs(threshold)), color=MUTED, linestyle=(0, (4, 2)), linewidth=1)
        axes.set_xlabel("score, log scale on both sides (right: speaks for in)")
        axes.set_ylabel("canaries")
        return _svg(figure, alt, prefix)


def bound_bars(rows: Sequence[tuple[str, Bound]], claim: float, possible: float, alt: str) -> str:
    """For each run a bar from 0 to its bound at 99.9 %, a tick at 95 %; lines at the claim and at what a perfect attack could prove."""
    with _figure(4.9, 0.75 + 0.4 * len(rows), 1.5) as figure:
        axes = figure.add_subplot()
        for place, (_, bound) in enumerate(reversed(rows)):
            axes.barh([place], [bound.epsilon_999], height=0.45, color=ACCENT, alpha=0.6)
            axes.plot([bound.epsilon_95], [place], "|", color=INK, markersize=12)
        axes.axvline(claim, color=INK, linewidth=1.6)
        axes.axvline(possible, color=MUTED, linestyle=(0, (4, 2)))
        axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
        axes.set_xlim(0, possible * 1.08)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("ε proved (line: the claim; dashed: a perfect attack)")
        return _svg(figure, alt, "bounds")


def membership_curves(curves: Sequence[Points], alt: str) -> str:
    """ROC curves of membership inference on log axes; the first curve, the private one, in the accent colour."""
    with _figure() as figure:
        axes = figure.add_subplot()
        axes.plot([1e-3, 1], [1e-3, 1], color=MUTED, linewidth=0.8)
        for number, points in enumerate(curves):
            columns = [max(x, 1e-3) for x, _ in thin(points)], [max(y, 1e-3) for _, y in thin(points)]
            axes.plot(*columns, color=INK if number else ACCENT, linewidth=1.3 if number else 2.2)
        axes.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1.05), xlabel="others taken for members", ylabel="members found")
        return _svg(figure, alt, "membership")
