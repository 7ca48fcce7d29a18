"""Ranked-mode voting in plain numpy: what the deployed voting graph must equal.

The vote decides every answer, yet inside a graph it is a handful of opaque tensor operations.
This is the readable form (seed 2.5, Fig. 4): rank the voters, take the mode of their labels,
and while several labels tie, ignore the last voter and count again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError

NOBODY = -1
"""The label when every voter abstains."""


def ranked_mode(
    branch_scores: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The vote over branches.

    Each voter casts the ballot that `ballots_of` reads. Ignoring an abstainer changes no count,
    so the rounds of Fig. 4 are the prefix sums of the ballots, and the last prefix with a single
    most common label decides. One exists as soon as anybody votes: the best voter alone.

    Args:
        branch_scores: [batch, voters, classes], voters in rank order, best first.

    Returns:
        label: int64 [batch]; NOBODY where all abstain.
        scores: float32 [batch, classes], the mean over the voters that voted for `label`, so
            that `label` is the largest; zeros where all abstain.

    Raises:
        InvalidInputError: the scores have other than three axes, no voter or no class.
    """
    table = np.asarray(branch_scores, dtype=np.float32)
    if table.ndim != 3 or 0 in table.shape[1:]:
        raise InvalidInputError(
            f"branch_scores has shape {list(table.shape)}",
            "[batch, voters, classes] with at least one voter and one class",
            "add the missing axis, or give scores that are not empty",
        )
    choice = ballots_of(table)
    ballots = np.arange(table.shape[2]) == choice[..., None]  # NOBODY is none of the classes
    tallies = ballots.cumsum(axis=1)
    most = tallies.max(axis=2, keepdims=True)
    decided = ((tallies == most).sum(axis=2) == 1) & (most[..., 0] > 0)
    last = table.shape[1] - 1 - decided[:, ::-1].argmax(axis=1)
    winner = tallies[np.arange(len(table)), last].argmax(axis=1)
    label = np.where(decided.any(axis=1), winner, NOBODY).astype(np.int64)
    agree = (choice == label[:, None]) & (choice != NOBODY)
    total = np.where(agree[..., None], table, np.float32(0)).sum(axis=1, dtype=np.float32)
    scores = total / np.maximum(agree.sum(axis=1, dtype=np.float32), np.float32(1))[:, None]
    return label, scores


def ballots_of(scores: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """What each row of scores votes for: its largest, the first of equals.

    Args:
        scores: [..., classes], at least one class.

    Returns:
        int64 [...]: a class, or NOBODY for an abstention: a row that is all zeros, as of a branch
        with nothing to go by, or one that holds NaN or infinity and so says nothing.
    """
    speaks = np.isfinite(scores).all(axis=-1) & (scores != 0).any(axis=-1)
    found: NDArray[np.int64] = np.where(speaks, scores.argmax(axis=-1), NOBODY).astype(np.int64)
    return found


def winner_of(ballots: Sequence[int]) -> int:
    """The vote of one clip, Fig. 4 word by word: rank, count, drop the last until one mode is left.

    Args:
        ballots: in rank order a class, or NOBODY for an abstention.
    """
    remaining = [ballot for ballot in ballots if ballot != NOBODY]
    while remaining:
        counts = Counter(remaining).most_common(2)
        if len(counts) == 1 or counts[0][1] > counts[1][1]:
            return counts[0][0]
        remaining.pop()
    return NOBODY
