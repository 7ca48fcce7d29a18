"""Losses written for the processor on a model elsewhere; the meta device stands for a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from merkit_training.devices import following

META = torch.device("meta")


def _loss(model: nn.Module) -> torch.Tensor:
    values, labels = torch.randn(4, 6, 3), torch.tensor([0, 1, 1, 0])
    mask = torch.arange(6) < torch.tensor([[6], [2], [3], [1]])
    states = model(values)
    states = torch.where(mask[..., None], states, torch.zeros_like(states))
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    pooled[labels == 0] = torch.zeros(3)
    return F.cross_entropy(torch.cat((pooled, torch.ones(4, 1)), dim=1), labels)


def test_tensors_on_the_processor_follow_the_model() -> None:
    model = nn.Linear(3, 3, device=META)
    with pytest.raises(RuntimeError):
        _loss(model)
    with following(META):
        value = _loss(model)
    assert value.device == META and value.shape == ()
    value.backward()
    assert model.weight.grad is not None and model.weight.grad.device == META


def test_what_meets_nobody_stays() -> None:
    with following(META):
        assert (torch.ones(2) + torch.ones(2)).tolist() == [2.0, 2.0]
        assert torch.ones(2).numpy().tolist() == [1.0, 1.0]


def test_results_copied_home_come_home() -> None:
    home = torch.zeros(2)
    with following(META), pytest.raises((RuntimeError, NotImplementedError)):
        home.copy_(torch.ones(2, device=META))  # meta has no values: a GPU's would have been copied
    assert home.device.type == "cpu"


def test_what_is_changed_in_place_is_never_a_copy() -> None:
    home, away = torch.zeros(2), torch.ones(2, device=META)
    with following(META):
        assert home.add_(away) is home  # meta lets it pass; a GPU would say that devices differ
        with pytest.raises(NotImplementedError):
            home[:] = away
        away[:] = home  # follows


def test_on_the_processor_nothing_is_intercepted() -> None:
    with following(torch.device("cpu")) as context:
        assert context is None
        assert not torch.overrides._get_current_function_mode_stack()
