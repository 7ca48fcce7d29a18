"""Made-up clips that reach every corner of the contract's sizes.

A graph that was traced at one size and tried at one size proves little: what breaks in the field
is the clip without sound, the single face, the longest allowed recording, and its neighbours in a
batch. These clips are noise with structure; they say nothing about people.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Contract, Preprocessing
from merkit.pipeline import DECODED_IN

Clip = dict[str, NDArray[Any]]
WORDS = (
    "I",
    "never",
    "thought",
    "that",
    "we",
    "would",
    "see",
    "我",
    "真的",
    "没想到",
    "会",
    "这样",
)
WORDS_TRACED = 7
MARKED_WORDS = 2
"""Ids that every punctuator has."""
PATTERNS = tuple(product((1, 0), repeat=3))
"""Which of video, audio and text are there; the last pattern is nothing at all."""


def clip(p: Preprocessing, faces: int, seconds: float, words: int, seed: int = 0) -> Clip:
    """A clip of batch 1 as `pipeline.DECODED_IN`; any size may be 0."""
    rng = np.random.default_rng([seed, faces, words])
    crops = rng.integers(0, 256, (1, faces, 8, 8, 3))
    factor = -(-p.face_size // 8)
    smooth = np.kron(crops, np.ones((1, 1, factor, factor, 1)))
    time = np.arange(round(seconds * p.sample_rate)) / p.sample_rate
    voice = np.sin(2 * np.pi * (120 + 40 * np.sin(3 * time)) * time) * (1 + np.sin(9 * time)) / 4
    wave = voice + rng.normal(0, 0.02, len(time))
    text = " ".join(rng.choice(WORDS, words))
    return {
        "face_crops": smooth[:, :, : p.face_size, : p.face_size].astype(np.uint8),
        "face_count": np.array([[faces]], np.int64),
        "waveform": wave[None].astype(np.float32),
        "waveform_length": np.array([[len(time)]], np.int64),
        "text": np.array([[text]], np.object_),
    }


def collate(clips: Sequence[Clip]) -> Clip:
    """One batch: every dynamic dimension padded with zeros on the right to the longest."""
    batch: Clip = {}
    for name in DECODED_IN:
        arrays = [c[name] for c in clips]
        sizes = np.max([a.shape[1:] for a in arrays], axis=0)
        padded = [
            np.pad(
                a, [(0, 0), *((0, size - n) for n, size in zip(a.shape[1:], sizes, strict=True))]
            )
            for a in arrays
        ]
        batch[name] = np.concatenate(padded)
    return batch


def example(contract: Contract) -> Clip:
    """The batch to trace at: every size above 1 and no two dynamic sizes alike."""
    p = contract.preprocessing
    second = [clip(p, 2 + i, 0.9 + i / 3, 3 + 2 * i, seed=i) for i in range(3)]
    return collate(second)


def chain_example(contract: Contract) -> dict[str, NDArray[Any]]:
    """Inputs to trace the chain's graphs at: whatever a recogniser hears in made-up sounds, each
    size is above 1. Empty where the contract has no chain."""
    if contract.hearing is None:
        return {}
    given = example(contract)
    wave, length = given["waveform"], given["waveform_length"]
    ids = np.arange(WORDS_TRACED * len(wave), dtype=np.int64).reshape(len(wave), -1)
    return {
        "speech": wave,
        "speech_length": length,
        "mixture_length": length,
        "sources": np.stack((0.7 * wave, 0.3 * wave), axis=1).astype(np.float32),
        "word_ids": ids % MARKED_WORDS,
        "word_count": np.full_like(length, WORDS_TRACED),
    }


def heard(clips: Sequence[Clip]) -> list[Clip]:
    """The clips, and those with sound and words once more without the words."""
    spoken = [c for c in clips if c["waveform_length"].any() and c["text"][0, 0]]
    return [*clips, *unworded(spoken)]


def unworded(clips: Sequence[Clip]) -> list[Clip]:
    """The clips without the caller's words, so that their sound is recognised."""
    return [{**clip, "text": np.full_like(clip["text"], "")} for clip in clips]


def smallest(contract: Contract) -> list[Clip]:
    """Every pattern of presence at the smallest sizes that count as present."""
    p = contract.preprocessing
    return [clip(p, v, a * p.min_audio_seconds, t, seed=10) for v, a, t in PATTERNS]


def usual(contract: Contract) -> list[Clip]:
    """Every pattern of presence at everyday sizes, each clip of another length."""
    p = contract.preprocessing
    return [
        clip(p, v * (i % p.frames_per_clip + 1), a * (1.3 + 0.37 * i), t * (2 + i), seed=20 + i)
        for i, (v, a, t) in enumerate(PATTERNS)
    ]


def largest(contract: Contract) -> Clip:
    """As many faces, as long a sound and as many words as the contract admits."""
    p = contract.preprocessing
    return clip(p, p.frames_per_clip, p.max_audio_seconds, p.max_text_tokens, seed=30)
