"""`verify` finds bundles that answer unsoundly, not only those whose bytes have changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from merkit.bundle import Bundle, write_manifest
from merkit.cli.inspection import Check, describe, verify


def failed(root: Path) -> list[Check]:
    return [check for check in verify(root) if not check.passed]


def damaged(toy: Bundle, root: Path, step: str, value: float) -> Path:
    """A bundle whose manifest is right and whose step `step` has `value` among its weights."""
    shutil.copytree(toy.root, root)
    path = root / step / "1" / "model.onnx"
    model = onnx.load(path)
    weights = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    array = numpy_helper.to_array(weights).copy()
    array.flat[:] = value
    weights.CopyFrom(numpy_helper.from_array(array, weights.name))
    onnx.save(model, path)
    write_manifest(root, toy.contract, {}, {})
    return root


@pytest.mark.parametrize(("step", "mixes"), [("fusion", 7), ("face_encoder", 4)])
def test_weights_that_are_not_numbers(
    toy_bundle: Bundle, tmp_path: Path, step: str, mixes: int
) -> None:
    found = failed(damaged(toy_bundle, tmp_path / "b", step, np.nan))
    assert len(found) == mixes
    assert all("NaN" in check.detail or "finite" in check.detail for check in found)


def test_a_rendered_config_of_another_contract(toy_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "b"
    shutil.copytree(toy_bundle.root, root)
    (root / "voting" / "config.pbtxt").write_text('contract_id: "of another bundle"')
    (check,) = failed(root)
    assert check.name == "configs"
    assert "voting" in check.detail


def test_everything_in_the_manifest_is_shown(toy_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "b"
    shutil.copytree(toy_bundle.root, root)
    details: dict[str, Any] = {
        "name": "mine",
        "notice": "Synthetic.",
        "voters": [{"name": "a+t+v", "groups": ["a", "t", "v"], "waf": 0.61234, "temperature": 1}],
        "provenance": {"recipe": {"seed": 7}, "versions": ["torch 2"], "stages": [{"n": 1}]},
    }
    bundle = write_manifest(root, toy_bundle.contract, {}, details)
    text = "\n".join(describe(bundle))
    for said in ("mine", "Synthetic.", "waf 0.6123", "a+t+v", "seed", "7", "torch 2"):
        assert said in text
