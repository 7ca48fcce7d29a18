"""The training loop: the same weights whether or not it was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.errors import BundleCorruptError, InvalidInputError, MerkitError
from merkit_training.fit import FitConfig, clear_checkpoints, fit, learning_rate, step_rng

X = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + X[:, 1] > 0).long()
CONFIG = FitConfig(epochs=3, batch_size=32, lr=5e-2, checkpoint_seconds=0)


class KilledError(Exception):
    """Stands for a kill in the middle of an epoch."""


def _model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def _loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
    noise = torch.from_numpy(step_rng().normal(0, 0.05, (len(indices), 8)).astype(np.float32))
    return nn.functional.cross_entropy(model(X[indices] + noise), Y[indices])


def _accuracy(model: nn.Module) -> dict[str, float]:
    return {"accuracy": float((model(X).argmax(1) == Y).float().mean())}


def test_it_learns_and_reports(tmp_path: Path) -> None:
    scores = fit(_model(), _loss, 300, CONFIG, tmp_path, name="a", evaluate=_accuracy)
    assert scores["accuracy"] > 0.9
    assert set(scores) == {"accuracy", "loss", "epoch", "seconds"}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_run_ends_at_the_same_weights(tmp_path: Path, optimizer: str) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    whole = _model()
    expected = fit(whole, _loss, 300, config, tmp_path / "whole", name="a", evaluate=_accuracy)
    calls = 0

    def killed_loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls in (5, 16):
            raise KilledError
        return _loss(model, indices)

    for _ in range(2):
        with pytest.raises(KilledError):
            fit(_model(), killed_loss, 300, config, tmp_path / "cut", name="a", evaluate=_accuracy)
    torch.manual_seed(99)  # another start, which the checkpoint must replace
    cut = _model()
    found = fit(cut, killed_loss, 300, config, tmp_path / "cut", name="a", evaluate=_accuracy)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, cut.state_dict()[name]), name
    assert found | {"seconds": 0} == expected | {"seconds": 0}
    assert calls == 3 * 9 + 2  # nothing done twice


def test_a_finished_fit_is_loaded_not_repeated(tmp_path: Path) -> None:
    first, again = _model(), _model()
    expected = fit(first, _loss, 300, CONFIG, tmp_path, name="a", evaluate=_accuracy)

    def never(_model: nn.Module, _indices: NDArray[np.int64]) -> Tensor:
        raise AssertionError("trained again")

    assert fit(again, never, 300, CONFIG, tmp_path, name="a", evaluate=_accuracy) == expected
    assert torch.equal(first(X), again(X))
    clear_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fits.json"]


def test_the_best_epoch_stays_in_the_model(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def worse_each_time(model: nn.Module) -> dict[str, float]:
        seen.append(model(X).clone())
        return {"score": -float(len(seen))}

    model = _model()
    scores = fit(model, _loss, 300, CONFIG, tmp_path, name="a", evaluate=worse_each_time)
    assert scores["epoch"] == 1
    assert torch.equal(model(X), seen[0])


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = _model()
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.clone()
    fit(model, _loss, 300, CONFIG, tmp_path, name="a")
    assert torch.equal(before, frozen)


def test_other_seeds_see_another_order(tmp_path: Path) -> None:
    orders: dict[int, list[int]] = {}
    for seed in (0, 1):
        order = orders.setdefault(seed, [])

        def loss(model: nn.Module, indices: NDArray[np.int64], order: list[int] = order) -> Tensor:
            order.extend(indices.tolist())
            return _loss(model, indices)

        fit(
            _model(),
            loss,
            300,
            replace(CONFIG, epochs=2, seed=seed),
            tmp_path / str(seed),
            name="a",
        )
    assert orders[0] != orders[1]
    assert orders[0][:288] != orders[0][288:]
    assert len(set(orders[0][:288])) == 288


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    fit(_model(), _loss, 300, CONFIG, tmp_path, name="a")
    with pytest.raises(InvalidInputError, match="another configuration"):
        fit(_model(), _loss, 300, replace(CONFIG, lr=1e-3), tmp_path, name="a")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.checkpoint").write_bytes(b"rubbish")
    with pytest.raises(BundleCorruptError, match=r"a\.checkpoint"):
        fit(_model(), _loss, 300, CONFIG, tmp_path, name="a")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(MerkitError, match="nan at step 0"):
        fit(_model(), lambda m, i: _loss(m, i) * torch.nan, 300, CONFIG, tmp_path, name="a")


def test_no_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="0 samples"):
        fit(_model(), _loss, 0, CONFIG, tmp_path, name="a")


def test_fewer_samples_than_a_batch_still_train(tmp_path: Path) -> None:
    assert fit(_model(), _loss, 5, CONFIG, tmp_path, name="a")["epoch"] == 3


def test_the_rate_rises_then_falls() -> None:
    config = FitConfig(epochs=1, batch_size=1, lr=1.0, warmup=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.02
