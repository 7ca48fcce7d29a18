"""The gate's report, for terminals, for readers (Markdown), for machines (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merkit.bundle import Bundle
from merkit_export.outcome import OutcomeParity
from merkit_export.parity import StepParity
from merkit_export.tolerance import Budget

NO_CLIPS = (
    "steps are lossy, and no clips were given: what that costs shows only in answers "
    "(give --clips DIR)"
)


@dataclass(frozen=True)
class Report:
    """What `merkit-export verify` found.

    Attributes:
        bundle: what was examined.
        steps: each ONNX step on made-up clips of every size.
        made_up: the whole pipeline on the same.
        clips: the whole pipeline on media files, by the name of their set.
        steps_on_clips: each ONNX step on some of these; empty without clips.
        budget: what the answers may cost, where steps are lossy; else None.
    """

    bundle: Bundle
    steps: Sequence[StepParity]
    made_up: OutcomeParity
    clips: Mapping[str, OutcomeParity]
    steps_on_clips: Sequence[StepParity] = ()
    budget: Budget | None = None

    @property
    def unjudged(self) -> bool:
        """Whether steps are lossy and nothing shows what that costs."""
        return self.budget is not None and not self.clips

    @property
    def passed(self) -> bool:
        """Whether everything agrees, or costs no more than it may."""
        return not self.unjudged and not any(self._problems())

    def failures(self) -> Iterator[str]:
        """What failed, a sentence each."""
        if self.unjudged:
            yield NO_CLIPS
        yield from self._problems()

    def _problems(self) -> Iterator[str]:
        for step in (*self.steps, *self.steps_on_clips):
            yield from (f"{step.step}: {problem}" for problem in step.problems)
        for name, outcome in self.outcomes().items():
            yield from (f"{name}: {problem}" for problem in outcome.problems)

    def outcomes(self) -> dict[str, OutcomeParity]:
        """The whole pipeline's comparisons by name."""
        return {"made-up clips": self.made_up, **self.clips}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "passed": self.passed,
            "failures": list(self.failures()),
            "bundle_id": self.bundle.bundle_id,
            "contract_id": self.bundle.contract.contract_id,
            "budget": vars(self.budget) if self.budget else None,
            "steps": {step.step: step.to_json() for step in self.steps},
            "steps_on_clips": {step.step: step.to_json() for step in self.steps_on_clips},
            "made_up_clips": self.made_up.to_json(),
            "clips": {name: outcome.to_json() for name, outcome in self.clips.items()},
        }

    def summary(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        keys = ("clips", "labelled", "agreement", "max_abs", "torch", "bundle")
        plain = {name: outcome.to_json() for name, outcome in self.clips.items()}
        return {
            "passed": self.passed,
            "budget": vars(self.budget) if self.budget else None,
            "steps": {
                s.step: {"max_abs": s.max_abs, "min_cosine": s.min_cosine}
                for s in self.steps_on_clips or self.steps
            },
            "clips": {n: {k: o[k] for k in keys if k in o} for n, o in plain.items()},
        }

    def lines(self) -> Iterator[str]:
        """One line of PASS or FAIL for each thing examined, and what failed in it."""
        for where, steps in (("", self.steps), (" (clips)", self.steps_on_clips)):
            for step in steps:
                told = f"{step.cases} inputs, at most {step.max_abs:.1e} apart"
                if step.tolerance.lossy:
                    told += f", cosine {step.min_cosine:.4f} or more ({step.tolerance.precision})"
                told += "" if where else f", {step.batch:.1e} in a batch"
                yield from _verdict(step.step + where, told, step.problems)
        for name, outcome in self.outcomes().items():
            yield from _verdict(name, _answers(outcome), outcome.problems)
        if self.unjudged:
            yield from _verdict("answers", NO_CLIPS, [""])

    def markdown(self) -> str:
        """A page with the tables."""
        return "\n".join(_page(self)) + "\n"

    def write(self, markdown: Path | None, machine: Path | None, html: Path | None = None) -> None:
        """Writes each file for which a path is given, through a temporary name."""
        from merkit_export.page import page

        for path, make in (
            (markdown, self.markdown),
            (machine, lambda: json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"),
            (html, lambda: page(self)),
        ):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.tmp")
                temporary.write_text(make(), "utf-8")
                temporary.replace(path)


def _answers(outcome: OutcomeParity) -> str:
    told = f"{outcome.clips} clips, {outcome.labels_differ} labels differ, probabilities at "
    told += f"most {outcome.max_abs:.1e} apart"
    if found := outcome.scores():
        torch, bundle = found
        told += (
            f"; WAF {torch.waf:.4f} -> {bundle.waf:.4f}, ECE {torch.ece:.4f} -> {bundle.ece:.4f}"
        )
    return told


def _verdict(name: str, told: str, problems: Sequence[str]) -> Iterator[str]:
    yield f"{'FAIL' if problems else 'PASS'}  {name:<19} {told}"
    yield from (f"      {problem}" for problem in problems if problem)


def _page(report: Report) -> Iterator[str]:
    yield "# Parity: PyTorch against ONNX"
    yield ""
    yield "Written by `merkit-export verify`; do not edit."
    yield f"Bundle `{report.bundle.bundle_id}`, contract `{report.bundle.contract.contract_id}`."
    yield "Differences are absolute unless named otherwise. *Held to*: the largest difference that"
    yield "a step may show, or, of a lossy one, the least cosine of a clip's features."
    yield ""
    yield "## Each step"
    yield ""
    yield "The same inputs through the torch module and through the graph that ships: every pattern"
    yield "of missing modalities, the smallest and the largest sizes, single clips and padded"
    yield "batches. *In a batch*: a clip alone against the same clip padded among others (ONNX both"
    yield "times). *Absent*: the influence of rubbish where an absent modality's values would be."
    yield ""
    yield from _step_table(report.steps)
    if report.steps_on_clips:
        yield ""
        yield f"The same on {report.steps_on_clips[0].cases} of the clips below, each alone."
        yield ""
        yield from _step_table(report.steps_on_clips)
    yield ""
    yield "## The whole pipeline"
    yield ""
    yield "`merkit.load(bundle).predict(file, text)` against the same client with the torch modules"
    yield "behind it. *Refused*: clips for which both give the same typed error. WAF and"
    yield "calibration error (ECE) where labels are given: torch, then the bundle."
    yield ""
    yield (
        "| clips | number | refused | labels that differ | largest difference of a probability "
        "| WAF | ECE |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, o in {"made-up tensors": report.made_up, **report.clips}.items():
        found = o.scores()
        told = [f"{a:.4f}, {b:.4f}" for a, b in _pairs(found)] if found else ["–", "–"]
        yield (
            f"| {name} | {o.clips} | {o.refused} | {o.labels_differ} | {o.max_abs:.1e} "
            f"| {told[0]} | {told[1]} |"
        )
    if flips := [flip for o in report.outcomes().values() for flip in o.flips]:
        yield from ("", "Labels that differ, the first of each set:", "")
        yield from (f"- {flip}" for flip in flips)
    failures = [line for line in report.lines() if not line.startswith("PASS")]
    if failures:
        yield from ("", "## What failed", "", "```", *failures, "```")


def _pairs(found: tuple[Any, Any]) -> list[tuple[float, float]]:
    torch, bundle = found
    return [(torch.waf, bundle.waf), (torch.ece, bundle.ece)]


def _step_table(steps: Sequence[StepParity]) -> Iterator[str]:
    yield (
        "| step | precision | held to | inputs | difference | relative | least cosine "
        "| in a batch | absent | NaN |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for s in steps:
        yield (
            f"| `{s.step}` | {s.tolerance.precision.partition(';')[0]} | {s.tolerance.told()} "
            f"| {s.cases} | {s.max_abs:.1e} | {s.max_rel:.1e} | {s.min_cosine:.7f} "
            f"| {s.batch:.1e} | {s.absent:.1e} | {s.not_finite} |"
        )
