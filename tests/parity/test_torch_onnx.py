"""Torch against the ONNX files that ship, in the real architectures at random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_run import SMALLEST

from merkit.bundle import Bundle
from merkit.pipeline import GROUPS
from merkit_export.clips import NamedClip, compare_clips
from merkit_export.parity import StepParity
from merkit_export.report import Report
from merkit_export.verify import verify

AGREE = 1e-4  # torch against ONNX
INVARIANT = 1e-5  # a clip alone against the clip in a padded batch


@pytest.fixture(scope="module")
def report(exported: Bundle, random_run: Path) -> Report:
    return verify(exported.root, random_run)


@pytest.fixture(scope="module")
def steps(report: Report) -> dict[str, StepParity]:
    return {step.step: step for step in report.steps}


STEPS = (
    "preprocess", "face_encoder", "face_encoder_large", "audio_encoder", "text_encoder",
    "joint_encoder", "fusion", "voting",
)  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_torch_and_onnx_agree(steps: dict[str, StepParity], name: str) -> None:
    step = steps[name]
    assert step.problems == []
    assert step.cases >= 19  # the mixes of modalities at two sizes, the largest clip, two batches
    assert step.max_abs <= AGREE
    assert (step.mismatched, step.not_finite) == (0, 0)


@pytest.mark.parametrize("name", STEPS)
def test_neighbours_and_padding_change_nothing(steps: dict[str, StepParity], name: str) -> None:
    assert steps[name].batch <= INVARIANT


@pytest.mark.parametrize("name", ["joint_encoder", "fusion"])
def test_what_absent_modalities_leave_has_no_influence(
    steps: dict[str, StepParity], name: str
) -> None:
    assert steps[name].absent <= INVARIANT


def test_answers_agree_for_every_mix_of_modalities(report: Report) -> None:
    assert report.made_up.problems == []
    assert report.made_up.max_abs <= AGREE
    assert report.made_up.refused == 3  # nothing present: alone twice, and once in a batch


def test_real_recordings_agree(exported: Bundle, random_run: Path, media: Path) -> None:
    names = ("single_face.mp4", "no_face.mp4", "jfk.flac", "single_face.jpg")
    words = {"single_face.mp4": "你好", "jfk.flac": "Ask not what your country can do for you."}
    clips = [NamedClip(name, media / name, words.get(name, "")) for name in names]
    outcome = compare_clips(exported, random_run, clips)
    assert outcome.problems == []
    assert (outcome.clips, outcome.refused) == (4, 0)


def test_widths_in_the_contract_are_the_encoders(exported: Bundle) -> None:
    tensors = exported.contract.tensors
    found = {group: tensors[tensor].shape[1] for group, tensor in GROUPS.items()}
    r = SMALLEST
    encoders = {"a": r.audio_encoder, "t": r.text_encoder, "v": r.face_encoder}
    encoders |= {"j": r.text_encoder, "V": r.face_encoder_large}
    assert found == {group: encoder.hidden for group, encoder in encoders.items()}
