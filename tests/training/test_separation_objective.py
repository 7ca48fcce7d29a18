"""SI-SDR, its best order and its improvement, against their definitions in numpy."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from merkit_training.speech.separation.objective import improvement, in_best_order, si_sdr

RNG = np.random.default_rng(1)
COUNTS = (500, 320, 77)
TARGETS = RNG.standard_normal((3, 2, 500)) + 0.3
ESTIMATES = 5 * TARGETS[:, ::-1] + RNG.standard_normal((3, 2, 500)) - 2
ESTIMATES[1] = ESTIMATES[1, ::-1]
MIXTURE = TARGETS.sum(1)
MASK = (np.arange(500) < np.array(COUNTS)[:, None]).astype(float)


def ratio(estimate: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Le Roux et al. 2019, equation 4, in dB."""
    estimate, target = estimate - estimate.mean(), target - target.mean()
    aimed = estimate @ target / (target @ target) * target
    return float(10 * np.log10(aimed @ aimed / ((estimate - aimed) @ (estimate - aimed))))


def tensors() -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in (ESTIMATES, TARGETS, MIXTURE, MASK)]


def test_si_sdr_is_its_definition_over_what_is_real() -> None:
    estimates, targets, _, mask = tensors()
    found = si_sdr(estimates, targets, mask[:, None])
    for i, n in enumerate(COUNTS):
        for s in range(2):
            expected = ratio(ESTIMATES[i, s, :n], TARGETS[i, s, :n])
            assert found[i, s].item() == pytest.approx(expected, abs=1e-4)


def test_level_sign_and_mean_do_not_count() -> None:
    estimates, targets, _, mask = tensors()
    changed = si_sdr(-0.5 * estimates + 4, targets, mask[:, None])
    torch.testing.assert_close(
        changed, si_sdr(estimates, targets, mask[:, None]), atol=1e-3, rtol=0
    )


def test_the_best_order_is_the_best_of_all() -> None:
    estimates, targets, mixture, mask = tensors()
    found, order = in_best_order(estimates, targets, mask)
    gain = improvement(estimates, targets, mixture, mask)
    assert order.tolist() == [[1, 0], [0, 1], [1, 0]]
    for i, n in enumerate(COUNTS):
        scores = {
            p: [ratio(ESTIMATES[i, p[s], :n], TARGETS[i, s, :n]) for s in range(2)]
            for p in permutations(range(2))
        }
        best = max(scores.values(), key=sum)
        assert found[i].tolist() == pytest.approx(best, abs=1e-4)
        before = [ratio(MIXTURE[i, :n], TARGETS[i, s, :n]) for s in range(2)]
        assert gain[i].tolist() == pytest.approx(np.subtract(best, before).tolist(), abs=1e-4)


def test_three_sources_find_their_places() -> None:
    targets = torch.from_numpy(RNG.standard_normal((1, 3, 200)))
    scores, order = in_best_order(targets[:, [2, 0, 1]], targets, torch.ones(1, 200).double())
    assert order.tolist() == [[1, 2, 0]]
    assert scores.min() > 80


def test_silence_is_finite_and_has_a_gradient() -> None:
    estimates = torch.zeros(1, 2, 100, requires_grad=True)
    scores, _ = in_best_order(estimates, torch.zeros(1, 2, 100), torch.ones(1, 100))
    scores.sum().backward()
    assert torch.isfinite(scores).all() and torch.isfinite(estimates.grad).all()
