"""Charts as SVG and tables inside the page: no script, no file beside it, right in light and dark.

Colours come from the page's style sheet by class, so that they follow the reader's theme. Each
chart has a label for those who hear the page, and the page prints its numbers in a table too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 14, 44
SERIES = ("first", "second", "third")
"""Classes of the style sheet."""
Points = Sequence[Mapping[str, Any]]


def curves(title: str, x: Sequence[str], series: Mapping[str, Points], axis: str) -> str:
    """Lines of WAF over levels, each point with its interval.

    Args:
        title: what the chart shows, for those who hear it.
        x: names of the levels, evenly spaced.
        series: by name, for each level `value`, `low`, `high`.
        axis: what the levels are.
    """
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    at = [LEFT + wide * (i + 0.5) / len(x) for i in range(len(x))]

    def y(value: float) -> float:
        return TOP + high * (1 - value)

    parts = [_grid(y, WIDTH - RIGHT)]
    for place, name in zip(at, x, strict=True):
        parts.append(_text(place, HEIGHT - BOTTOM + 18, name))
    parts.append(_text(LEFT + wide / 2, HEIGHT - 6, axis))
    for number, (kind, points) in enumerate(zip(SERIES, series.values(), strict=False)):
        shift = 5 * (number - (len(series) - 1) / 2)
        dots = [(place + shift, p) for place, p in zip(at, points, strict=True)]
        line = " ".join(f"{px:.1f},{y(p['value']):.1f}" for px, p in dots)
        parts.append(f'<polyline class="line {kind}" points="{line}"/>')
        for px, p in dots:
            parts.append(
                f'<line class="whisker {kind}" x1="{px:.1f}" x2="{px:.1f}" '
                f'y1="{y(p["low"]):.1f}" y2="{y(p["high"]):.1f}"/>'
            )
            parts.append(_mark(kind, px, y(p["value"])))
    return _svg(title, parts) + (legend(tuple(series)) if len(series) > 1 else "")


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share that is right over mean confidence, with intervals; the diagonal is perfect. Bars at
    the foot: how many clips have that confidence."""
    size = HEIGHT - TOP - BOTTOM

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value

    def y(value: float) -> float:
        return TOP + size * (1 - value)

    most = max(b["clips"] for b in bins)
    parts = [_grid(y, WIDTH - RIGHT)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}"))
    parts.append(_text(x(0.5), HEIGHT - 6, "confidence"))
    parts.append(f'<line class="ideal" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>')
    for b in bins:
        tall = 0.22 * size * b["clips"] / most
        parts.append(
            f'<rect class="count" x="{x(b["from"]) + 1:.1f}" width="{x(1 / 15) - x(0) - 2:.1f}" '
            f'y="{y(0) - tall:.1f}" height="{tall:.1f}"/>'
        )
    for b in bins:
        px = x(b["confidence"])
        parts.append(
            f'<line class="whisker first" x1="{px:.1f}" x2="{px:.1f}" y1="{y(b["low"]):.1f}" '
            f'y2="{y(b["high"]):.1f}"/>'
        )
        parts.append(_mark("first", px, y(b["right"])))
    return _svg("Share of right answers over confidence", parts)


def interval(estimate: Mapping[str, float], low: float, high: float, zero: bool = False) -> str:
    """A small interval on a scale from `low` to `high`; `zero` marks nought."""
    span = max(high - low, 1e-9)

    def x(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / span

    nought = (
        f'<line class="nought" x1="{x(0):.2f}" x2="{x(0):.2f}" y1="0" y2="12"/>' if zero else ""
    )
    return (
        '<svg class="interval" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" y="5" width="100" height="2"/>{nought}'
        f'<rect class="span" x="{x(estimate["low"]):.2f}" y="3.5" height="5" '
        f'width="{max(x(estimate["high"]) - x(estimate["low"]), 0.8):.2f}"/>'
        f'<rect class="point" x="{x(estimate["value"]) - 0.5:.2f}" y="1" width="1" height="10"/>'
        "</svg>"
    )


def confusion(table: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Rows are true classes, columns answers; shaded by the share of the row."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in labels)
    rows = []
    for name, counts in zip(labels, table, strict=True):
        whole = max(sum(counts), 1)
        cells = "".join(_cell(count, count / whole) for count in counts)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="confusion"><caption>Confusion matrix: rows are true '
        "classes, columns answers; clips, and the share of the row</caption>"
        f'<thead><tr><td class="quiet">true ↓ answer →</td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def legend(names: Sequence[str]) -> str:
    """Marks and names of the series."""
    items = "".join(
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true">{_mark(kind, 6, 6)}</svg>'
        f"{escape(name)}</li>"
        for kind, name in zip(SERIES, names, strict=False)
    )
    return f'<ul class="legend marks">{items}</ul>'


def _cell(count: int, share: float) -> str:
    dark = ' class="deep"' if share > 0.45 else ""
    return f'<td{dark} style="--share:{100 * share:.0f}%">{count}<small>{share:.0%}</small></td>'


def _grid(y: Any, right: float) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        + _text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end")
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return "".join(lines)


def _mark(kind: str, x: float, y: float) -> str:
    """Each series has a shape of its own, for those who see no colours."""
    if kind == "second":
        return f'<rect class="mark {kind}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if kind == "third":
        points = f"{x:.1f},{y - 5:.1f} {x + 5:.1f},{y + 4:.1f} {x - 5:.1f},{y + 4:.1f}"
        return f'<polygon class="mark {kind}" points="{points}"/>'
    return f'<circle class="mark {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
