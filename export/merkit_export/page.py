"""The gate's report as one HTML file that needs no network, for whoever releases a bundle.

A release is decided by people who will not read a log. The page says first whether the gate is
open and why not, then shows for each step how much of what it may differ by it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from merkit import __version__
from merkit_export.outcome import OutcomeParity
from merkit_export.parity import StepParity
from merkit_export.report import Report

STYLE = """
.verdict { font-size: 1.6rem; font-weight: 650; margin: 0.8rem 0 0; }
.verdict.open { color: var(--video); } .verdict.shut, td.bad { color: var(--error); }
main, header, footer { max-width: 72rem; }
article { overflow-x: auto; }
td.number, thead th.number { text-align: right; white-space: nowrap; width: auto; }
td.bar { min-width: 7rem; }
li { overflow-wrap: anywhere; }
"""
DECADES = 6
"""Of a bar: from a millionth of what is allowed to all of it."""


def page(report: Report) -> str:
    """The whole page."""
    style = files("merkit").joinpath("report.css").read_text("utf-8") + STYLE
    bundle = report.bundle
    name = str(bundle.manifest.get("name", bundle.root.name))
    notice = str(bundle.manifest.get("notice", ""))
    told = f'<p class="notice">{escape(notice)}</p>' if notice else ""
    identity = f"bundle {bundle.bundle_id}, contract {bundle.contract.contract_id}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>Gate: {escape(name)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>Is the bundle {escape(name)} what was trained?</h1>"
        f'<p class="quiet">merkit {__version__}; {escape(identity)}</p>{_verdict(report)}{told}'
        f"</header>\n<main>{''.join(_articles(report))}</main>\n"
        f"<footer><h3>How it was measured</h3><p>{_method(report)}</p></footer>\n</body>\n</html>\n"
    )


def _verdict(report: Report) -> str:
    if report.passed:
        return '<p class="verdict open">Yes: every check passed.</p>'
    failures = "".join(f"<li>{escape(failure)}</li>" for failure in report.failures())
    return f'<p class="verdict shut">No: the gate is shut.</p><ul>{failures}</ul>'


def _articles(report: Report) -> Iterator[str]:
    yield _article("Answers", _answers(report))
    for title, steps in (
        ("Each step on real clips", report.steps_on_clips),
        ("Each step on made-up clips of every size and mix of modalities", report.steps),
    ):
        if steps:
            yield _article(title, _steps(steps))
    if flips := [flip for o in report.outcomes().values() for flip in o.flips]:
        items = "".join(f"<li>{escape(flip)}</li>" for flip in flips)
        yield _article("Labels that differ, the first of each set", f"<ul>{items}</ul>")


def _article(title: str, body: str) -> str:
    return f"<article><h3>{escape(title)}</h3>{body}</article>\n"


def _answers(report: Report) -> str:
    heads = ("number", "refused", "labels differ", "agreement", "probability")
    rows = [_answer(name, outcome) for name, outcome in report.outcomes().items()]
    table = _table(("clips", *heads, "WAF torch", "bundle", "ECE torch", "bundle"), rows)
    if report.budget is None:
        return table
    budget = report.budget
    told = (
        f"Steps are lossy. Allowed: {budget.agreement:.1%} of labels or more the same, "
        f"{100 * budget.waf_loss:g} points of WAF, {budget.ece_shift:g} of calibration error."
    )
    return f"<p>{told}</p>{table}"


def _answer(name: str, outcome: OutcomeParity) -> str:
    found = outcome.scores()
    scores = [f"{v:.4f}" for a, b in _sides(found) for v in (a, b)] if found else ["–"] * 4
    cells = (
        str(outcome.clips),
        str(outcome.refused),
        str(outcome.labels_differ),
        f"{outcome.agreement:.2%}",
        f"{outcome.max_abs:.1e}",
        *scores,
    )
    return _row(name, cells, bad=not outcome.passed)


def _sides(found: tuple[object, object]) -> list[tuple[float, float]]:
    torch, bundle = (vars(side) for side in found)
    return [(torch[key], bundle[key]) for key in ("waf", "ece")]


def _steps(steps: Sequence[StepParity]) -> str:
    heads = ("step", "precision", "inputs", "difference", "relative", "least cosine")
    more = ("in a batch", "absent", "NaN", "of what it may (log)")
    return _table((*heads, *more), [_step(step) for step in steps])


def _step(step: StepParity) -> str:
    cells = (
        step.tolerance.precision.partition(";")[0],
        str(step.cases),
        f"{step.max_abs:.1e}",
        f"{step.max_rel:.1e}",
        f"{step.min_cosine:.6f}",
        f"{step.batch:.1e}",
        f"{step.absent:.1e}",
        str(step.not_finite),
    )
    return _row(step.step, cells, _bar(step), bad=not step.passed)


def _bar(step: StepParity) -> str:
    """How much of what the step may differ by it does: of six decades, or of the angle."""
    most = step.tolerance.max_abs
    if most is not None:
        used = max(step.max_abs, 10.0**-DECADES * most) / most
        share, told = 1 + math.log10(used) / DECADES, f"{used:.1%}"
    else:
        share = (1 - step.min_cosine) / (1 - step.tolerance.cosine)
        told = f"{share:.1%}"
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<td class="bar"><svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" '
        f'role="img" aria-label="{told}"><rect class="track" width="100" height="10"/>'
        f'<rect class="fill" width="{width:.1f}" height="10"/></svg></td>'
    )


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    columns = "".join(
        f'<th scope="col"{"" if number == 0 else " class=number"}>{escape(head)}</th>'
        for number, head in enumerate(heads)
    )
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(name: str, cells: Sequence[str], last: str = "", bad: bool = False) -> str:
    mark = ' class="number bad"' if bad else ' class="number"'
    told = "".join(f"<td{mark}>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(name)}</th>{told}{last}</tr>'


def _method(report: Report) -> str:
    clips = "" if report.clips else " No clips were given."
    return (
        "The same inputs went through the torch modules and through the graphs that ship, and the "
        "same files through two clients, one with torch behind it. Made-up clips take every mix of "
        "modalities at the smallest, at everyday and at the largest sizes, alone and in padded "
        "batches. Differences are absolute unless named otherwise; bars span "
        f"{DECADES} decades up to what is allowed.{clips}"
    )
