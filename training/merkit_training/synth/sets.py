"""The cheap single-modality sets: faces, sequences, utterances, sentences, one sample at a time.

Encoders need tens of thousands of samples, which whole clips would make dear. Each function here
returns one sample, fully determined by the configuration, its split and its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from merkit_training.corpus import FACE_SIDE, TILES
from merkit_training.labels import MER6
from merkit_training.synth.config import SynthConfig
from merkit_training.synth.faces import Identity, Pixels, crop_view, identity, render
from merkit_training.synth.model import (
    CATEGORIES,
    MER2023_TRAIN,
    SET_STRENGTHS,
    Floats,
    draw,
    draw_face8,
    prior,
)
from merkit_training.synth.performance import blink, frame_units, perform, sway
from merkit_training.synth.sentences import POOLS, compose
from merkit_training.synth.speech import MAX_SECONDS, RATE, Voice, speak, voice

KINDS = ("faces", "sequences", "utterances", "sentences", "clips")
POOL_NAMES = tuple(POOLS)
PEOPLE = {"train": 400, "val": 60, "clips/train": 160, "clips/unlabelled": 60}
"""Identities of each pool; the others have 50. No identity belongs to two pools."""
SPEAKERS = {"train": 150, "val": 25, "clips/train": 80, "clips/unlabelled": 30}
"""Voices of each pool; the others have 25."""
WAVE_SAMPLES = round(MAX_SECONDS * RATE)


@dataclass(frozen=True)
class Source:
    """Where a sample comes from: its random stream and its pool of people and voices."""

    config: SynthConfig
    kind: str  # of KINDS
    pool: str  # of POOLS

    def stream(self, index: int) -> np.random.Generator:
        """The sample's own generator: independent of workers and order."""
        key = (KINDS.index(self.kind) + 1) * 100 + POOL_NAMES.index(self.pool)
        return np.random.default_rng([self.config.seed, key, index])

    def person(self, rng: np.random.Generator) -> Identity:
        """A random member of the pool."""
        number = int(rng.integers(PEOPLE.get(self.pool, 50)))
        return identity(1000 * POOL_NAMES.index(self.pool) + number, self.config.seed)

    def speaker(self, rng: np.random.Generator) -> Voice:
        """A random voice of the pool."""
        number = int(rng.integers(SPEAKERS.get(self.pool, 25)))
        return voice(1000 * POOL_NAMES.index(self.pool) + number, self.config.seed)

    def language(self, rng: np.random.Generator) -> str:
        """zh or en, by the configured share."""
        return "zh" if rng.random() < self.config.chinese_share else "en"


def set_prior() -> Floats:
    """Class prior of the sets: rare classes are raised, so that an encoder learns them."""
    return prior(MER2023_TRAIN, flatten=0.5)


def face_sample(source: Source, index: int) -> dict[str, Any]:
    """One crop `images` uint8 [64,64,3], its FACE8 number `labels` and what it shows, `units`."""
    rng = source.stream(index)
    label, units = draw_face8(rng)
    units = units * float(rng.choice((1.0, rng.uniform(0.55, 1.0))))  # not always at the apex
    units = _speaking(units, rng)
    closed = float(rng.random() < 0.05) * rng.uniform(0.3, 1)
    picture = render(source.person(rng), units, closed, crop_view(rng, FACE_SIDE), FACE_SIDE)
    return {"images": _sensor(picture, rng), "labels": label, "units": units.astype(np.float32)}


def sequence_sample(source: Source, index: int) -> dict[str, Any]:
    """Four crops in time order `images` uint8 [4,64,64,3], their MER6 number `labels` and what
    each shows, `units` float32 [4,10]."""
    rng = source.stream(index)
    drawn = draw(rng, set_prior(), SET_STRENGTHS)
    who, how = source.person(rng), perform(rng, source.config.brief_share)
    seconds = rng.uniform(2.0, MAX_SECONDS)
    view = crop_view(rng, FACE_SIDE)
    crops, shown = [], []
    for tile in range(TILES):
        time = (tile + 0.5) / TILES + rng.uniform(-0.04, 0.04)
        units = _speaking(frame_units(how, drawn.face, time, 0.0), rng)
        seen = sway(how, view, time, seconds)
        shown.append(units.astype(np.float32))
        crops.append(render(who, units, blink(how, time, seconds), seen, FACE_SIDE))
    strip = _sensor(np.concatenate(crops), rng)
    images = strip.reshape(TILES, FACE_SIDE, FACE_SIDE, 3)
    return {"images": images, "labels": drawn.label, "units": np.stack(shown)}


def utterance_sample(source: Source, index: int) -> dict[str, Any]:
    """One spoken sentence; keys are those of the set's arrays, and `row` of its table."""
    rng = source.stream(index)
    share = source.config.composite_share
    drawn = draw(rng, set_prior(), SET_STRENGTHS, share)
    who, language = source.speaker(rng), source.language(rng)
    sentence = compose(rng, drawn.category, language, source.pool)
    wave = speak(sentence.text, language, who, drawn.tone, rng)
    padded = np.zeros(WAVE_SAMPLES, np.int16)
    padded[: wave.size] = np.round(np.clip(wave, -1, 1) * 32767)
    row = {
        "name": f"utterance_{source.pool}_{index:05d}",
        "discrete": MER6[drawn.label],
        "language": language,
        "voice": str(who.number),
        "text": sentence.text,
        "tone_class": MER6[drawn.shown[1]],
        "tone_strength": drawn.strengths[1],
        "word_class": MER6[drawn.shown[2]],
        "word_strength": drawn.strengths[2],
        "category": CATEGORIES[drawn.category],
        "composite": str(int(drawn.composite)),
        "split": source.pool,
    }
    arrays = {"waveforms": padded, "lengths": wave.size, "labels": drawn.label}
    return {**arrays, "prosody": drawn.tone.astype(np.float32), "row": row}


def sentence_sample(source: Source, index: int) -> dict[str, Any]:
    """One written sentence: `row` of the set's table."""
    rng = source.stream(index)
    drawn = draw(rng, set_prior(), SET_STRENGTHS)
    sentence = compose(rng, drawn.category, source.language(rng), source.pool)
    row = {
        "text": sentence.text,
        "discrete": MER6[drawn.label],
        "language": sentence.language,
        "category": CATEGORIES[sentence.category],
        "split": source.pool,
    }
    return {"row": row}


def _speaking(units: Floats, rng: np.random.Generator) -> Floats:
    """Three faces in five are caught while speaking."""
    voiced = rng.uniform(0, 1) if rng.random() < 0.6 else 0.0
    return units + voiced * np.array([0, 0, 0, 0, 0, 0, 0, 0.5, -0.12, 0])


def _sensor(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """What a camera and a codec do to a crop: some blur, some noise."""
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (5, 5), rng.uniform(0.4, 1.3))
    noise = rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0.5, 4.0))
    return np.clip(picture + noise, 0, 255).astype(np.uint8)
