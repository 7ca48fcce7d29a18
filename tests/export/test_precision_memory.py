"""What a search holds: no encoder that it does not look at, and of inputs those of one step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from merkit.bundle import Bundle
from merkit.pipeline import GROUPS
from merkit_export.precision import judge as judging
from merkit_export.precision import ondemand
from merkit_export.precision.judge import Judge
from merkit_export.precision.material import Material, made_up_material


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps whose graphs were opened on demand."""
    names: list[str] = []
    real = ondemand.open_sessions

    def watched(*arguments: Any, only: list[str]) -> Any:
        names.extend(only)
        return real(*arguments, only=only)

    monkeypatch.setattr(ondemand, "open_sessions", watched)
    return names


def test_a_verdict_opens_no_encoder(toy_bundle: Bundle, opened: list[str]) -> None:
    contract = toy_bundle.contract
    judge = Judge(toy_bundle, made_up_material(contract, 1, 2), 1, "cpu")
    features = {
        name: np.zeros((2, int(contract.tensors[name].shape[1])), np.float32)
        for name in GROUPS.values()
    }
    assert judge.verdict(features, features).agreement == 1
    judge.close()
    assert sorted(opened) == ["fusion", "preprocess", "voting"]


def test_inputs_are_computed_once_for_all_candidates_of_a_step(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_up_material(toy_bundle.contract, 1, 2)
    reads: list[int] = []

    def read(number: int) -> Any:
        reads.append(number)
        return made.read(number)

    judge = Judge(toy_bundle, Material(made.names, read), 1, "cpu")
    face, sound = (toy_bundle.contract.step(n) for n in ("face_encoder", "audio_encoder"))
    reads.clear()
    for number in (0, 1, 0, 1):
        judge.given(face, number)
    assert reads == [0, 1]
    want = judge.inputs("audio_encoder", made.read(1))
    found = judge.given(sound, 1)
    assert all(np.array_equal(found[name], want[name]) for name in sound.inputs)
    judge.given(face, 0)
    assert reads == [0, 1, 1, 0]  # of one step at a time
    monkeypatch.setattr(judging, "KEPT_BYTES", 0)
    for _ in range(2):
        judge.given(sound, 0)
    assert reads[-2:] == [0, 0]  # and no more than fits
    judge.close()
