"""Scores of classifiers, all computed from arrays, so that a figure can be traced to its clips.

WAF is the challenge's metric (scikit-learn's `f1_score(average="weighted")`, to which a test
holds ours); the paired bootstrap says whether a difference of two systems on the same clips is
more than chance. Own arithmetic, because thousands of resamples through scikit-learn take minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError

Labels = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


def confusion(truth: Labels, predicted: Labels, classes: int) -> NDArray[np.int64]:
    """Counts [classes, classes]: row the true class, column the predicted one.

    Raises InvalidInputError when the lengths differ or a label is outside 0..classes-1.
    """
    if truth.shape != predicted.shape or truth.ndim != 1 or not len(truth):
        raise InvalidInputError(
            f"labels of shape {truth.shape} against predictions of shape {predicted.shape}",
            "one prediction for each of at least one clip",
        )
    for labels in (truth, predicted):
        if labels.min() < 0 or labels.max() >= classes:
            found = f"labels from {labels.min()} to {labels.max()}"
            raise InvalidInputError(found, f"labels from 0 to {classes - 1}")
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_f1(table: NDArray[np.number[Any]]) -> NDArray[np.float64]:
    """F1 of each class, [..., classes], from confusions [..., classes, classes]; 0 if undefined."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    sizes = table.sum(axis=-1) + table.sum(axis=-2)
    return np.asarray(2 * hits / np.maximum(sizes, 1))


def waf_of(table: NDArray[np.number[Any]]) -> NDArray[np.float64]:
    """F1 averaged with the true classes' sizes as weights, [...], from confusions."""
    support = table.sum(axis=-1)
    return np.asarray((class_f1(table) * support).sum(axis=-1) / support.sum(axis=-1))


def waf(truth: Labels, predicted: Labels, classes: int) -> float:
    """Weighted average F1, the metric of MER2023 to MER2025."""
    return float(waf_of(confusion(truth, predicted, classes)))


def accuracy(truth: Labels, predicted: Labels) -> float:
    """Share of correct predictions."""
    return float(np.mean(truth == predicted))


def uar(truth: Labels, predicted: Labels, classes: int) -> float:
    """Unweighted average recall over the classes that occur."""
    table = confusion(truth, predicted, classes)
    support = table.sum(axis=1)
    return float((np.diagonal(table)[support > 0] / support[support > 0]).mean())


def ece(truth: Labels, probabilities: Floats, bins: int = 15) -> float:
    """Expected calibration error: |confidence - accuracy| over equally wide confidence bins."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == truth
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def brier(truth: Labels, probabilities: Floats) -> float:
    """Mean squared distance between the probabilities and the one-hot truth, 0 to 2."""
    target = np.eye(probabilities.shape[1])[truth]
    return float(((probabilities - target) ** 2).sum(axis=1).mean())


@dataclass(frozen=True)
class Interval:
    """A difference with its 95 % confidence interval."""

    difference: float
    low: float
    high: float

    @property
    def is_gain(self) -> bool:
        """The whole interval lies above zero."""
        return self.low > 0


def paired_bootstrap(
    truth: Labels,
    ours: Labels,
    theirs: Labels,
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """WAF of `ours` minus WAF of `theirs`, with a percentile interval over resampled clips.

    Args:
        truth: [n].
        ours, theirs: [runs, n] or [n]; the same clips are drawn for all runs of both systems,
            whose WAF is averaged over the runs.
        classes: number of classes.
        resamples: how often n clips are drawn with replacement.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    n, runs, cells = len(truth), len(np.atleast_2d(ours)), classes**2
    systems = np.concatenate([np.atleast_2d(ours), np.atleast_2d(theirs)])
    place = np.arange(len(systems))[:, None] * cells
    codes = place + truth * classes + systems

    def difference(chosen: NDArray[np.int64]) -> float:
        counts = np.bincount(codes[:, chosen].ravel(), minlength=len(systems) * cells)
        scores = waf_of(counts.reshape(-1, classes, classes))
        return float(scores[:runs].mean() - scores[runs:].mean())

    rounds = [difference(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.percentile(rounds, [2.5, 97.5])
    return Interval(difference(np.arange(n)), float(low), float(high))
