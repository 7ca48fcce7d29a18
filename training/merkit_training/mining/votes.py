"""What a round decides from its votes: adopt, drop, share out. Plain arrays, no models.

These few lines are the seed's paragraph; everything around them is storage and training. They
are apart so that a test can state the paragraph once more and compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merkit.voting import NOBODY
from merkit_training.mining.config import MiningConfig

Labels = NDArray[np.int8]


@dataclass(frozen=True)
class Votes:
    """What the learners say of m clips."""

    rows: NDArray[np.int64]  # [m] numbers of the clips in the pool, ascending
    ballots: Labels  # [m, learners] a class, or NOBODY
    probabilities: NDArray[np.float32]  # [m, learners] that each learner gives its own ballot


def agreed(votes: Votes, classes: int, agree: int) -> tuple[Labels, NDArray[np.float32]]:
    """Where at least `agree` learners vote alike.

    Returns:
        label int8 [m], NOBODY where too few agree; the mean probability float32 [m] that the
        learners who agree give the label, 0 where none is.
    """
    same = votes.ballots[:, :, None] == np.arange(classes)  # [m, learners, classes]
    counts = same.sum(axis=1)
    label, most = counts.argmax(axis=1), counts.max(axis=1, keepdims=True)
    enough = (most[:, 0] >= agree) & ((counts == most).sum(axis=1) == 1)
    own = votes.ballots == label[:, None]
    mean = (votes.probabilities * own).sum(axis=1) / np.maximum(own.sum(axis=1), 1)
    found = np.where(enough, label, NOBODY).astype(np.int8)
    return found, np.where(enough, mean, 0.0).astype(np.float32)


def adopt(votes: Votes, earlier: Labels, classes: int, config: MiningConfig) -> Labels:
    """The pseudo-label int8 [m] that each clip gets now; NOBODY: none.

    Args:
        votes: on the remaining clips, and on adopted ones where they are asked again.
        earlier: [m] the pseudo-label that a clip has; such a clip gets no other.
        classes: number of classes.
        config: how many must agree, how sure they must be, how many of a class are taken (of
            equally sure ones those that come first in the pool).
    """
    label, mean = agreed(votes, classes, config.agree)
    taken = (mean >= config.confidence) & (earlier == NOBODY)
    label = np.where(taken, label, NOBODY).astype(np.int8)
    if config.per_class:
        for own in range(classes):
            rows = np.flatnonzero(label == own)
            order = rows[np.argsort(-mean[rows], kind="stable")]
            label[order[config.per_class :]] = NOBODY
    return label


def contradicted(votes: Votes, earlier: Labels, classes: int, agree: int) -> NDArray[np.bool_]:
    """Which clips [m] a vote now gives another label than the one they were adopted with."""
    now, _ = agreed(votes, classes, agree)
    return np.asarray((earlier != NOBODY) & (now != NOBODY) & (now != earlier))


def share_out(
    labels: Labels, shares: int, stratified: bool, rng: np.random.Generator
) -> NDArray[np.int8]:
    """Splits newly adopted clips into even shares at random, int8 [m].

    No two shares differ by more than one clip; if `stratified`, nor do they within a class.
    """
    order = rng.permutation(len(labels))
    if stratified:
        order = order[np.argsort(labels[order], kind="stable")]
    found = np.zeros(len(labels), np.int8)
    found[order] = (np.arange(len(labels)) + rng.integers(shares)) % shares
    return found
