"""Ranked-mode voting by hand-made examples; needs numpy alone, old or new."""

from __future__ import annotations

import numpy as np
import pytest

from merkit.errors import InvalidInputError
from merkit.voting import NOBODY, ballots_of, ranked_mode


def vote(*ballots: int | None, classes: int = 6) -> int:
    """The label when each voter gives .9 to its ballot; None abstains."""
    scores = np.zeros((1, len(ballots), classes), np.float32)
    for row, ballot in zip(scores[0], ballots, strict=True):
        if ballot is not None:
            row[:] = 0.02
            row[ballot] = 0.9
    return int(ranked_mode(scores)[0][0])


def test_a_unique_mode_wins_whatever_the_rank() -> None:
    assert vote(0, 3, 3, 1) == 3


def test_two_pairs_fall_to_the_pair_complete_without_the_last_voter() -> None:
    assert vote(1, 2, 2, 1) == 2


def test_all_different_falls_to_the_best_voter() -> None:
    assert vote(4, 3, 2, 1) == 4


def test_an_abstainer_is_passed_over_in_its_rank() -> None:
    assert vote(None, 2, 5, None) == 2
    assert vote(1, None, 3, 3) == 3


def test_everybody_abstains() -> None:
    label, scores = ranked_mode(np.zeros((2, 4, 6), np.float32))
    assert label.tolist() == [NOBODY, NOBODY]
    assert scores.shape == (2, 6) and not scores.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_abstains_and_reaches_no_score(value: float) -> None:
    scores = np.full((2, 3, 4), 0.1, np.float32)
    scores[:, 0, 1] = scores[:, 1, 2] = scores[:, 2, 2] = 0.7
    scores[0, 0, 3] = value
    assert ballots_of(scores).tolist() == [[NOBODY, 2, 2], [1, 2, 2]]
    label, mean = ranked_mode(scores)
    assert label.tolist() == [2, 2]
    np.testing.assert_array_equal(mean[0], mean[1])
    label, mean = ranked_mode(np.full((1, 3, 4), value, np.float32))
    assert label.tolist() == [NOBODY] and not mean.any()


def test_types_are_the_contracts_also_from_float64_and_an_empty_batch() -> None:
    for batch in (0, 2):
        label, scores = ranked_mode(np.full((batch, 4, 6), 1 / 6))
        assert label.dtype == np.int64 and scores.dtype == np.float32
        assert label.shape == (batch,) and scores.shape == (batch, 6)


@pytest.mark.parametrize("shape", [(4, 6), (1, 0, 6), (1, 4, 0), ()])
def test_other_shapes_are_refused_with_the_shape_found(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="branch_scores has shape"):
        ranked_mode(np.zeros(shape, np.float32))
