"""The generative model: latent label -> evidence per modality -> parameters, and back.

If the evidence were drawn ad hoc, nobody could say how good a classifier can get. Here all of it
is one small mixture model, so the posterior of the label given the true parameters is exact, and
its accuracy is the best possible one: the ceiling that a trained system is compared with.

    label y ~ prior of the split
    ordinary clip: each modality draws a strength of its own
        strong        shows y clearly              (apex mean = prototype[y])
        weak          shows y faintly              (apex mean = WEAK * prototype[y]; words that
                                                    two neighbouring classes share)
        absent        shows nothing, like neutral  (apex mean = 0)
        conflicting   shows another class clearly
    composite clip (a stated share): tone and words are those of COMPOSITES[y], so that neither
        alone tells the label (irony, banter, a brave face); the face is drawn as ever
    face parameters    ~ Normal(mean, FACE_SIGMA), action-unit-like
    prosody parameters ~ Normal(mean, TONE_SIGMA)
    sentence category  = a class's own phrases, or phrases of a pair of classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merkit_training.labels import FACE8, MER6

Floats = NDArray[np.float64]

STRENGTHS = ("absent", "weak", "strong", "conflicting")
EVIDENCE = ("video", "prosody", "words")
"""What a clip can carry; sound holds prosody and words."""

UNITS = (
    "brow_raise",
    "brow_lower",
    "brow_slant",  # inner ends up, outer ends down
    "lid_open",
    "squint",
    "nose_wrinkle",
    "mouth_corner",  # up is positive
    "mouth_open",
    "mouth_width",
    "lip_press",
)
FACES: dict[str, tuple[float, ...]] = {
    #          raise lower slant  lid  squint nose corner open width press
    "neutral": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "angry": (0.0, 1.0, -0.6, 0.1, 0.5, 0.4, -0.4, 0.0, -0.1, 0.8),
    "disgust": (-0.1, 0.5, -0.1, -0.3, 0.7, 1.0, -0.5, 0.2, 0.1, -0.2),
    "fear": (0.8, 0.0, 0.6, 1.0, -0.1, 0.0, -0.2, 0.4, 0.8, 0.0),
    "happy": (0.1, 0.0, 0.0, -0.1, 0.6, 0.0, 1.0, 0.3, 0.6, -0.2),
    "sad": (0.0, 0.1, 0.9, -0.7, 0.0, 0.0, -0.9, 0.0, -0.2, 0.1),
    "surprise": (1.0, -0.1, 0.0, 0.9, -0.2, 0.0, 0.0, 1.0, -0.4, -0.3),
    "worried": (0.5, 0.5, 0.8, 0.2, 0.1, 0.0, -0.3, 0.0, 0.4, 0.7),
}
FACE_SIGMA = 0.28

PROSODY = ("rate", "pitch", "range", "slope", "tilt", "tremolo", "pause", "breath")
TONES: dict[str, tuple[float, ...]] = {
    #          rate pitch range slope tilt tremolo pause breath
    "neutral": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "angry": (1.2, 0.2, 0.8, -0.8, 2.6, 0.0, -0.6, -0.6),
    "happy": (1.0, 1.6, 2.0, 0.6, 0.6, -0.3, -0.4, 0.0),
    "sad": (-1.8, -1.4, -1.2, -1.2, -1.6, 0.0, 1.2, 0.8),
    "worried": (-0.2, 0.8, -0.8, 0.2, -0.6, 2.6, 1.0, 0.8),
    "surprise": (0.2, 2.2, 1.6, 2.4, 0.8, 0.0, -0.6, 0.6),
}
TONE_SIGMA = 0.62
WEAK = 0.45

PAIRS = (
    ("neutral", "happy"),
    ("happy", "surprise"),
    ("surprise", "angry"),
    ("angry", "sad"),
    ("sad", "worried"),
    ("worried", "neutral"),
)
CATEGORIES = (*MER6, *(f"{a}|{b}" for a, b in PAIRS))
"""Sentence categories: each class's own phrases, then phrases that a pair of classes shares."""

COMPOSITES = {  # label: (tone, words)
    "neutral": ("happy", "angry"),  # banter
    "angry": ("sad", "happy"),  # bitter irony
    "happy": ("sad", "surprise"),  # moved to tears
    "sad": ("worried", "happy"),  # a brave face
    "worried": ("surprise", "neutral"),  # alarm over plain words
    "surprise": ("angry", "worried"),  # startled disbelief
}

CLIP_STRENGTHS = (0.14, 0.24, 0.54, 0.08)
"""Shares of STRENGTHS in a clip, for each modality alike."""

SET_STRENGTHS = (0.05, 0.25, 0.68, 0.02)
"""The same for the single-modality sets, whose purpose is to teach an encoder."""

MER2023_TRAIN = {
    "neutral": 871,
    "angry": 822,
    "happy": 689,
    "sad": 383,
    "worried": 462,
    "surprise": 146,
}
MER2023_SEMI = {
    "neutral": 240,
    "angry": 200,
    "happy": 220,
    "sad": 110,
    "worried": 50,
    "surprise": 14,
}
"""Shaped like MER2023-SEMI, of which is known that 14 of its 834 clips are surprise."""


def prior(counts: Mapping[str, int], flatten: float = 1.0) -> Floats:
    """Class probabilities in MER6's order; `flatten` below 1 raises the rare classes."""
    weights = np.array([counts[name] for name in MER6], np.float64) ** flatten
    return np.asarray(weights / weights.sum())


@dataclass(frozen=True)
class Draw:
    """One latent sample. Class numbers index MER6; `shown` is what a modality displays."""

    label: int
    composite: bool
    strengths: tuple[str, str, str]  # of EVIDENCE
    shown: tuple[int, int, int]  # of EVIDENCE; an absent one shows neutral
    face: Floats  # [len(UNITS)], at the apex
    tone: Floats  # [len(PROSODY)]
    category: int  # of CATEGORIES

    @property
    def subset(self) -> str:
        """aligned: all show the label; conflicting: one shows another; mixed: one is absent."""
        pairs = list(zip(self.strengths, self.shown, strict=True))
        if any(s != "absent" and shown != self.label for s, shown in pairs):
            return "conflicting"
        return "mixed" if any(s == "absent" for s, _ in pairs) else "aligned"


def draw(
    rng: np.random.Generator,
    label_prior: Floats,
    strengths: Sequence[float] = CLIP_STRENGTHS,
    composite_share: float = 0.0,
) -> Draw:
    """Draws a label and all evidence for it."""
    label = int(rng.choice(len(MER6), p=label_prior))
    composite = bool(rng.random() < composite_share)
    picked = [STRENGTHS[rng.choice(4, p=strengths)] for _ in EVIDENCE]
    others = [c for c in range(len(MER6)) if c != label]
    shown = [int(rng.choice(others)) if s == "conflicting" else label for s in picked]
    if composite:
        tone, words = COMPOSITES[MER6[label]]
        shown[1:], picked[1:] = [MER6.index(tone), MER6.index(words)], ["strong", "strong"]
    shown = [0 if s == "absent" else c for s, c in zip(picked, shown, strict=True)]
    gains = [{"absent": 0.0, "weak": WEAK}.get(s, 1.0) for s in picked]
    face = gains[0] * PROTOTYPES["video"][shown[0]]
    tone_mean = gains[1] * PROTOTYPES["prosody"][shown[1]]
    pairs = [len(MER6) + i for i, pair in enumerate(PAIRS) if MER6[shown[2]] in pair]
    return Draw(
        label,
        composite,
        (picked[0], picked[1], picked[2]),
        (shown[0], shown[1], shown[2]),
        face + FACE_SIGMA * rng.standard_normal(len(UNITS)),
        tone_mean + TONE_SIGMA * rng.standard_normal(len(PROSODY)),
        int(rng.choice(pairs)) if picked[2] == "weak" else shown[2],
    )


def draw_face8(rng: np.random.Generator) -> tuple[int, Floats]:
    """A FACE8 label, all equally likely, and face parameters for it (mostly strong)."""
    label = int(rng.integers(len(FACE8)))
    strength = STRENGTHS[rng.choice(4, p=SET_STRENGTHS)]
    shown = FACE8[int(rng.integers(len(FACE8)))] if strength == "conflicting" else FACE8[label]
    gain = {"absent": 0.0, "weak": 0.6}.get(strength, 1.0) * rng.uniform(0.8, 1.15)
    noise = FACE_SIGMA * rng.standard_normal(len(UNITS))
    return label, gain * np.array(FACES[shown]) + noise


PROTOTYPES: dict[str, Floats] = {
    "video": np.array([FACES[name] for name in MER6]),
    "prosody": np.array([TONES[name] for name in MER6]),
}
