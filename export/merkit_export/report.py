"""The parity report, for readers (Markdown) and for machines (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merkit.bundle import Bundle
from merkit_export.parity import OutcomeParity, StepParity


@dataclass(frozen=True)
class Report:
    """What `merkit-export verify` found.

    Attributes:
        bundle: what was examined.
        steps: each ONNX step.
        made_up: the whole pipeline on made-up tensors.
        clips: the whole pipeline on media files, by the name of their set.
    """

    bundle: Bundle
    steps: Sequence[StepParity]
    made_up: OutcomeParity
    clips: Mapping[str, OutcomeParity]

    @property
    def passed(self) -> bool:
        """Whether everything agrees."""
        outcomes = (self.made_up, *self.clips.values())
        return all(s.passed for s in self.steps) and all(o.passed for o in outcomes)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "passed": self.passed,
            "bundle_id": self.bundle.bundle_id,
            "contract_id": self.bundle.contract.contract_id,
            "steps": {step.step: step.to_json() for step in self.steps},
            "made_up_clips": self.made_up.to_json(),
            "clips": {name: outcome.to_json() for name, outcome in self.clips.items()},
        }

    def lines(self) -> Iterator[str]:
        """One line of PASS or FAIL for each thing examined, and what failed in it."""
        for step in self.steps:
            told = f"{step.cases} inputs, at most {step.max_abs:.1e} apart"
            told += f", {step.batch:.1e} in a batch"
            yield from _verdict(step.step, told, step.problems)
        for name, outcome in {"made-up clips": self.made_up, **self.clips}.items():
            told = (
                f"{outcome.clips} clips, {outcome.labels_differ} labels differ, probabilities at "
            )
            told += f"most {outcome.max_abs:.1e} apart"
            yield from _verdict(name, told, outcome.problems)

    def markdown(self) -> str:
        """A page with the tables."""
        return "\n".join(_page(self)) + "\n"

    def write(self, markdown: Path | None, machine: Path | None) -> None:
        """Writes either file, where a path is given, through a temporary name."""
        for path, text in (
            (markdown, self.markdown()),
            (machine, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"),
        ):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.tmp")
                temporary.write_text(text, "utf-8")
                temporary.replace(path)


def _verdict(name: str, told: str, problems: Sequence[str]) -> Iterator[str]:
    yield f"{'FAIL' if problems else 'PASS'}  {name:<19} {told}"
    yield from (f"      {problem}" for problem in problems)


def _page(report: Report) -> Iterator[str]:
    tolerance = report.made_up.tolerance
    yield "# Parity: PyTorch against ONNX"
    yield ""
    yield "Written by `merkit-export verify`; do not edit."
    yield f"Bundle `{report.bundle.bundle_id}`, contract `{report.bundle.contract.contract_id}`."
    yield f"Differences are absolute unless named otherwise, and may be at most {tolerance:g}."
    yield ""
    yield "## Each step"
    yield ""
    yield "The same inputs through the torch module and through the graph that ships: every pattern"
    yield "of missing modalities, the smallest and the largest sizes, single clips and padded"
    yield "batches. *In a batch*: a clip alone against the same clip padded among others (ONNX both"
    yield "times). *Absent*: the influence of rubbish where an absent modality's values would be."
    yield ""
    yield "| step | inputs | difference | relative | least cosine | in a batch | absent | NaN |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for s in report.steps:
        yield (
            f"| `{s.step}` | {s.cases} | {s.max_abs:.1e} | {s.max_rel:.1e} | {s.min_cosine:.7f} "
            f"| {s.batch:.1e} | {s.absent:.1e} | {s.not_finite} |"
        )
    yield ""
    yield "## The whole pipeline"
    yield ""
    yield "`merkit.load(bundle).predict(file, text)` against the same client with the torch modules"
    yield "behind it. *Refused*: clips for which both give the same typed error."
    yield ""
    yield "| clips | number | refused | labels that differ | largest difference of a probability |"
    yield "|---|--:|--:|--:|--:|"
    for name, o in {"made-up tensors": report.made_up, **report.clips}.items():
        yield f"| {name} | {o.clips} | {o.refused} | {o.labels_differ} | {o.max_abs:.1e} |"
    failures = [line for line in report.lines() if not line.startswith("PASS")]
    if failures:
        yield from ("", "## What failed", "", "```", *failures, "```")
