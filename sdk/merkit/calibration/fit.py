"""Temperatures and class shifts from labelled scores: the mathematics of `merkit calibrate`.

A branch that is right half the time and says 90 % is no use to a threshold; one trained where
half the clips were neutral is wrong where a tenth are. Both are mended by a handful of numbers:
a temperature for each branch and a shift of the log-odds for each class, fitted together by
maximum likelihood. That problem is convex in 1 / temperature and the shifts, so Newton's method
solves it in plain numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.voting import ranked_mode

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
LIMIT = 20.0
"""Temperatures lie between 1/LIMIT and LIMIT: a perfect branch has no optimum."""
ROUNDS = 60
FOLDS = 5
TINY = 1e-30
"""Stands for a probability of zero, whose logarithm nobody can use."""


@dataclass(frozen=True)
class Calibration:
    """What the fusion graph applies to each branch's logits: `logits / temperature + log_prior`."""

    temperatures: tuple[float, ...]  # [voters]
    log_prior: tuple[float, ...]  # [classes]

    def undo(self, scores: Floats) -> NDArray[np.float64]:
        """The logits [n, voters, classes], up to a constant each, behind calibrated scores."""
        logits = np.log(np.maximum(scores, TINY)) - np.array(self.log_prior)
        return np.asarray(logits * np.array(self.temperatures)[:, None])

    def apply(self, logits: Floats, voted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """`branch_scores` [n, voters, classes]; zeros where a branch did not vote [n, voters]."""
        shifted = logits / np.array(self.temperatures)[:, None] + np.array(self.log_prior)
        return softmax(shifted) * voted[..., None]


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def fit(
    logits: Floats,
    voted: NDArray[np.bool_],
    labels: Labels,
    start: Calibration,
    weights: Floats | None = None,
    shift: bool = True,
) -> Calibration:
    """The likeliest temperatures and class shifts.

    Few labels say little, so each parameter is held by a unit Gaussian: the inverse temperatures
    around those of `start`, the shifts around zero. It weighs as much as one clip.

    Args:
        logits: [n, voters, classes], of clips that nothing was trained on.
        voted: [n, voters].
        labels: [n].
        start: what the bundle has now.
        weights: [n], how much each clip counts; None: all alike.
        shift: fit the class shifts; else they stay as in `start`.
    """
    count, _, classes = logits.shape
    share = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    weight = voted * (share / share.sum())[:, None]
    centred = logits - logits.mean(axis=2, keepdims=True)
    target = np.eye(classes)[labels]
    own = (centred * target[:, None]).sum(axis=2)  # the logit of each clip's label
    origin = 1 / np.array(start.temperatures)
    inverse, bias = origin.copy(), np.zeros(classes) if shift else np.array(start.log_prior)
    hold = 1 / count

    def loss(inverse: Floats, bias: Floats) -> float:
        chances = softmax(centred * inverse[:, None] + bias)
        told = np.log(np.maximum((chances * target[:, None]).sum(axis=2), TINY))
        held = ((inverse - origin) ** 2).sum() + (bias**2).sum() * shift
        return float(-(weight * told).sum() + hold * held / 2)

    best = loss(inverse, bias)
    for _ in range(ROUNDS):
        chances = softmax(centred * inverse[:, None] + bias)
        gradient, curvature = _slopes(centred, own, chances, target, weight)
        voters = len(inverse)
        gradient += hold * np.concatenate([inverse - origin, bias])
        curvature += hold * np.eye(len(gradient))
        free = slice(None) if shift else slice(voters)
        step = np.zeros_like(gradient)
        step[free] = np.linalg.solve(curvature[free, free], gradient[free])
        for halving in range(30):
            part = step / 2**halving
            nearer = np.clip(inverse - part[:voters], 1 / LIMIT, LIMIT)
            shifted = bias - part[voters:]
            if (found := loss(nearer, shifted)) < best:
                break
        else:
            break
        gained, best = best - found, found
        inverse, bias = nearer, shifted
        if gained < 1e-10:
            break
    if shift:
        bias = bias - bias.mean()
    return Calibration(tuple((1 / inverse).tolist()), tuple(bias.tolist()))


def _slopes(
    centred: Floats, own: Floats, chances: Floats, target: Floats, weight: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradient and curvature of the loss in the inverse temperatures, then the class shifts."""
    voters, classes = chances.shape[1:]
    mean = (chances * centred).sum(axis=2)
    spread = (chances * centred**2).sum(axis=2) - mean**2
    each = weight[..., None] * chances
    gradient = np.concatenate(
        [
            (weight * (mean - own)).sum(axis=0),
            (each - weight[..., None] * target[:, None]).sum(axis=(0, 1)),
        ]
    )
    curvature = np.zeros((voters + classes, voters + classes))
    curvature[:voters, :voters] = np.diag((weight * spread).sum(axis=0))
    cross = (each * (centred - mean[..., None])).sum(axis=0)
    curvature[:voters, voters:], curvature[voters:, :voters] = cross, cross.T
    total = each.sum(axis=(0, 1))
    curvature[voters:, voters:] = np.diag(total) - np.einsum("nvc,nvd->cd", each, chances)
    return gradient, curvature


def cross_fitted(
    logits: Floats,
    voted: NDArray[np.bool_],
    labels: Labels,
    start: Calibration,
    weights: Floats | None = None,
    shift: bool = True,
    seed: int = 0,
) -> NDArray[np.float64]:
    """`branch_scores` in which no clip has taken part in the fit that calibrates it."""
    fold = folds(labels, min(FOLDS, len(labels)), seed)
    scores = np.zeros(logits.shape)
    for number in range(int(fold.max()) + 1):
        out, rest = fold == number, fold != number
        own = None if weights is None else weights[rest]
        found = fit(logits[rest], voted[rest], labels[rest], start, own, shift)
        scores[out] = found.apply(logits[out], voted[out])
    return scores


def folds(labels: Labels, number: int, seed: int) -> Labels:
    """The fold of each clip; each class is spread over all folds as evenly as it can be."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % number
    return fold


def measures(
    branch_scores: Floats, labels: Labels, weights: Floats | None = None
) -> dict[str, float]:
    """Weighted average F1, accuracy, ECE (15 bins) and Brier score of the vote.

    `weights` [n] say how much each clip counts: with them the figures are those of another prior.
    """
    winner, scores = ranked_mode(np.asarray(branch_scores, np.float32))
    share = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    share = share / share.sum()
    classes = scores.shape[1]
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, winner), share)
    support, sizes = table.sum(axis=1), table.sum(axis=1) + table.sum(axis=0)
    f1 = 2 * np.diagonal(table) / np.where(sizes > 0, sizes, 1)
    confidence, correct = scores.max(axis=1).astype(np.float64), winner == labels
    place = np.minimum((confidence * 15).astype(np.int64), 14)
    gaps = np.bincount(place, weights=share * (confidence - correct))
    error = ((scores - np.eye(classes)[labels]) ** 2).sum(axis=1)
    return {
        "waf": float((f1 * support).sum()),
        "accuracy": float((share * correct).sum()),
        "ece": float(np.abs(gaps).sum()),
        "brier": float((share * error).sum()),
    }
