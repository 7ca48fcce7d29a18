"""The generative model and its renderers: ceilings, faces that Haar finds, speech, sentences."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from merkit.errors import InvalidInputError
from merkit_training.labels import FACE8, MER6, alias
from merkit_training.synth import sample
from merkit_training.synth.ceilings import VIEWS, ceilings, posterior, word_table
from merkit_training.synth.clips import clip_prior, describe, read_draw
from merkit_training.synth.config import SynthConfig
from merkit_training.synth.faces import HAAR_SIDE, identity, random_view, render
from merkit_training.synth.model import (
    CATEGORIES,
    CLIP_STRENGTHS,
    COMPOSITES,
    FACES,
    PROSODY,
    STRENGTHS,
    TONES,
    UNITS,
    draw,
)
from merkit_training.synth.performance import Performance, intensity, perform
from merkit_training.synth.sentences import PHRASES, POOLS, bucket, compose
from merkit_training.synth.sets import PEOPLE, SPEAKERS
from merkit_training.synth.speech import MAX_SECONDS, MIN_SECONDS, RATE, mix, speak, voice

HAAR = vars(cv2)["data"].haarcascades + "haarcascade_frontalface_default.xml"


def test_aliases_are_read_and_strangers_refused() -> None:
    assert [alias(n) for n in ("anger", "Happiness ", "sadness", "surprised", "worried")] == [
        "angry",
        "happy",
        "sad",
        "surprise",
        "worried",
    ]
    with pytest.raises(InvalidInputError, match="'bored' is unknown"):
        alias("bored")
    assert set(MER6) < set(FACE8)


def test_each_modality_is_informative_and_none_suffices() -> None:
    found = ceilings(4000, clip_prior("train"), CLIP_STRENGTHS, 0.12, seed=1)
    for name in ("video", "prosody", "words"):
        assert 0.58 < found[name] < 0.78, name
    assert max(found[n] for n in VIEWS if n != "all") + 0.03 < found["all"] < 0.95
    assert found["prior"] < 0.3


def test_ceilings_are_what_the_posterior_really_scores() -> None:
    """Bayes accuracy is the mean of the largest posterior only if the posterior is exact."""
    rng = np.random.default_rng(3)
    chances = clip_prior("test_semi")
    draws = [draw(rng, chances, CLIP_STRENGTHS, 0.12) for _ in range(4000)]
    labels = np.array([d.label for d in draws])
    for view in VIEWS.values():
        beliefs = posterior(draws, chances, view, CLIP_STRENGTHS, 0.12)
        np.testing.assert_allclose(beliefs.sum(1), 1)
        hits = (beliefs.argmax(1) == labels).mean()
        assert abs(hits - beliefs.max(1).mean()) < 0.025, view


def test_composite_clips_need_tone_and_words_together() -> None:
    rng = np.random.default_rng(4)
    chances = clip_prior("train")
    draws = [d for d in (draw(rng, chances, CLIP_STRENGTHS, 1.0) for _ in range(600))]
    labels = np.array([d.label for d in draws])

    def score(*view: str) -> float:
        beliefs = posterior(draws, chances, view, CLIP_STRENGTHS, 0.12)
        return float((beliefs.argmax(1) == labels).mean())

    assert max(score("prosody"), score("words")) < 0.25
    assert score("prosody", "words") > 0.6
    assert all(d.subset == "conflicting" for d in draws)
    assert len({pair for pair in COMPOSITES.values()}) == len(MER6)


def test_word_table_is_a_distribution_and_matches_the_draws() -> None:
    np.testing.assert_allclose(word_table().sum(1), 1)
    rng = np.random.default_rng(5)
    angry = np.eye(len(MER6))[MER6.index("angry")]
    drawn = [draw(rng, angry).category for _ in range(4000)]
    counted = np.bincount(drawn, minlength=len(CATEGORIES)) / 4000
    np.testing.assert_allclose(counted, word_table()[MER6.index("angry")], atol=0.03)


def test_a_draw_survives_its_description() -> None:
    drawn = draw(np.random.default_rng(6), clip_prior("train"), CLIP_STRENGTHS, 0.5)
    truth = describe(drawn) | {"category": CATEGORIES[drawn.category]}
    back = read_draw(truth)
    np.testing.assert_allclose(back.face, drawn.face, atol=1e-5)
    assert (back.label, back.shown, back.strengths) == (drawn.label, drawn.shown, drawn.strengths)
    assert set(back.strengths) <= set(STRENGTHS)


def test_haar_finds_the_rendered_faces_where_crops_expect_them() -> None:
    detector = cv2.CascadeClassifier(HAAR)
    rng = np.random.default_rng(7)
    found = []
    for i in range(64):
        units = np.array(FACES[FACE8[i % 8]]) + 0.28 * rng.standard_normal(len(UNITS))
        view = random_view(rng, 160, rng.uniform(0.9, 1.05), 4)
        picture = render(identity(i, 3), units, 0.0, view, 160)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        boxes = detector.detectMultiScale(grey, 1.1, 5)
        if len(boxes):
            x, y, w, h = max(boxes, key=lambda box: box[2])
            offset = (x + w / 2 - view.centre[0], y + h / 2 - view.centre[1])
            found.append((*(np.array(offset) / view.scale), w / view.scale))
    assert len(found) >= 0.95 * 64
    dx, dy, width = np.mean(found, 0)
    assert abs(dx) < 2 and abs(dy) < 2 and abs(width - HAAR_SIDE) < 4


def test_expressions_change_the_picture_and_identities_differ() -> None:
    view = random_view(np.random.default_rng(8), 96, 0.9, 0)
    pictures = {n: render(identity(1, 0), np.array(FACES[n]), 0, view, 96) for n in FACE8}
    for name in set(FACE8) - {"neutral"}:
        gap = np.abs(pictures[name].astype(int) - pictures["neutral"])
        assert (gap.max(-1) > 24).mean() > 0.01, name
    other = render(identity(2, 0), np.array(FACES["neutral"]), 0, view, 96)
    assert (np.abs(other.astype(int) - pictures["neutral"]).max(-1) > 24).mean() > 0.1


def test_brief_performances_show_the_expression_in_part_of_the_clip() -> None:
    rng = np.random.default_rng(9)
    times = np.linspace(0, 1, 50)

    def shares(brief: float) -> list[float]:
        acts: list[Performance] = [perform(rng, brief) for _ in range(40)]
        return [float(np.mean([intensity(a, t) > 0.5 for t in times])) for a in acts]

    brief = shares(1.0)
    assert min(brief) > 0.25 and max(brief) < 0.6
    assert min(shares(0.0)) > 0.75


def test_sentences_of_two_pools_never_meet_and_share_their_words() -> None:
    rng = np.random.default_rng(10)
    buckets = [b for owned in POOLS.values() for b in owned]
    assert sorted(buckets) == list(range(16))
    texts = {
        pool: {compose(rng, c, lang, pool).text for c in range(12) for lang in ("zh", "en")}
        for pool in POOLS
    }
    assert all(bucket(text) in POOLS[pool] for pool in texts for text in texts[pool])
    for language in ("zh", "en"):
        assert set(PHRASES[language]) == set(CATEGORIES)


def test_pools_of_people_and_voices_do_not_overlap() -> None:
    """Numbers are 1000 * pool + member, so no pool may have 1000 members."""
    assert max(*PEOPLE.values(), *SPEAKERS.values()) < 1000


def _fresh(job: Callable[[], bytes]) -> bytes:
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return pool.apply(job)


def _sad_sentence() -> bytes:
    tone = np.array(TONES["sad"])
    rng = np.random.default_rng(11)
    return speak("今天的考试让我很难过", "zh", voice(1, 0), tone, rng).tobytes()


def test_speech_is_the_same_in_every_fresh_process() -> None:
    first = _fresh(_sad_sentence)
    time.sleep(1.1)  # espeak-ng by itself takes its seed from the clock, in seconds
    second = _fresh(_sad_sentence)
    assert first == second
    assert np.abs(np.frombuffer(first, np.float32)).max() < 1


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("pace", [-3.5, 0.0, 3.5])
def test_speech_keeps_to_its_length_and_carries_tone(language: str, pace: float) -> None:
    rng = np.random.default_rng(12)
    tone = np.zeros(len(PROSODY))
    tone[PROSODY.index("rate")] = pace
    text = compose(rng, 2, language, "train").text
    bright, dull = tone.copy(), tone.copy()
    bright[PROSODY.index("tilt")], dull[PROSODY.index("tilt")] = 2, -2
    ratios = []
    for chosen in (bright, dull):
        wave = speak(text, language, voice(2, 0), chosen, rng)
        assert MIN_SECONDS <= wave.size / RATE <= MAX_SECONDS
        power = np.abs(np.fft.rfft(wave)) ** 2
        edge = power.size // 4  # 2 kHz
        ratios.append(power[edge:].sum() / power[:edge].sum())
    assert ratios[0] > 10 * ratios[1]


def test_noise_is_mixed_at_the_stated_ratio() -> None:
    rng = np.random.default_rng(13)
    clean, noise = 0.01 * rng.standard_normal((2, 16000)).astype(np.float32)
    added = mix(clean, 7 * noise, 5.0) - clean
    assert 10 * np.log10((clean**2).mean() / (added**2).mean()) == pytest.approx(5.0, abs=0.01)


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="multiple of 16"):
        SynthConfig(frame_size=150)
    assert SynthConfig(workers=1).identity == SynthConfig(workers=2).identity
    assert SynthConfig(seed=1).identity != SynthConfig(seed=2).identity


def test_the_sample_is_spoken_with_words_of_its_class() -> None:
    assert sample.LABEL in MER6 and sample.POOL in POOLS
