"""Torch against ONNX, step by step: the proof without which no bundle is written.

An export can succeed and still compute something else: at another length, for another batch, in
a padded row, or where a modality is missing. Each step is therefore compared over the clips of
`samples` on the very inputs that torch made, and the graphs alone are asked whether a clip's
numbers depend on its neighbours, on padding, or on what an absent modality left behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from merkit.backends.embedded import EmbeddedBackend
from merkit.contract import MODALITIES, Contract, StepSpec
from merkit.pipeline import GROUP_MODALITIES, GROUPS
from merkit_export import samples
from merkit_export.walk import Step, Values, bundle_steps, torch_steps, walk

TOLERANCE = 1e-4
"""Largest absolute difference allowed between torch and ONNX, and between a clip alone and the
same clip in a padded batch. Features have magnitudes around 1."""

THREADS = 2
KEPT_PROBLEMS = 5
Answer = tuple[str, NDArray[np.float32]]
"""A label and the probability of each class."""


@dataclass
class StepParity:
    """What was measured of one step. Differences are absolute unless named otherwise."""

    step: str
    cases: int = 0  # inputs on which torch and ONNX were compared
    max_abs: float = 0.0  # torch against ONNX
    max_rel: float = 0.0  # the same, relative to the largest value of the tensor
    min_cosine: float = 1.0  # over rows of floating-point outputs
    batch: float = 0.0  # a clip alone against the clip in a padded batch of mixed lengths
    absent: float = 0.0  # influence of what stands in the place of an absent modality
    not_finite: int = 0  # outputs with NaN or infinity
    mismatched: int = 0  # outputs of whole numbers or truth values that differ, or shapes
    tolerance: float = TOLERANCE
    problems: list[str] = field(default_factory=list)  # the first few cases that failed

    @property
    def passed(self) -> bool:
        """Whether every difference is within tolerance, and nothing is NaN."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}

    def complain(self, problem: str) -> None:
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(problem)


@dataclass
class OutcomeParity:
    """Torch against the embedded pipeline, from a clip's tensors or bytes to its answer."""

    clips: int = 0
    labels_differ: int = 0
    refused: int = 0  # clips that both refuse with the same error: nothing in them to judge
    max_abs: float = 0.0  # of a probability, over all clips and classes
    tolerance: float = TOLERANCE
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all labels agree and all probabilities are within tolerance."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}

    def add(self, name: str, want: Answer | str, got: Answer | str) -> None:
        """Notes one clip: torch's answer and the bundle's.

        An answer is a label with probabilities [classes], or the name of the error that says why
        there is none.
        """
        self.clips += 1
        if isinstance(want, str) or isinstance(got, str):
            self.refused += 1
            if want != got:
                self._complain(f"{name}: torch says {_told(want)}, the bundle {_told(got)}")
            return
        difference = float(np.abs(want[1] - got[1]).max())
        self.max_abs = max(self.max_abs, difference)
        self.labels_differ += want[0] != got[0]
        if want[0] != got[0] or not difference <= self.tolerance:
            told = f"torch says {want[0]}, the bundle {got[0]}"
            self._complain(f"{name}: {told}, {difference:.2g} apart")

    def _complain(self, problem: str) -> None:
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(problem)


def compare_steps(
    backend: EmbeddedBackend, modules: Mapping[str, nn.Module]
) -> tuple[list[StepParity], OutcomeParity]:
    """Measures every ONNX step of a bundle, and the whole pipeline on made-up clips.

    Args:
        backend: the bundle, opened.
        modules: the torch module of each ONNX step.
    """
    contract = backend.contract
    onnx = bundle_steps(backend)
    torch = onnx | torch_steps(contract, modules)
    batch = samples.usual(contract)
    singles = [*samples.smallest(contract), *batch, samples.largest(contract)]
    cases = [*singles, samples.collate(batch), samples.collate(singles[:3])]
    reports = {s.name: StepParity(s.name) for s in contract.steps if s.kind == "onnx"}
    specs = [contract.step(name) for name in reports]
    outcome = OutcomeParity()
    for number, case in enumerate(cases):
        values = walk(contract, torch, case)
        for spec in specs:
            compare_outputs(reports[spec.name], spec, values, onnx[spec.name](values))
            _probe_absent(reports[spec.name], spec, values, onnx[spec.name])
        _compare_outcomes(outcome, number, contract, values, backend.infer(case))
    alone = [walk(contract, onnx, case) for case in batch]
    together = walk(contract, onnx, samples.collate(batch))
    for spec in specs:
        _compare_rows(reports[spec.name], spec, alone, together)
    return list(reports.values()), outcome


def _compare_outcomes(
    report: OutcomeParity, case: int, contract: Contract, want: Values, got: Values
) -> None:
    for row in range(len(want["label"])):
        answers: list[Answer | str] = []
        for values in (want, got):
            label = int(values["label"][row])
            scores = values["scores"][row]
            answers.append((contract.labels[label], scores) if label >= 0 else "nothing to judge")
        report.add(f"made-up clip {case}.{row}", *answers)


def _told(answer: Answer | str) -> str:
    return answer if isinstance(answer, str) else answer[0]


def compare_outputs(report: StepParity, spec: StepSpec, reference: Values, made: Values) -> None:
    """Notes how far what a graph `made` of one input is from the reference."""
    report.cases += 1
    for name in spec.outputs:
        want, got = reference[name], made[name]
        where = f"{name} of shape {list(want.shape)}"
        if want.shape != got.shape or want.dtype != got.dtype:
            report.mismatched += 1
            report.complain(f"{where} is {got.dtype} {list(got.shape)} in ONNX, not {want.dtype}")
        elif want.dtype.kind != "f":
            if not np.array_equal(want, got):
                report.mismatched += 1
                report.complain(f"{where} differs")
        elif not np.isfinite(got).all():
            report.not_finite += 1
            report.complain(f"{where} holds NaN or infinity")
        else:
            difference = float(np.abs(want - got).max(initial=0.0))
            scale = float(np.abs(want).max(initial=0.0))
            report.max_abs = max(report.max_abs, difference)
            report.max_rel = max(report.max_rel, difference / scale if scale else difference)
            report.min_cosine = min(report.min_cosine, _cosine(want, got))
            if difference > report.tolerance:
                report.complain(f"{where} differs by {difference:.2g}")


def _compare_rows(
    report: StepParity, spec: StepSpec, alone: Sequence[Values], together: Values
) -> None:
    """Each clip alone against its row of the batch, over what both hold; beyond, zeros."""
    for row, values in enumerate(alone):
        for name in spec.outputs:
            single, padded = values[name][0], together[name][row]
            overlap = tuple(slice(size) for size in single.shape)
            beyond = np.array(padded, np.float64)
            beyond[overlap] -= np.array(single, np.float64)
            difference = float(np.abs(beyond).max(initial=0.0))
            report.batch = max(report.batch, difference)
            if not difference <= report.tolerance:
                report.complain(f"{name} of clip {row} changes by {difference:.2g} in a batch")


def _probe_absent(report: StepParity, spec: StepSpec, values: Values, step: Step) -> None:
    """Fills what belongs to absent modalities with rubbish; outputs must not move.

    Fusion must bear even NaN there. The joint encoder meets loud noise in the spectrum's place.
    """
    if "presence" not in spec.inputs:
        return
    probed, presence = dict(values), values["presence"]
    for group, tensor in GROUPS.items():
        if tensor in spec.inputs:
            columns = [MODALITIES.index(m) for m in GROUP_MODALITIES[group]]
            here = presence[:, columns].any(axis=1, keepdims=True)
            probed[tensor] = np.where(here, values[tensor], np.float32(np.nan))
    if "log_mel" in spec.inputs:
        noise = np.random.default_rng(0).normal(0, 3, values["log_mel"].shape).astype(np.float32)
        here = presence[:, MODALITIES.index("audio")][:, None, None]
        probed["log_mel"] = np.where(here, values["log_mel"], noise)
    before, after = step(values), step(probed)
    for name in spec.outputs:
        difference = float(np.abs(before[name] - after[name]).max(initial=0.0))
        report.absent = max(report.absent, difference) if difference == difference else np.inf
        if not difference <= report.tolerance:
            report.complain(f"{name} changes by {difference:.2g} with what an absent modality left")


def _cosine(want: NDArray[Any], got: NDArray[Any]) -> float:
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (want, got))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.min((a * b).sum(1)[norms > 0] / norms[norms > 0], initial=1.0))
