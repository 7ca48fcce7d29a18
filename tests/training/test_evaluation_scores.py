"""A report's figures: equal to scikit-learn's, with intervals that behave as intervals do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from merkit.contract import MODALITIES, Preprocessing
from merkit.errors import InvalidInputError
from merkit_training import metrics
from merkit_training.evaluation import scores as s
from merkit_training.evaluation.conditions import (
    CLEAN,
    CLEAN_SNR,
    PATTERNS,
    Condition,
    Material,
    blurred,
    effective,
    missing,
    patterns_of,
    talkers,
    tensors_under,
)

CLASSES = 4
P = Preprocessing()


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, n)
    scores = rng.dirichlet(np.ones(CLASSES), n) + 0.5 * np.eye(CLASSES)[truth]
    scores /= scores.sum(axis=1, keepdims=True)
    return truth, scores.argmax(axis=1), scores


def test_every_measure_is_the_reference() -> None:
    truth, label, scores = drawn(300)
    found, f1 = s.estimates(truth, label, scores, 100)
    assert found["waf"].value == pytest.approx(reference.f1_score(truth, label, average="weighted"))
    assert found["accuracy"].value == pytest.approx(reference.accuracy_score(truth, label))
    assert found["uar"].value == pytest.approx(reference.balanced_accuracy_score(truth, label))
    assert found["ece"].value == pytest.approx(metrics.ece(truth, scores), abs=1e-6)
    assert found["brier"].value == pytest.approx(metrics.brier(truth, scores), abs=1e-6)
    expected = reference.f1_score(truth, label, average=None)
    assert [e.value for e in f1 if e] == pytest.approx(list(expected))


def test_intervals_hold_the_value_repeat_by_seed_and_shrink_with_clips() -> None:
    few, _ = s.estimates(*drawn(60), 500, seed=3)
    many, _ = s.estimates(*drawn(2000), 500, seed=3)
    for e in few.values():
        assert e.low < e.high
    assert few["waf"].low < few["waf"].value < few["waf"].high
    assert many["waf"].high - many["waf"].low < 0.4 * (few["waf"].high - few["waf"].low)
    assert s.estimates(*drawn(60), 500, seed=3)[0] == few
    assert s.estimates(*drawn(60), 500, seed=4)[0] != few


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    truth, label, scores = drawn(150)
    found, _ = s.estimates(truth, label, scores, 3000)
    rng = np.random.default_rng(9)
    plain = []
    for _ in range(3000):
        rows = rng.integers(0, len(truth), len(truth))
        plain.append(metrics.waf(truth[rows], label[rows], CLASSES))
    low, high = np.percentile(plain, [2.5, 97.5])
    assert (found["waf"].low, found["waf"].high) == pytest.approx((low, high), abs=0.01)


def test_a_class_without_clips_has_no_f1_and_no_warning() -> None:
    truth, label = np.array([0, 1, 1]), np.array([0, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, f1 = s.estimates(truth, label, np.eye(3)[label], 50)
    assert f1[2] is None and f1[0] is not None
    assert found["uar"].value == pytest.approx(0.75)


def test_what_is_no_label_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        s.estimates(np.array([0, 5]), np.array([0, 1]), np.eye(3)[[0, 1]])


def test_reliability_accounts_for_every_clip_and_for_the_calibration_error() -> None:
    truth, _, scores = drawn(500)
    bins = s.reliability(truth, scores)
    assert sum(b["clips"] for b in bins) == 500
    gap = sum(b["clips"] * abs(b["confidence"] - b["right"]) for b in bins) / 500
    assert gap == pytest.approx(metrics.ece(truth, scores), abs=1e-4)
    assert all(b["low"] <= b["right"] <= b["high"] for b in bins)
    assert s.wilson(0.5, 100) == pytest.approx((0.404, 0.596), abs=1e-3)


def material() -> Material:
    rng = np.random.default_rng(5)
    crops = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    wave = rng.normal(0, 0.1, 16_000).astype(np.float32)
    return Material({1: crops, 4: blurred(crops, 4)}, wave, "some words")


@pytest.mark.parametrize(
    "nothing", [CLEAN, Condition("noise", CLEAN_SNR), Condition("babble", CLEAN_SNR),
                Condition("blur", 1), Condition("only", keep=MODALITIES)],
    ids=lambda c: c.key,
)  # fmt: skip
def test_a_condition_at_level_zero_changes_nothing(nothing: Condition) -> None:
    clip = material()
    tensors = tensors_under(nothing, clip, P, (0, 1, 2), [clip.waveform])
    assert np.array_equal(tensors["waveform"][0], clip.waveform)
    assert np.array_equal(tensors["face_crops"][0], clip.crops[1])
    assert tensors["text"][0, 0] == "some words"


@pytest.mark.parametrize("kind", ["noise", "babble"])
def test_noise_has_the_stated_level_and_the_same_course_at_each(kind: str) -> None:
    clip = material()
    others = [np.sin(np.arange(9_000) / 7).astype(np.float32), clip.waveform[::-1].copy()]
    added = {}
    for level in (20.0, 5.0):
        condition = Condition(kind, level)  # type: ignore[arg-type]
        tensors = tensors_under(condition, clip, P, (0, 1, 2), others)
        added[level] = tensors["waveform"][0] - clip.waveform
        power = np.mean(clip.waveform**2) / np.mean(added[level] ** 2)
        assert 10 * np.log10(power) == pytest.approx(level, abs=0.1)
    assert np.corrcoef(added[20.0], added[5.0])[0, 1] > 0.999


def test_blur_and_missing_modalities_reach_the_tensors() -> None:
    clip = material()
    soft = tensors_under(Condition("blur", 4), clip, P, (0,))["face_crops"][0].astype(float)
    assert (
        np.abs(np.diff(soft, axis=2)).mean()
        < 0.3 * np.abs(np.diff(clip.crops[1].astype(float), axis=2)).mean()
    )
    words = tensors_under(Condition("only", keep=("text",)), clip, P, (0,))
    assert words["face_crops"].shape == (1, 0, 64, 64, 3) and words["face_count"][0, 0] == 0
    assert words["waveform"].shape == (1, 0) and words["waveform_length"][0, 0] == 0
    assert tensors_under(PATTERNS[4], clip, P, (0,))["text"][0, 0] == ""


def test_conditions_meet_what_a_clip_holds() -> None:
    assert len(PATTERNS) == 7
    silent = ("video", "text")
    assert effective(Condition("noise", 5), silent) == CLEAN
    assert effective(Condition("only", keep=("audio",)), silent) is None
    assert effective(Condition("only", keep=("video", "audio")), silent) == Condition(
        "only", keep=("video",)
    )
    assert effective(Condition("only", keep=silent), silent) == CLEAN
    assert [c.key for c in patterns_of(silent)] == ["only:text", "only:video"]
    assert len(list(patterns_of(MODALITIES))) == 6


def test_modalities_go_missing_at_their_rate_and_never_all() -> None:
    rng = np.random.default_rng(0)
    present = np.ones((20_000, 3), bool)
    present[:500, 1:] = False
    assert np.array_equal(missing(present, 0.0, rng), present)
    kept = missing(present, 0.5, rng)
    assert kept.any(axis=1).all() and not (kept & ~present).any()
    assert kept[500:].mean() == pytest.approx(0.5 / (1 - 0.5**3), abs=0.01)
    nothing = np.zeros((2, 3), bool)
    assert np.array_equal(missing(nothing, 0.5, rng), nothing)


def test_waf_under_missing_modalities_is_the_mean_over_draws() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 40)
    answers = rng.integers(-1, 3, (40, 8))
    kept = rng.integers(1, 8, (30, 40))
    found = s.waf_under_missing(truth, answers, kept, 0)
    plain = [
        reference.f1_score(truth, answers[np.arange(40), row], labels=[0, 1, 2], average="weighted")
        for row in kept
    ]
    assert found.value == pytest.approx(np.mean(plain))
    assert found.low < found.value < found.high


def test_babble_is_of_other_clips_and_the_same_each_time() -> None:
    names = [f"c{i}" for i in range(9)]
    chosen = talkers(0, "c3", names)
    assert len(chosen) == 5 and "c3" not in chosen and chosen == talkers(0, "c3", names[::-1])
    assert talkers(1, "c3", names) != chosen or talkers(2, "c3", names) != chosen
    assert talkers(0, "c0", ["c0", "c1"]) == ()
