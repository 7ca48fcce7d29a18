"""A step exported tensor by tensor is the step exported whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from merkit.contract import Contract
from merkit.errors import MerkitError
from merkit.ort import import_onnxruntime
from merkit.pipeline import GROUPS, standard_contract
from merkit_export import shards, storage
from merkit_training.labels import MER6
from merkit_training.runs import rounded

WIDTH = 96


class Small(nn.Module):
    """A face encoder with weights of every kind that compaction knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.patches = nn.Conv2d(3, 64, 16, 16)
        self.steps, self.halves = nn.Linear(64, WIDTH), nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            self.steps.weight.copy_(rounded(self.steps.weight, "int8"))
            self.halves.weight.copy_(self.halves.weight.half().float())

    def forward(self, face_grid: Tensor) -> Tensor:
        found = self.patches(face_grid).flatten(2).mean(2)
        return torch.tanh(self.halves(torch.tanh(self.steps(found))))


@pytest.fixture(scope="module")
def contract() -> Contract:
    return standard_contract(MER6, {**dict.fromkeys(GROUPS, 8), "v": WIDTH})


def exported(contract: Contract, path: Path, limit: int) -> shards.Exported:
    example = {"face_grid": np.ones((2, 3, 128, 128), np.float32)}
    return shards.export(
        Small().eval(), contract.step("face_encoder"), contract, example, path, limit
    )


def test_shards_hold_what_the_whole_holds(contract: Contract, tmp_path: Path) -> None:
    whole = exported(contract, tmp_path / "whole" / "model.onnx", storage.LIMIT)
    parts = exported(contract, tmp_path / "parts" / "model.onnx", 10_000)
    assert parts.digest == whole.digest
    assert parts.nodes == whole.nodes
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "parts" / "model.onnx").stat().st_size < 20_000
    bare = onnx.load(tmp_path / "parts" / "model.onnx", load_external_data=False)
    properties = {entry.key: entry.value for entry in bare.metadata_props}
    assert properties["contract_id"] == contract.contract_id
    ort = import_onnxruntime()
    given = {"face_grid": np.random.default_rng(0).normal(size=(2, 3, 128, 128)).astype("f4")}
    answers = [
        ort.InferenceSession(str(tmp_path / n / "model.onnx")).run(None, given)[0]
        for n in ("whole", "parts")
    ]
    np.testing.assert_array_equal(*answers)


def test_a_changed_weight_changes_the_digest(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = exported(contract, tmp_path / "a" / "model.onnx", 10_000)
    was = Small.__init__

    def other(self: Small) -> None:
        was(self)
        with torch.no_grad():
            self.patches.weight[0, 0, 0, 0] += 1

    monkeypatch.setattr(Small, "__init__", other)
    assert exported(contract, tmp_path / "b" / "model.onnx", 10_000).digest != first.digest


def test_a_module_of_another_shape_leaves_nothing(contract: Contract, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 128 * 128, 5))
    example = {"face_grid": np.ones((2, 3, 128, 128), np.float32)}
    step = contract.step("face_encoder")
    with pytest.raises(MerkitError, match="face_features"):
        shards.export(module, step, contract, example, tmp_path / "m" / "model.onnx", 10_000)
    assert not (tmp_path / "m" / "model.onnx").exists()
