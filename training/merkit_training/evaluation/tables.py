"""Tables of the report: every text escaped, numbers aligned, each estimate with its interval.

Names of clips, classes and columns come from outside; escaped in one place, none can be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from merkit_training.evaluation import charts

Row = Mapping[str, Any]


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; heads that begin with # stand over numbers."""
    cells = "".join(
        f'<th scope="col" class="number">{escape(name[1:])}</th>'
        if name.startswith("#")
        else f'<th scope="col">{escape(name)}</th>'
        for name in heads
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="list"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def estimate(e: Row) -> list[str]:
    """Three cells: the value, its interval, and the interval drawn from 0 to 1."""
    return [
        number(f"{e['value']:.3f}"),
        number(f"{e['low']:.3f} to {e['high']:.3f}"),
        f'<td class="draw">{charts.interval(e, 0, 1)}</td>',
    ]


def details(summary: str, body: str) -> str:
    """What is folded away until somebody wants it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def head(text: str) -> str:
    """The cell that names a row."""
    return f'<th scope="row">{escape(text)}</th>'


def number(text: str) -> str:
    """A cell with a number."""
    return f'<td class="number">{escape(text)}</td>'


def cell(text: str) -> str:
    """A cell with words."""
    return f"<td>{escape(text)}</td>"
