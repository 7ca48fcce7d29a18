"""Parity must fail when it should: each fault, planted in one step, is found and named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.backends.base import Tensors
from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import Bundle
from merkit.contract import StepSpec
from merkit_export import samples
from merkit_export.parity import OutcomeParity, StepParity, compare_outputs, compare_steps
from merkit_export.tolerance import ROUNDING, Budget, Tolerance, tolerance_of
from merkit_export.walk import bundle_steps, torch_steps, walk

Change = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]

INT8 = Tolerance("int8-qdq", None, 0.95, 0.02)


class Twin(nn.Module):
    """A torch module that computes a step with its own graph, and then changes the outputs."""

    def __init__(self, backend: EmbeddedBackend, spec: StepSpec, change: Change | None) -> None:
        super().__init__()
        self.backend, self.spec, self.change = backend, spec, change

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.spec.inputs, (t.numpy() for t in inputs), strict=True))
        made = self.backend.run_step(self.spec, given)
        outputs = tuple(torch.from_numpy(np.array(made[name])) for name in self.spec.outputs)
        return self.change(inputs, outputs) if self.change else outputs


@pytest.fixture(scope="module")
def backend(toy_bundle: Bundle) -> Iterator[EmbeddedBackend]:
    backend = EmbeddedBackend(toy_bundle, providers=["cpu"], threads=1)
    yield backend
    backend.close()


def measured(
    backend: EmbeddedBackend, step: str = "", change: Change | None = None
) -> tuple[dict[str, StepParity], OutcomeParity]:
    steps = [spec for spec in backend.contract.steps if spec.kind == "onnx"]
    modules = {s.name: Twin(backend, s, change if s.name == step else None) for s in steps}
    reports, outcome = compare_steps(backend, modules)
    return {report.step: report for report in reports}, outcome


def test_an_honest_pipeline_agrees_everywhere(backend: EmbeddedBackend) -> None:
    reports, outcome = measured(backend)
    # The toy's encoders average padding in, so its invariance checks may complain; no others.
    for report in reports.values():
        assert report.cases > 15
        assert (report.max_abs, report.mismatched, report.not_finite) == (0.0, 0, 0)
    assert outcome.passed
    assert outcome.clips > 20


@pytest.mark.parametrize(
    ("step", "change", "word"),
    [
        ("face_encoder", lambda _, out: (out[0] + 0.01,), "differs by 0.01"),
        ("text_encoder", lambda _, out: (out[0].double(),), "not float64"),
        ("joint_encoder", lambda _, out: (out[0][:, 1:],), "not float32"),
        ("voting", lambda _, out: (1 - out[0], *out[1:]), "label"),
    ],
    ids=["value", "type", "shape", "label"],
)
def test_a_fault_is_found_in_the_step_that_has_it(
    backend: EmbeddedBackend, step: str, change: Change, word: str
) -> None:
    spec = backend.contract.step(step)
    twin = Twin(backend, spec, change)
    onnx = bundle_steps(backend)
    values = walk(backend.contract, onnx, samples.usual(backend.contract)[0])
    faulty = values | torch_steps(backend.contract, {step: twin})[step](values)
    report = StepParity(step)
    compare_outputs(report, spec, faulty, onnx[step](values))
    assert not report.passed
    assert word in report.problems[0]


def test_a_wrong_label_fails_the_whole_pipeline(backend: EmbeddedBackend) -> None:
    def swap(_: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((out[0] + 1) % 6, *out[1:])

    reports, outcome = measured(backend, "voting", swap)
    assert not reports["voting"].passed
    assert outcome.labels_differ > 0
    assert not outcome.passed


class Padding(EmbeddedBackend):
    """Its audio encoder averages padding in, as one without a mask does."""

    def run_step(self, step: StepSpec, given: Tensors) -> dict[str, NDArray[Any]]:
        made = super().run_step(step, given)
        if step.name == "audio_encoder":
            width = given["audio_values"].shape[1]
            made["audio_features"] = made["audio_features"] * np.float32(1 - 1e-6 * width)
        return made


def test_averaged_padding_is_found(toy_bundle: Bundle) -> None:
    backend = Padding(toy_bundle, providers=["cpu"], threads=1)
    reports, _ = measured(backend)
    backend.close()
    assert reports["audio_encoder"].batch > ROUNDING
    assert "in a batch" in reports["audio_encoder"].problems[0]


def test_a_step_in_fewer_bits_is_held_to_its_direction(backend: EmbeddedBackend) -> None:
    spec = backend.contract.step("face_encoder")
    want = {"face_features": np.eye(2, 8, dtype=np.float32)}
    tilted = {"face_features": want["face_features"] + np.float32(0.05)}
    for tolerance, passes in ((INT8, True), (Tolerance("fp16", None, 0.999), False)):
        for held in (True, False):
            report = StepParity("face_encoder", tolerance, held)
            compare_outputs(report, spec, want, tilted)
            assert report.passed == (passes or not held)
    gone = {"face_features": want["face_features"] * np.float32(np.nan)}
    report = StepParity("face_encoder", INT8, False)
    compare_outputs(report, spec, want, gone)
    assert "NaN" in report.problems[0]


def test_what_lossy_steps_do_to_made_up_answers_is_told_and_fails_nothing(
    backend: EmbeddedBackend,
) -> None:
    def swap(_: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (out[0].flip(2), *out[1:])

    steps = [spec for spec in backend.contract.steps if spec.kind == "onnx"]
    modules = {s.name: Twin(backend, s, swap if s.name == "fusion" else None) for s in steps}
    _, exact = compare_steps(backend, modules)
    _, lossy = compare_steps(backend, modules, {"face_encoder": INT8})
    assert not exact.passed
    assert lossy.passed
    assert lossy.labels_differ == exact.labels_differ > 0


def test_modules_are_asked_for_one_after_another(backend: EmbeddedBackend) -> None:
    class Lone(Mapping[str, nn.Module]):
        asked: ClassVar[list[str]] = []

        def __getitem__(self, name: str) -> nn.Module:
            self.asked.append(name)
            return Twin(backend, backend.contract.step(name), None)

        def __iter__(self) -> Iterator[str]:
            return (s.name for s in backend.contract.steps if s.kind == "onnx")

        def __len__(self) -> int:
            return len(list(iter(self)))

    compare_steps(backend, Lone())
    assert len(Lone.asked) == len(set(Lone.asked)) == len(Lone())


@pytest.mark.parametrize("tolerance", [Tolerance("fp32"), INT8], ids=["fp32", "int8"])
@pytest.mark.parametrize(
    ("want", "got", "words"),
    [
        ([1.0, np.nan], [1.0, 1.0], "in torch"),
        ([1.0, 1.0], [np.inf, 1.0], "in ONNX"),
        ([1.0, 1.0], [0.0, 0.0], "differs by 1|cosine 0.0000"),
    ],
)
def test_nan_on_either_side_and_silence_are_no_agreement(
    backend: EmbeddedBackend, tolerance: Tolerance, want: list[float], got: list[float], words: str
) -> None:
    spec = backend.contract.step("face_encoder")
    report = StepParity(spec.name, tolerance)
    sides = ({spec.outputs[0]: np.array([values], np.float32)} for values in (want, got))
    compare_outputs(report, spec, *sides)
    assert not report.passed
    assert re.search(words, report.problems[0])
    both = StepParity(spec.name, tolerance)
    nothing = {spec.outputs[0]: np.zeros((1, 2), np.float32)}
    compare_outputs(both, spec, nothing, nothing)
    assert both.passed, "where nothing is there, both are silent"


def test_a_budget_without_an_answer_is_not_kept() -> None:
    found = OutcomeParity(("a", "b"), Budget())
    found.add("unreadable", "ClipUnreadableError", "ClipUnreadableError")
    assert "no clip was answered" in found.close().problems[0]
    exact = OutcomeParity(("a", "b"))
    exact.add("unreadable", "ClipUnreadableError", "ClipUnreadableError")
    assert exact.close().passed


def test_a_manifest_says_what_its_steps_are_held_to() -> None:
    manifest = {"precision": {"a": {"precision": "int8-qdq"}, "b": "fp32; rounded", "c": 3}}
    assert tolerance_of(manifest, "a").lossy
    for step in "bcd":
        assert tolerance_of(manifest, step).max_abs == ROUNDING
    assert not tolerance_of({}, "a").lossy


def test_the_budget_decides_on_labelled_clips() -> None:
    sure, unsure = np.array([0.9, 0.1], np.float32), np.array([0.2, 0.8], np.float32)

    def judged(flips: int, truth: str = "a") -> OutcomeParity:
        outcome = OutcomeParity(("a", "b"), Budget(agreement=0.9, waf_loss=0.2, ece_shift=1.0))
        for i in range(20):
            got = ("b", unsure) if i < flips else ("a", sure)
            outcome.add(f"clip {i}", ("a", sure), got, truth)
        return outcome.close()

    assert judged(0).passed
    assert judged(2).passed
    assert (judged(2).agreement, judged(2).flips[0][:6]) == (0.9, "clip 0")
    assert "labels agree" in judged(3).problems[0]
    assert "WAF loses" in judged(8).problems[1]
    unlabelled = judged(3, truth="")
    assert unlabelled.scores() is None
    assert len(unlabelled.problems) == 1
    torch, bundle = judged(2).scores() or pytest.fail("clips are labelled")
    assert torch.waf == 1.0 > bundle.waf
    assert torch.ece == pytest.approx(0.1, abs=1e-6)


def test_answers_and_errors_are_compared() -> None:
    scores = np.array([0.7, 0.3], np.float32)
    outcome = OutcomeParity()
    outcome.add("same", ("a", scores), ("a", scores + 5e-5))
    outcome.add("refused", "NoEvidenceError", "NoEvidenceError")
    assert outcome.passed
    assert (outcome.clips, outcome.refused) == (2, 1)
    outcome.add("only one", ("a", scores), "NoEvidenceError")
    outcome.add("apart", ("a", scores), ("a", scores + 1e-3))
    outcome.add("label", ("a", scores), ("b", scores))
    outcome.add("nan", ("a", scores), ("a", scores * np.nan))
    assert [problem.partition(":")[0] for problem in outcome.problems] == [
        "only one", "apart", "label", "nan",
    ]  # fmt: skip
    assert outcome.labels_differ == 1
