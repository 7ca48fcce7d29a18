"""Temperatures: what makes a branch's softmax mean a probability.

Without them an overconfident branch outshouts the others in the averaged scores. One number a
branch, fitted on out-of-fold logits, never on clips that the branch has trained on.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

LIMIT = 20.0
"""Temperatures lie between 1/LIMIT and LIMIT: perfect or useless branches have no optimum."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the negative log-likelihood; 1 where there is no clip.

    Args:
        logits: float32 [n, classes], of clips that the branch has not trained on.
        labels: int64 [n].
    """
    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / np.exp(log_temperature), labels))

    bound = float(np.log(LIMIT))
    with torch.no_grad():
        found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return float(np.exp(found.x))
