"""Fig. 5 as a picture: WAF of each learner and of the vote over the rounds, on each test split.

Plain SVG, so that a report needs no plotting library and a reader no script. Colours are told
apart in both light and dark, and every line is named at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from merkit_training.mining.loop import VALIDATION, VOTE

PANEL, HEIGHT = 300, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 70, 30, 34
COLOURS = ("#3b7dd8", "#d9822b", "#2f9e6e", "#a259c4", "#8a8a3a", "#c4504a")
VOTE_COLOUR = "#d02c5c"
GAP = 11  # least distance of two names

Points = Sequence[Mapping[str, float]]


def curve_svg(report: Mapping[str, Any]) -> str:
    """A panel for each test split; a bar about each point is one standard deviation over seeds.

    The dashed line is the vote of labels alone after as many steps, where that was measured.
    """
    splits = [split for split in report["curve"] if split != VALIDATION] or [VALIDATION]
    alone = {s: [own[s][VOTE] for own in report.get("control", ())] for s in splits}
    points = [p for s in splits for line in report["curve"][s].values() for p in line]
    ends = [p["mean"] + sign * p["sd"] for p in points for sign in (-1, 1)]
    ends += [value for own in alone.values() for value in own]
    room = max(0.01, max(ends) - min(ends)) * 0.05
    scale = (min(ends) - room, max(ends) + room)
    panels = [
        _panel(s, report["curve"][s], alone[s], scale, i * PANEL) for i, s in enumerate(splits)
    ]
    width = PANEL * len(splits)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="10" role="img">'
        "<title>WAF of the learners and of the vote over the rounds of mining</title>"
        '<rect width="100%" height="100%" fill="#ffffff"/>' + "".join(panels) + "</svg>\n"
    )


def _panel(
    split: str,
    systems: Mapping[str, Points],
    alone: Sequence[float],
    scale: tuple[float, float],
    x0: int,
) -> str:
    low, high = scale
    last = max(1, len(systems[VOTE]) - 1)

    def x(i: int) -> float:
        return x0 + LEFT + (PANEL - LEFT - RIGHT) * i / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [f'<text x="{x0 + LEFT}" y="16" font-size="12" fill="#222">{escape(split)}</text>']
    for k in range(5):
        value = low + (high - low) * k / 4
        parts.append(
            f'<line x1="{x(0):.1f}" x2="{x(last):.1f}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="#e3e3e3"/><text x="{x(0) - 6:.1f}" y="{y(value) + 3:.1f}" '
            f'text-anchor="end" fill="#555">{value:.3f}</text>'
        )
    for i in range(len(systems[VOTE])):
        parts.append(
            f'<text x="{x(i):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle" '
            f'fill="#555">{i}</text>'
        )
    parts.append(
        f'<text x="{(x(0) + x(last)) / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle" '
        'fill="#555">round</text>'
    )
    if alone:
        height = y(sum(alone) / len(alone))
        parts.append(
            f'<line x1="{x(0):.1f}" x2="{x(last):.1f}" y1="{height:.1f}" y2="{height:.1f}" '
            'stroke="#222" stroke-dasharray="5 4"/>'
        )
    heights = _apart({name: y(points[-1]["mean"]) for name, points in systems.items()})
    for k, (name, points) in enumerate(systems.items()):
        colour = VOTE_COLOUR if name == VOTE else COLOURS[k % len(COLOURS)]
        line = " ".join(f"{x(i):.1f},{y(p['mean']):.1f}" for i, p in enumerate(points))
        thick = 2.5 if name == VOTE else 1.3
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{thick}"/>'
        )
        for i, p in enumerate(points):
            top, bottom = y(p["mean"] + p["sd"]), y(p["mean"] - p["sd"])
            parts.append(
                f'<line x1="{x(i):.1f}" x2="{x(i):.1f}" y1="{top:.1f}" y2="{bottom:.1f}" '
                f'stroke="{colour}" stroke-opacity="0.4"/>'
                f'<circle cx="{x(i):.1f}" cy="{y(p["mean"]):.1f}" r="2" fill="{colour}"/>'
            )
        parts.append(
            f'<text x="{x(last) + 6:.1f}" y="{heights[name] + 3:.1f}" fill="{colour}">'
            f"{escape(name)}</text>"
        )
    return "".join(parts)


def _apart(places: Mapping[str, float]) -> dict[str, float]:
    """The names' heights, pushed down until none lies on another."""
    found: dict[str, float] = {}
    previous = -float(GAP)
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        found[name] = previous = max(place, previous + GAP)
    return found
