"""Weights are rounded once, when they are saved, and by no more than the recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merkit_training.runs import load_step_files, rounded, save_step, write_json


def weights_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(64, 32), (16, 8, 10), (2, 4096)])
def test_eight_bits_lose_less_than_half_a_step(shape: tuple[int, ...]) -> None:
    before = weights_of(*shape)
    after = rounded(before, "int8")
    largest = before.flatten(1).abs().amax(dim=1)
    apart = (after - before).flatten(1).abs().amax(dim=1)
    assert (apart <= 1.001 * largest / 127 / 2).all()
    assert all(len(row.unique()) <= 255 for row in after.flatten(1))
    assert torch.equal(rounded(after, "int8"), after)


def test_rows_of_any_size_keep_their_sign_and_zeros() -> None:
    rows = weights_of(4, 512) * torch.tensor([[1e-30], [1e30], [0.0], [1.0]])
    after = rounded(rows, "int8")
    assert after.isfinite().all()
    assert (after[2] == 0).all()
    assert ((after / rows)[[0, 1, 3]].nan_to_num(0) >= 0).all()


def test_small_tensors_and_vectors_are_no_matrices() -> None:
    small, vector, whole = weights_of(8, 8), weights_of(2048), torch.arange(4096).view(64, 64)
    assert torch.equal(rounded(small, "int8"), small)
    assert torch.equal(rounded(vector, "int8"), vector.half())
    assert torch.equal(rounded(whole, "int8"), whole)


@pytest.mark.parametrize(
    ("recipe", "step", "expected"),
    [
        ({"weights": "int8"}, "face_encoder", "int8"),
        ({"weights": "int8"}, "fusion", "float16"),
        ({"weights": "float16"}, "face_encoder", "float16"),
        ({}, "face_encoder", "float16"),
    ],
)
def test_the_recipe_decides(tmp_path: Path, recipe: dict, step: str, expected: str) -> None:
    write_json(tmp_path / "recipe.json", {"run": recipe})
    tensors = {"weight": weights_of(64, 64)}
    save_step(tmp_path, step, {}, tensors, {})
    _, found = load_step_files(tmp_path, step)
    assert torch.equal(found["weight"], rounded(tensors["weight"], expected).float())
