"""What separation is trained towards and measured by: SI-SDR in the best order of the sources.

A separator may give the voices in any order and at any level, and both are right. An objective
that minded would teach it nothing; so order and level are taken out before anything is compared.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

FLOOR = 1e-8  # energy; keeps silence finite


def si_sdr(estimate: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019).

    Args:
        estimate: float [..., s].
        target: float [..., s].
        mask: float, broadcast to [..., s]: ones where a sample is real, zeros where it is padding.

    Returns:
        float [...]; the larger the better. Means are removed first.
    """
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    estimate, target = (
        (x - (x * mask).sum(-1, keepdim=True) / count) * mask for x in (estimate, target)
    )
    product = (estimate * target).sum(-1, keepdim=True)
    aimed = product / (target.square().sum(-1, keepdim=True) + FLOOR) * target
    left = (estimate - aimed).square().sum(-1)
    return 10 * torch.log10((aimed.square().sum(-1) + FLOOR) / (left + FLOOR))


def in_best_order(estimates: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """SI-SDR of each target in the order of the estimates that is best on the whole (PIT).

    Args:
        estimates: float [b, sources, s].
        targets: float [b, sources, s].
        mask: float [b, s].

    Returns:
        dB [b, sources] by target, and int64 [b, sources]: which estimate each target met.
    """
    sources = targets.shape[1]
    pairs = si_sdr(estimates[:, :, None], targets[:, None], mask[:, None, None])  # [b, est, tgt]
    orders = torch.tensor(list(permutations(range(sources))), device=targets.device)  # [p, tgt]
    scores = pairs[:, orders, torch.arange(sources, device=targets.device)]  # [b, p, tgt]
    best = scores.mean(-1).argmax(-1)
    return scores[torch.arange(len(best), device=best.device), best], orders[best]


def improvement(estimates: Tensor, targets: Tensor, mixture: Tensor, mask: Tensor) -> Tensor:
    """SI-SDRi in dB [b, sources]: what separation gains over the mixture [b, s] itself."""
    before = si_sdr(mixture[:, None], targets, mask[:, None])
    return in_best_order(estimates, targets, mask)[0] - before
