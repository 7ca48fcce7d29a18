"""Continuous integrate-and-fire: how many tokens were said, and what was heard of each.

FunASR runs this as a loop over time or by picking fired frames with boolean indices; neither can
be exported with dynamic shapes. But token k is the part of the sound in which the summed weights
go from k to k + 1. So a frame's share in it is how much of the token it completes, and integrating
is one matrix product. It also cannot lose the last token to a rounding error, as the loop does
when weights scaled to a target sum to 11.999999.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_SUM = 1e-6
GRAIN = 1024
"""Weights are summed as multiples of its inverse, which is exact, and what these leave: one sum in
float32 would blur the two-hundredth token by 1e-4, and differently in each runtime."""


class CifPredictor(nn.Module):
    """FunASR's `CifPredictorV2`: a weight for each frame, and from these the tokens."""

    def __init__(self, hidden: int, tail: float, smooth: float, noise_floor: float) -> None:
        super().__init__()
        self.cif_conv1d = nn.Conv1d(hidden, hidden, 3)
        self.cif_output = nn.Linear(hidden, 1)
        self.tail, self.smooth, self.noise_floor = tail, smooth, noise_floor

    def weights(self, heard: Tensor, valid: Tensor) -> Tensor:
        """float32 [b, t] in 0..1, 0 on padding, of the encoder's float32 [b, t, hidden].

        What the encoder leaves on padding is set to zero first, or the last frame's weight would
        depend on how long the batch's other sounds are.
        """
        kept = (heard * valid).transpose(1, 2)
        near = self.cif_conv1d(F.pad(kept, (1, 1))).relu().transpose(1, 2)
        weights = (self.cif_output(near).sigmoid() * self.smooth - self.noise_floor).relu()
        kept_weights: Tensor = weights * valid
        return kept_weights.squeeze(-1)

    def forward(self, heard: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """What was said, as far as it can be told from the sound alone.

        Returns:
            float32 [b, n, hidden], n the largest count and at least 1, and the counts int64 [b]:
            whole tokens, where the end of the sound counts for `tail` of one.
        """
        weights = self.weights(heard, valid)
        sums = weights.sum(1)
        sums = torch.where(sums >= 0, sums, torch.zeros_like(sums))  # of NaN samples nothing
        counts = (sums + self.tail).floor().long()
        most = counts.max().clamp(min=1).item()  # in a graph, a size known only when it runs
        torch._check(most >= 1)  # type: ignore[no-untyped-call]
        return integrate(heard * valid, weights, most), counts  # type: ignore[arg-type]

    def aligned(self, heard: Tensor, valid: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """For training: the tokens when as many were said as `counts` (int64 [b]) says.

        Returns:
            float32 [b, n, hidden], and the sum of the weights float32 [b] before they were scaled
            to the counts, for the quantity loss.
        """
        weights = self.weights(heard, valid)
        sums = weights.sum(1)
        scaled = weights * (counts / sums.clamp(min=SMALLEST_SUM))[:, None]
        return integrate(heard * valid, scaled, int(counts.max())), sums


def integrate(heard: Tensor, weights: Tensor, tokens: int) -> Tensor:
    """What was heard while the summed weights went from k to k + 1, for each k below `tokens`.

    Args:
        heard: float32 [b, t, d].
        weights: float32 [b, t], not negative.

    Returns:
        float32 [b, tokens, d].
    """
    first = torch.arange(tokens, device=heard.device, dtype=heard.dtype)[:, None]
    coarse = (weights * GRAIN).round() / GRAIN
    whole, rest = coarse.cumsum(1)[:, None], (weights - coarse).cumsum(1)[:, None]
    after = ((whole - first) + rest).clamp(0, 1)  # how much of a token is complete: [b, n, t]
    return (after - F.pad(after[..., :-1], (1, 0))) @ heard
