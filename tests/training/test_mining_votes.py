"""The seed's paragraph, stated a second time: what is adopted, dropped and shared out."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from merkit.voting import NOBODY
from merkit_training.mining.config import MiningConfig
from merkit_training.mining.ledger import Decisions, State
from merkit_training.mining.truth import quality
from merkit_training.mining.votes import Votes, adopt, agreed, contradicted, share_out

CLASSES = 3
PATTERNS = np.array(list(itertools.product(range(-1, CLASSES), repeat=4)), np.int8)


def votes(ballots: np.ndarray, probabilities: np.ndarray | None = None) -> Votes:
    chances = np.full(ballots.shape, 0.5, np.float32) if probabilities is None else probabilities
    return Votes(np.arange(len(ballots)), ballots, chances)


@pytest.mark.parametrize("agree", [1, 2, 3, 4])
def test_every_pattern_of_four_learners_is_adopted_as_the_seed_says(agree: int) -> None:
    found, mean = agreed(votes(PATTERNS), CLASSES, agree)
    for ballots, label, chance in zip(
        PATTERNS.tolist(), found.tolist(), mean.tolist(), strict=True
    ):
        counts = Counter(b for b in ballots if b != NOBODY).most_common(2)
        tied = len(counts) == 2 and counts[0][1] == counts[1][1]
        expected = counts[0][0] if counts and counts[0][1] >= agree and not tied else NOBODY
        assert label == expected
        assert chance == (0.5 if label != NOBODY else 0.0)


def test_the_mean_is_over_the_learners_that_agree() -> None:
    ballots = np.array([[1, 1, 2, 1]], np.int8)
    chances = np.array([[0.9, 0.6, 1.0, 0.3]], np.float32)
    assert agreed(votes(ballots, chances), CLASSES, 3)[1] == pytest.approx([0.6])


def test_confidence_and_caps_take_the_surest_and_first() -> None:
    ballots = np.ones((5, 4), np.int8)
    chances = np.repeat(np.array([[0.5], [0.9], [0.7], [0.9], [0.4]], np.float32), 4, axis=1)
    nothing = np.full(5, NOBODY, np.int8)
    sure = adopt(votes(ballots, chances), nothing, CLASSES, MiningConfig(confidence=0.6))
    assert sure.tolist() == [NOBODY, 1, 1, 1, NOBODY]
    capped = adopt(votes(ballots, chances), nothing, CLASSES, MiningConfig(per_class=1))
    assert capped.tolist() == [NOBODY, 1, NOBODY, NOBODY, NOBODY]


def test_an_adopted_clip_is_dropped_by_another_label_alone_and_not_adopted_at_once() -> None:
    ballots = np.array([[2, 2, 2, 0], [1, 1, 1, 1], [2, 2, 0, 0]], np.int8)
    earlier = np.array([1, 1, 1], np.int8)
    assert contradicted(votes(ballots), earlier, CLASSES, 3).tolist() == [True, False, False]
    again = adopt(votes(ballots), earlier, CLASSES, MiningConfig(drop=True))
    assert (again == NOBODY).all()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 101])
@pytest.mark.parametrize("stratified", [False, True])
def test_shares_are_even(count: int, stratified: bool) -> None:
    labels = np.random.default_rng(1).integers(0, CLASSES, count).astype(np.int8)
    share = share_out(labels, 4, stratified, np.random.default_rng(0))
    sizes = np.bincount(share, minlength=4)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    for own in range(CLASSES if stratified else 0):
        sizes = np.bincount(share[labels == own], minlength=4)
        assert sizes.max() - sizes.min() <= 1


def test_shares_are_random_but_repeatable() -> None:
    labels = np.zeros(100, np.int8)
    first, again, other = (
        share_out(labels, 4, False, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first != (np.arange(100) % 4).tolist()


def test_the_state_is_the_decisions_replayed() -> None:
    state = State(np.array([False, False, False, True]))
    none = np.full(3, NOBODY, np.int8)
    ballots = np.ones((3, 4), np.int8)
    new = np.array([1, NOBODY, 2], np.int8)
    shares = np.array([3, NOBODY, 0], np.int8)
    state.apply(Decisions(votes(ballots), new, shares, np.zeros(3, bool)))
    assert state.label.tolist() == [1, NOBODY, 2, NOBODY]
    assert state.remaining().tolist() == [1]
    assert state.adopted(3).tolist() == [0]
    dropped = np.array([True, False, False])
    state.apply(Decisions(votes(ballots), none, none, dropped))
    assert state.remaining().tolist() == [0, 1]
    assert state.adopted().tolist() == [2]


def test_quality_counts_only_clips_that_take_part_and_whose_truth_is_known() -> None:
    labels = np.array([0, 0, 1, NOBODY, 1, 0], np.int8)
    truth = np.array([0, 1, 1, 1, NOBODY, 0], np.int8)
    new = np.array([True, False, False, False, False, True])
    asked = np.array([True] * 5 + [False])
    found = quality(labels, new, truth, asked, CLASSES)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["precision_new"] == 1
    assert found["recall"] == pytest.approx(2 / 4)
    assert found["class_precision"] == [0.5, 1, None]
    assert found["class_recall"] == pytest.approx([1, 1 / 3, None])
