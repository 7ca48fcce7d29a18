"""Sounds that a pipeline has to listen to: a voice-like one, and those that no transcript fits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
Wave = NDArray[np.float32]


def voice(seconds: float = 2.0, pitch: float = 120.0) -> Wave:
    """Four syllables a second, ever louder: a pulse train through a formant, with gaps."""
    time = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 12))
    noise = np.random.default_rng(5).standard_normal(time.size)
    loud = np.mod(time, 0.25) < 0.17
    return np.asarray(0.1 * (0.5 + time) * wave * loud + 1e-4 * noise, np.float32)


def _tones() -> Wave:
    """A chord that changes each half second."""
    time = np.arange(2 * RATE) / RATE
    root = 220 * 2 ** (np.floor(2 * time) / 12)
    return np.asarray(
        sum(np.sin(2 * np.pi * root * k * time) for k in (1, 1.25, 1.5)) / 6, np.float32
    )


SOUNDS: dict[str, Callable[[], Wave]] = {
    "voice": voice,
    "silence": lambda: np.zeros(RATE, np.float32),
    "10 ms": lambda: voice()[:160],
    "clipped": lambda: np.clip(20 * voice(), -1, 1),
    "offset": lambda: voice() + np.float32(0.1),
    "hiss": lambda: np.float32(0.1) * np.random.default_rng(1).standard_normal(RATE).astype("f4"),
    "music": _tones,
    "nothing": lambda: np.zeros(0, np.float32),
}
