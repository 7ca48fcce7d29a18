"""Every figure of a report with its 95 % interval, from one set of resamples.

A score on 300 clips is uncertain by several points; printed bare, it invites stories about noise.
All measures of a clip are sums over clips, so a resample is one row of weights and a thousand of
them one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit_training.metrics import Floats, Labels, class_f1, confusion, waf_of

BINS = 15
"""Of confidence, as `metrics.ece` has them."""
BLOCK = 200  # resamples at a time, which bounds memory
INTERVAL = (2.5, 97.5)
DIGITS = 5
Z = 1.959964
"""Of a 95 % interval."""
MEASURES = ("waf", "accuracy", "uar", "ece", "brier")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Plain values, rounded."""
        return {
            "value": round(self.value, DIGITS),
            "low": round(self.low, DIGITS),
            "high": round(self.high, DIGITS),
        }


def estimates(
    truth: Labels, predicted: Labels, scores: Floats, resamples: int = 2000, seed: int = 0
) -> tuple[dict[str, Estimate], list[Estimate | None]]:
    """MEASURES by name, and the F1 of each class (None: no clip is of that class).

    Args:
        truth, predicted: [n], n >= 1.
        scores: probabilities [n, classes].
        resamples: how often n clips are drawn with replacement.
        seed: of the draws.
    """
    classes = scores.shape[1]
    confusion(truth, predicted, classes)  # refuses what is no label
    parts = _parts(truth, predicted, scores)
    whole = _measures(np.ones((1, len(truth)), np.float32) @ parts, classes)
    drawn = [_measures(w @ parts, classes) for w in weights(len(truth), resamples, seed)]
    rows = np.concatenate(drawn)
    found = [_estimate(whole[0, k], rows[:, k]) for k in range(whole.shape[1])]
    named = [e for e in found[: len(MEASURES)] if e is not None]
    return dict(zip(MEASURES, named, strict=True)), found[len(MEASURES) :]


def _estimate(value: float, drawn: NDArray[np.float64]) -> Estimate | None:
    """None for what is undefined; resamples in which it is undefined do not count."""
    if np.isnan(value):
        return None
    defined = drawn[~np.isnan(drawn)]
    low, high = np.percentile(defined if len(defined) else [value], INTERVAL)
    return Estimate(float(value), float(low), float(high))


def weights(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """How often each clip is in each resample, in blocks [at most BLOCK, n]."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        count = min(BLOCK, resamples - start)
        chosen = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(chosen.ravel(), minlength=count * n).reshape(count, n).astype(np.float32)


def _parts(truth: Labels, predicted: Labels, scores: Floats) -> NDArray[np.float32]:
    """What each clip adds to each sum: [n, classes**2 + BINS + 1]."""
    n, classes = scores.shape
    rows = np.arange(n)
    cells = np.zeros((n, classes**2), np.float32)
    cells[rows, truth * classes + predicted] = 1
    confidence = scores.max(axis=1)
    gaps = np.zeros((n, BINS), np.float32)
    gaps[rows, bin_of(confidence)] = confidence - (scores.argmax(axis=1) == truth)
    distance = ((scores - np.eye(classes)[truth]) ** 2).sum(axis=1, keepdims=True)
    return np.concatenate([cells, gaps, distance.astype(np.float32)], axis=1)


def _measures(sums: NDArray[np.float32], classes: int) -> NDArray[np.float64]:
    """[r, MEASURES + classes] from sums [r, ...] over the clips of each resample; the F1 of a class
    of which a resample has no clip is NaN: it says nothing of the class."""
    table = sums[:, : classes**2].reshape(-1, classes, classes).astype(np.float64)
    n = table.sum(axis=(1, 2))
    hits, support = np.diagonal(table, axis1=1, axis2=2), table.sum(axis=2)
    recall = np.where(support > 0, hits / np.maximum(support, 1), 0).sum(axis=1)
    columns = [
        waf_of(table),
        hits.sum(axis=1) / n,
        recall / (support > 0).sum(axis=1),
        np.abs(sums[:, classes**2 : -1]).sum(axis=1) / n,
        sums[:, -1] / n,
        *np.where(support > 0, class_f1(table), np.nan).T,
    ]
    return np.stack(columns, axis=1)


def bin_of(confidence: Floats) -> NDArray[np.int64]:
    """The bin of each confidence, as `metrics.ece` counts them."""
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def reliability(truth: Labels, scores: Floats) -> list[dict[str, Any]]:
    """For each bin that has clips: how many, mean confidence, share that is right, and the share's
    95 % interval (Wilson)."""
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == truth
    place = bin_of(confidence)
    found = []
    for number in sorted(set(place.tolist())):
        here = place == number
        count, share = int(here.sum()), float(right[here].mean())
        low, high = wilson(share, count)
        found.append(
            {
                "from": round(number / BINS, DIGITS),
                "clips": count,
                "confidence": round(float(confidence[here].mean()), DIGITS),
                "right": round(share, DIGITS),
                "low": round(low, DIGITS),
                "high": round(high, DIGITS),
            }
        )
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count`."""
    centre = share + Z**2 / (2 * count)
    half = Z * float(np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)))
    whole = 1 + Z**2 / count
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)


def waf_under_missing(
    truth: Labels, answers: Labels, kept: NDArray[np.int64], seed: int
) -> Estimate:
    """WAF over random patterns of missing modalities, from the answers under each pattern.

    Args:
        truth: [n].
        answers: labels [n, patterns]; -1, no answer, counts as wrong.
        kept: the pattern of each clip in each draw, [draws, n].
        seed: of the resampled clips; each resample takes the next draw of patterns.
    """
    n, classes = len(truth), int(max(truth.max(), answers.max())) + 2
    labels = answers[np.arange(n), kept]
    labels = np.where(labels < 0, classes - 1, labels)
    codes = truth * classes + labels

    def waf_at(rows: NDArray[np.int64]) -> float:
        return float(waf_of(np.bincount(rows, minlength=classes**2).reshape(classes, classes)))

    value = float(np.mean([waf_at(row) for row in codes]))
    rng = np.random.default_rng(seed)
    drawn = [waf_at(row[rng.integers(0, n, n)]) for row in codes]
    low, high = np.percentile(drawn, INTERVAL)
    return Estimate(value, float(low), float(high))
