"""Torch against ONNX, step by step: the proof without which no bundle is written.

An export can succeed and still compute something else: at another length, for another batch, in
a padded row, or where a modality is missing. Each step is therefore compared over the clips of
`samples` on the very inputs that torch made, and the graphs alone are asked whether a clip's
numbers depend on its neighbours, on padding, or on what an absent modality left behind.

Steps are the outer loop, and torch is done with a step before its graph is asked: of all modules
and graphs only one need be in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.walk import Walk
from merkit.contract import MODALITIES, Contract, StepSpec
from merkit.pipeline import DECODED_IN, GROUP_MODALITIES, GROUPS, OUTCOME, cut
from merkit_export import samples
from merkit_export.outcome import KEPT_PROBLEMS, Answer, OutcomeParity
from merkit_export.tolerance import AMPLIFIED, Tolerance
from merkit_export.walk import Step, Values, bundle_steps, torch_step
from merkit_training.speech.recognition.model import END, IMPOSSIBLE

__all__ = ["THREADS", "OutcomeParity", "StepParity", "compare_clips_steps", "compare_outputs"]
__all__ += ["compare_steps"]

THREADS = 2
Tolerances = Mapping[str, Tolerance]


@dataclass
class StepParity:
    """What was measured of one step. Differences are absolute unless named otherwise."""

    step: str
    tolerance: Tolerance = field(default_factory=lambda: Tolerance("fp32"))
    cosine_held: bool = True  # whether a lossy step must reach its least cosine on these inputs
    cases: int = 0  # inputs on which torch and ONNX were compared
    max_abs: float = 0.0  # torch against ONNX
    max_rel: float = 0.0  # the same, relative to the largest value of the tensor
    min_cosine: float = 1.0  # over rows of floating-point outputs
    batch: float = 0.0  # a clip alone against the clip in a padded batch of mixed lengths
    absent: float = 0.0  # influence of what stands in the place of an absent modality
    not_finite: int = 0  # outputs with NaN or infinity
    mismatched: int = 0  # outputs of whole numbers or truth values that differ, or shapes
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

    def neighbour(self, scale: float) -> float:
        """How much of a tensor whose largest value is `scale` others may change."""
        return self.tolerance.neighbour * (max(scale, 1.0) if self.tolerance.lossy else 1.0)


def compare_steps(
    backend: EmbeddedBackend,
    modules: Mapping[str, nn.Module],
    tolerances: Tolerances | None = None,
    clips_follow: bool = False,
) -> tuple[list[StepParity], OutcomeParity]:
    """Measures every ONNX step of a bundle, and the whole pipeline on made-up clips.

    Args:
        backend: the bundle, opened.
        modules: the torch module of each ONNX step.
        tolerances: of the steps; one that is not named is held to rounding.
        clips_follow: whether real clips will be compared too. Then lossy steps must reach their
            least cosine there and not here: their ranges were not made for noise.
    """
    contract = backend.contract
    usual, largest = samples.usual(contract), [samples.largest(contract)]
    if contract.hearing is not None:
        usual, largest = samples.heard(usual), [*largest, *samples.unworded(largest)]
    smallest = samples.smallest(contract)
    singles = [*smallest, *usual, *largest]
    cases = [*singles, samples.collate(usual), samples.collate(singles[:3])]
    first = len(smallest)  # of `usual` among the cases, and its batch right after singles
    batch = (range(first, first + len(usual)), len(singles))
    tolerances = tolerances or {}
    lossy = any(tolerance.lossy for tolerance in tolerances.values())
    reports = _reports(contract, tolerances, held=not (lossy and clips_follow))
    answers: list[Values] = [dict(case) for case in cases]
    values = _measure(backend, modules, cases, reports, batch, answers)
    outcome = OutcomeParity(contract.labels, advisory=lossy)
    for number, (want, got) in enumerate(zip(values, answers, strict=True)):
        _compare_outcomes(outcome, number, contract, want, got)
    return list(reports.values()), outcome


def compare_clips_steps(
    backend: EmbeddedBackend,
    modules: Mapping[str, nn.Module],
    clips: Sequence[Mapping[str, NDArray[Any]]],
    tolerances: Tolerances,
) -> list[StepParity]:
    """Measures every ONNX step on decoded clips, each `pipeline.DECODED_IN`."""
    reports = _reports(backend.contract, tolerances, held=True)
    _measure(backend, modules, clips, reports)
    return list(reports.values())


def _reports(contract: Contract, tolerances: Tolerances, held: bool) -> dict[str, StepParity]:
    names = [spec.name for spec in contract.steps if spec.kind == "onnx"]
    return {name: StepParity(name, tolerances.get(name, Tolerance("fp32")), held) for name in names}


def _measure(
    backend: EmbeddedBackend,
    modules: Mapping[str, nn.Module],
    cases: Sequence[Mapping[str, NDArray[Any]]],
    reports: Mapping[str, StepParity],
    batch: tuple[Sequence[int], int] | None = None,
    answers: Sequence[Values] = (),
) -> list[Values]:
    """Every tensor of every case as torch has it; what ONNX makes of them goes to the reports.

    `batch` names cases of one clip each, and the case that holds them all. To `answers` are added
    the tensors that the bundle makes by itself, where it skips what it skips for a user.
    """
    contract, onnx = backend.contract, bundle_steps(backend)
    walked = [dict(case) for case in cases]
    for spec in cut(contract.steps, DECODED_IN, OUTCOME):
        step, report = onnx[spec.name], reports.get(spec.name)
        wanted = _each(step if report is None else torch_step(spec, modules[spec.name]), walked)
        if report is not None:
            made = _each(step, walked)
            for values, want, got in zip(walked, wanted, made, strict=True):
                compare_outputs(report, spec, want, got)
                _probe_absent(report, spec, values, got, step)
            if batch is not None:
                _compare_rows(report, spec, [made[i] for i in batch[0]], made[batch[1]])
        for values, want in zip(walked, wanted, strict=True):
            values |= want
        for values in answers:
            Walk(backend, [spec], values, {}).run()
    return walked


def _each(step: Step, cases: Sequence[Values]) -> list[Values]:
    """A step on every case. No name holds it, so that a module is gone when its step is done."""
    return [step(values) for values in cases]


def _compare_outcomes(
    report: OutcomeParity, case: int, contract: Contract, want: Values, got: Values
) -> None:
    for row in range(len(want["label"])):
        answers: list[Answer | str] = []
        for values in (want, got):
            label = int(values["label"][row])
            scores = values["scores"][row]
            answers.append((contract.labels[label], scores) if label >= 0 else "nothing to judge")
        report.add(f"made-up clip {case}.{row}", answers[0], answers[1])


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
        elif not (np.isfinite(got).all() and np.isfinite(want).all()):
            report.not_finite += 1
            side = "ONNX" if np.isfinite(want).all() else "torch"
            report.complain(f"{where} holds NaN or infinity in {side}")
        else:
            _compare_floats(report, name, want, got)


def _compare_floats(report: StepParity, name: str, want: NDArray[Any], got: NDArray[Any]) -> None:
    where = f"{name} of shape {list(want.shape)}"
    difference = float(np.abs(want - got).max(initial=0.0))
    scale = float(np.abs(want).max(initial=0.0))
    cosine = _cosine(want, got)
    report.max_abs = max(report.max_abs, difference)
    report.max_rel = max(report.max_rel, difference / scale if scale else difference)
    report.min_cosine = min(report.min_cosine, cosine)
    most = report.tolerance.max_abs
    if most is not None and difference > most * AMPLIFIED.get(name, 1.0):
        report.complain(f"{where} differs by {difference:.2g}")
    if most is None and report.cosine_held and cosine < report.tolerance.cosine:
        report.complain(f"{where} has cosine {cosine:.4f}, not {report.tolerance.cosine:g}")


def _compare_rows(
    report: StepParity, spec: StepSpec, alone: Sequence[Values], together: Values
) -> None:
    """Each clip alone against its row of the batch, over what both hold; beyond, what fills up:
    zeros, and behind the last token its end."""
    for row, values in enumerate(alone):
        for name in spec.outputs:
            single, padded = values[name][0], together[name][row]
            overlap = tuple(slice(size) for size in single.shape)
            filled = np.zeros(padded.shape)
            if name == "token_logs":
                filled += np.where(np.arange(filled.shape[-1]) == END, 0.0, IMPOSSIBLE)
            filled[overlap] = single
            difference = float(np.abs(padded - filled).max(initial=0.0))
            report.batch = max(report.batch, difference)
            allowed = report.neighbour(float(np.abs(single).max(initial=0)))
            if not difference <= allowed * AMPLIFIED.get(name, 1.0):
                report.complain(f"{name} of clip {row} changes by {difference:.2g} in a batch")


def _probe_absent(
    report: StepParity, spec: StepSpec, values: Values, before: Values, step: Step
) -> None:
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
    after = step(probed)
    for name in spec.outputs:
        difference = float(np.abs(before[name] - after[name]).max(initial=0.0))
        report.absent = max(report.absent, difference) if difference == difference else np.inf
        if not difference <= report.neighbour(float(np.abs(before[name]).max(initial=0.0))):
            report.complain(f"{name} changes by {difference:.2g} with what an absent modality left")


def _cosine(want: NDArray[Any], got: NDArray[Any]) -> float:
    """The least over the rows that are not zero in the reference; 0 where only the other one is."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (want, got))
    own, other = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    products = (a * b).sum(1)[own > 0]
    return float(np.min(products / (own * np.where(other > 0, other, 1.0))[own > 0], initial=1.0))
