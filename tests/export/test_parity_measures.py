"""Parity must fail when it should: each fault, planted in one step, is found and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import Bundle
from merkit.contract import StepSpec
from merkit_export import samples
from merkit_export.parity import OutcomeParity, StepParity, compare_outputs, compare_steps
from merkit_export.walk import bundle_steps, torch_steps, walk

Change = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]


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


def test_averaged_padding_is_found(backend: EmbeddedBackend) -> None:
    reports, _ = measured(backend)
    assert reports["audio_encoder"].batch > reports["audio_encoder"].tolerance
    assert "in a batch" in reports["audio_encoder"].problems[0]


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
