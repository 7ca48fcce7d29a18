"""From layers and frames to one feature vector, alike for sound, words and both together.

The seed takes the mean of the last four layers (2.2.2, 2.2.3, 2.3). Two traps lie there: MERTools
averages padding in, so that features change with a clip's neighbours; and transformers 5 hands
out the last layer of some models before its final norm. Here the encoders collect their layers
themselves (the last one normed, as published), and padding never counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

LAST_LAYERS = 4
Layers = Literal["mean", "sum"]
"""How the last layers become one: their mean (the seed) or their sum (MERTools' features)."""
MASK_FILL = -1e4  # of attention scores: exp gives 0, and float16 can hold it


def pooled(states: Sequence[Tensor], mask: Tensor, layers: Layers = "mean") -> Tensor:
    """The last four layers as one, then the mean over the positions that `mask` admits.

    Args:
        states: each layer's output, [batch, time, width].
        mask: bool [batch, time].
        layers: whether the layers are averaged or added.

    Returns:
        [batch, width]; zeros where the mask admits nothing.
    """
    return masked_mean(combined(states, layers), mask)


def combined(states: Sequence[Tensor], layers: Layers = "mean") -> Tensor:
    """The last four layers (all of fewer), averaged or added: [batch, time, width]."""
    last = torch.stack(list(states[-LAST_LAYERS:]))
    return last.sum(0) if layers == "sum" else last.mean(0)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over time [batch, time, width] -> [batch, width] of the admitted positions."""
    kept = torch.where(mask.unsqueeze(-1), states, torch.zeros_like(states))
    return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1).to(states.dtype)


def length_mask(length: Tensor, size: int) -> Tensor:
    """bool [batch, size] that admits the first `length` (int64 [batch, 1]) positions."""
    return torch.arange(size, device=length.device).unsqueeze(0) < length


def attention_bias(allowed: Tensor) -> Tensor:
    """What to add to attention scores: 0 where `allowed` (bool), else `MASK_FILL`."""
    zero = torch.zeros((), device=allowed.device)
    return torch.where(allowed, zero, torch.full_like(zero, MASK_FILL))
