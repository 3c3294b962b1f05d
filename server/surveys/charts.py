# SPDX-License-Identifier: Apache-2.0
"""Bars with their standard errors, as SVG inside the page. Values below zero hang below the line."""

from __future__ import annotations

from collections.abc import Sequence

from server.surveys.figures import NoisyTable

WIDTH, HEIGHT, FOOT = 320.0, 116.0, 20.0
LEFT = 42.0
MOST_NAMES = 6
"""With more cells only the first and the last have their names under the bars."""


def bars(tables: Sequence[NoisyTable]) -> list[str]:
    """One picture for each measurable table, all on one scale, in percent of the patients; "" for one that is not measurable."""
    known = [one for one in tables if one.is_measurable]
    if not known:
        return [""] * len(tables)
    top = max(float((one.shares + one.share_errors).max()) for one in known)
    bottom = min(0.0, *(float((one.shares - one.share_errors).min()) for one in known))
    return [_picture(one, top, bottom) if one.is_measurable else "" for one in tables]


def _picture(table: NoisyTable, top: float, bottom: float) -> str:
    room = HEIGHT - FOOT

    def y(share: float) -> float:
        return 6 + (room - 12) * (top - share) / (top - bottom)

    step = (WIDTH - LEFT) / len(table.counts)
    parts = [_axis(y(0), y(top), top)]
    for cell, (share, error) in enumerate(zip(table.shares.tolist(), table.share_errors.tolist(), strict=True)):
        left, middle = LEFT + cell * step + 0.12 * step, LEFT + (cell + 0.5) * step
        upper, lower = min(y(share), y(0)), max(y(share), y(0))
        parts.append(f'<rect x="{left:.1f}" y="{upper:.1f}" width="{0.76 * step:.1f}" height="{max(lower - upper, 0.6):.1f}"/>')
        parts.append(f'<line class="error" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y(share + error):.1f}" y2="{y(share - error):.1f}"/>')
    names = "".join(_names(table.table.cells, step))
    return f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{_text(table.table.name)}">{"".join(parts)}{names}</svg>'


def _axis(zero: float, upper: float, top: float) -> str:
    line = f'<line class="axis" x1="{LEFT:g}" x2="{WIDTH:g}" y1="{zero:.1f}" y2="{zero:.1f}"/>'
    labels = [(zero, "0"), (upper, f"{100 * top:.0f} %")]
    return line + "".join(f'<text x="{LEFT - 5:g}" y="{at + 4:.1f}" text-anchor="end">{label}</text>' for at, label in labels)


def _names(cells: Sequence[str], step: float) -> list[str]:
    y = HEIGHT - 5
    if len(cells) <= MOST_NAMES:
        most = max(3, int(step / 6.2))
        return [
            f'<text x="{LEFT + (cell + 0.5) * step:.1f}" y="{y:g}" text-anchor="middle">{_text(_short(name, most))}</text>'
            for cell, name in enumerate(cells)
        ]
    ends = ((LEFT, "start", cells[0]), (WIDTH, "end", cells[-1]))
    return [f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{_text(name)}</text>' for x, anchor, name in ends]


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
