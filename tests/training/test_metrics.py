"""Own metrics against scikit-learn's, and the bootstrap against what it must not claim."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from merkit.errors import InvalidInputError
from merkit_training.metrics import (
    accuracy,
    brier,
    class_f1,
    confusion,
    ece,
    paired_bootstrap,
    uar,
    waf,
)

CLASSES = 6


def answers(skill: float, n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Imbalanced truth and predictions of which a share `skill` is copied from it."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(CLASSES, n, p=[0.4, 0.2, 0.2, 0.1, 0.07, 0.03])
    return truth, np.where(rng.random(n) < skill, truth, rng.integers(0, CLASSES, n))


@pytest.mark.parametrize("skill", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [3, 400])
def test_scores_equal_scikit_learns(skill: float, n: int) -> None:
    truth, predicted = answers(skill, n)
    table = confusion(truth, predicted, CLASSES)
    labels = list(range(CLASSES))
    np.testing.assert_array_equal(
        table, reference.confusion_matrix(truth, predicted, labels=labels)
    )
    f1 = reference.f1_score(truth, predicted, average="weighted", zero_division=0)
    assert waf(truth, predicted, CLASSES) == pytest.approx(f1)
    each = reference.f1_score(truth, predicted, average=None, labels=labels, zero_division=0)
    np.testing.assert_allclose(class_f1(table), each)
    recall = reference.recall_score(truth, predicted, average="macro", labels=np.unique(truth))
    assert uar(truth, predicted, CLASSES) == pytest.approx(recall)
    assert accuracy(truth, predicted) == pytest.approx(np.trace(table) / n)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy() -> None:
    probabilities = np.tile([0.8, 0.2], (10, 1))
    assert ece(np.array([0] * 8 + [1] * 2), probabilities) == pytest.approx(0.0)
    assert ece(np.array([0] * 5 + [1] * 5), probabilities) == pytest.approx(0.3)
    assert ece(np.zeros(4, np.int64), np.tile([1.0, 0.0], (4, 1))) == 0


def test_brier_is_nought_for_certainty_and_two_for_certain_error() -> None:
    sure = np.array([[1.0, 0.0]])
    assert brier(np.array([0]), sure) == 0 and brier(np.array([1]), sure) == 2


def test_bootstrap_finds_a_real_gain_and_none_in_a_tie() -> None:
    truth, weak = answers(0.4)
    _, strong = answers(0.8)
    gain = paired_bootstrap(truth, strong, weak, CLASSES, resamples=300)
    assert gain.is_gain and gain.low < gain.difference < gain.high
    expected = waf(truth, strong, CLASSES) - waf(truth, weak, CLASSES)
    assert gain.difference == pytest.approx(expected)
    tie = paired_bootstrap(truth, weak, weak, CLASSES, resamples=50)
    assert tie.difference == tie.low == tie.high == 0 and not tie.is_gain


def test_bootstrap_averages_runs() -> None:
    truth, weak = answers(0.4)
    _, strong = answers(0.8)
    both = paired_bootstrap(truth, np.stack([strong, weak]), weak, CLASSES, resamples=10)
    one = paired_bootstrap(truth, strong, weak, CLASSES, resamples=10)
    assert both.difference == pytest.approx(one.difference / 2)


@pytest.mark.parametrize(
    ("truth", "predicted"), [([0, 1], [0]), ([], []), ([0, 6], [0, 1]), ([0, 1], [0, -1])]
)
def test_labels_that_do_not_fit_are_refused(truth: list[int], predicted: list[int]) -> None:
    with pytest.raises(InvalidInputError):
        confusion(np.array(truth, np.int64), np.array(predicted, np.int64), CLASSES)
