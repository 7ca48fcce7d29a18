"""Temperatures: what makes a branch's softmax mean a probability.

Without them an overconfident branch outshouts the others in the averaged scores. One number a
branch, fitted on out-of-fold logits, never on clips that the branch has trained on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from merkit.voting import NOBODY, ranked_mode
from merkit_training.metrics import accuracy, brier, class_f1, confusion, ece, uar, waf

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


def calibrated(held_out: dict[str, Tensor], temperatures: Tensor) -> NDArray[np.float32]:
    """`branch_scores` [n, voters, classes] of out-of-fold predictions, as the graph makes them."""
    scores = (held_out["logits"] / temperatures[:, None]).softmax(dim=2)
    found: NDArray[np.float32] = (scores * held_out["voted"][..., None]).numpy()
    return found


def report(
    branch_scores: NDArray[np.float32], truth: NDArray[np.int64], labels: tuple[str, ...]
) -> dict[str, Any]:
    """WAF, accuracy, UAR, F1 of each class, confusions (rows: truth), ECE and Brier of the vote.

    Clips on which every branch abstains are left out and counted as `unanswered`.
    """
    winner, scores = ranked_mode(branch_scores)
    rows = winner != NOBODY
    truth, winner, scores, classes = truth[rows], winner[rows], scores[rows], len(labels)
    if not len(truth):
        return {"clips": 0, "unanswered": len(rows)}
    table = confusion(truth, winner, classes)
    return {
        "clips": len(truth),
        "unanswered": int((~rows).sum()),
        "waf": waf(truth, winner, classes),
        "accuracy": accuracy(truth, winner),
        "uar": uar(truth, winner, classes),
        "ece": ece(truth, scores),
        "brier": brier(truth, scores),
        "f1": dict(zip(labels, class_f1(table).tolist(), strict=True)),
        "confusion": table.tolist(),
    }


def abstention(
    branch_scores: NDArray[np.float32], truth: NDArray[np.int64], coverage: float
) -> dict[str, float]:
    """The winner's score that a share `coverage` of the clips reaches, and how right those are.

    Nothing at a coverage of 0 or 1, or where nobody votes: then no threshold is asked for.
    """
    winner, scores = ranked_mode(branch_scores)
    rows = winner != NOBODY
    if not rows.any() or coverage in (0, 1):
        return {}
    confidence = scores.max(axis=1)[rows]
    least = float(np.quantile(confidence, 1 - coverage, method="lower"))
    sure = confidence >= least
    right = (winner == truth)[rows][sure]
    return {"coverage": float(sure.mean()), "threshold": least, "accuracy": float(right.mean())}
