"""The trade-off as a table: what each precision costs and saves, and what was taken."""

from __future__ import annotations

from pathlib import Path

from merkit_export.precision.kinds import REFERENCE
from merkit_export.precision.search import Outcome, Trial

HEAD = "| step | precision | MB | ms | faster | {gate} | labels agree | least cosine | verdict |"


def lines(found: Outcome) -> list[str]:
    """Markdown, a row for each candidate."""
    gate = "WAF" if found.trained else "shift"
    rows = [HEAD.format(gate=gate), "| --- " * 2 + "| ---: " * 6 + "| --- |"]
    rows += [_row(trial, found) for trial in found.trials]
    return [*rows, "", *_summary(found)]


def write(found: Outcome, path: Path) -> None:
    """The table as a Markdown file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(lines(found)) + "\n", "utf-8")
    temporary.replace(path)


def _row(trial: Trial, found: Outcome) -> str:
    if trial.refused:
        return f"| {trial.step} | {trial.precision} | | | | | | | refused: {trial.refused} |"
    ms = f"{trial.ms:.2f}" if trial.ms is not None else "–"
    faster = f"{trial.reference_ms / trial.ms:.2f}x" if trial.ms and trial.reference_ms else "–"
    gate = f"{100 * trial.waf:.2f}" if trial.waf is not None else f"{trial.shift:.4f}"
    return (
        f"| {trial.step} | {trial.precision} | {trial.bytes / 1e6:.2f} | {ms} | {faster} | {gate} "
        f"| {trial.agreement:.2%} | {trial.cosine:.4f} | {_verdict(trial, found)} |"
    )


def _verdict(trial: Trial, found: Outcome) -> str:
    if found.chosen[trial.step] == trial.precision:
        return "**taken**"
    return found.refusals.get(f"{trial.step} {trial.precision}", "another saves more")


def _summary(found: Outcome) -> list[str]:
    taken = sum(precision != REFERENCE for precision in found.chosen.values())
    before = sum(t.reference_ms or 0 for t in _one_each(found))
    after = sum(
        next((t.ms or 0 for t in found.trials if (t.step, t.precision) == pair), None)
        or next((t.reference_ms or 0 for t in found.trials if t.step == pair[0]), 0)
        for pair in found.chosen.items()
    )
    told = [f"{found.clips} validation clips; {taken} of {len(found.chosen)} encoders changed."]
    if after:
        told[0] += f" Encoders: {before:.1f} ms a clip as exported, {after:.1f} ms as chosen."
    if found.trained and found.reference.waf is not None and found.final.waf is not None:
        told.append(
            f"The whole pipeline: WAF {100 * found.reference.waf:.2f} as exported, "
            f"{100 * found.final.waf:.2f} as chosen; {found.final.agreement:.2%} of the labels "
            f"agree; probabilities move by {found.final.shift:.4f} on average. Budget: "
            f"{found.budget.waf:g} points, {found.budget.agreement:.0%}."
        )
    else:
        told.append(
            f"Weights are random and the clips made up: a least cosine of {found.budget.cosine:g} "
            "decided, and labels mean nothing."
        )
    return told


def _one_each(found: Outcome) -> list[Trial]:
    """A timed trial of each step."""
    timed: dict[str, Trial] = {}
    for trial in found.trials:
        if trial.reference_ms is not None:
            timed.setdefault(trial.step, trial)
    return list(timed.values())
