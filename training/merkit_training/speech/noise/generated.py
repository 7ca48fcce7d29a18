"""Noise for whoever has no recordings of noise: no corpus travels with the project.

Each kind fails a recogniser in another way: pink and brown cover the spectrum, hum stands on
lines, crackle comes in bursts, babble is speech itself. Power is normalised, for levels are set
when noise is mixed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from merkit_training.speech.noise.config import Kind
from merkit_training.speech.noise.levels import Wave, stretched

RATE = 16_000  # Hz
Voices = Callable[[np.random.Generator], Wave]
"""Draws an utterance, float32 [samples]."""
BABBLERS = (4, 9)  # voices in a babble, at least and fewer than


def generated(kind: Kind, size: int, rng: np.random.Generator, voices: Voices | None) -> Wave:
    """Noise of a kind, float32 [size], of mean square 1; babble without voices is pink noise."""
    if kind == "babble" and voices is not None:
        return _normal(babble(voices, size, rng))
    if kind in ("pink", "brown", "babble"):
        return _normal(_coloured(size, 2.0 if kind == "brown" else 1.0, rng))
    return _normal(_hum(size, rng) if kind == "hum" else _crackle(size, rng))


def babble(voices: Voices, size: int, rng: np.random.Generator) -> Wave:
    """Several talkers at once, each as loud as the others and from a random point."""
    count = int(rng.integers(*BABBLERS))
    parts = [_normal(stretched(voices(rng), size, rng)) for _ in range(count)]
    return np.asarray(np.sum(parts, axis=0), np.float32)


def _coloured(size: int, slope: float, rng: np.random.Generator) -> Wave:
    """Noise whose power falls as frequency^-slope, from 20 Hz upwards."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequencies = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 20.0)
    return np.fft.irfft(spectrum * frequencies ** (-slope / 2), size).astype(np.float32)


def _hum(size: int, rng: np.random.Generator) -> Wave:
    """Mains hum: 50 or 60 Hz with falling harmonics, swelling slowly, over a little hiss."""
    time = np.arange(size) / RATE
    base = float(rng.choice([50.0, 60.0]))
    lines = [
        rng.uniform(0.3, 1) / n * np.sin(2 * np.pi * (base * n * time + rng.random()))
        for n in range(1, 17)
    ]
    swell = 1 + 0.3 * np.sin(2 * np.pi * (rng.uniform(0.1, 0.5) * time + rng.random()))
    return np.asarray(np.sum(lines, axis=0) * swell + 0.05 * rng.standard_normal(size), np.float32)


def _crackle(size: int, rng: np.random.Generator) -> Wave:
    """Bursts of a few milliseconds, some twenty a second, that ring out at random pitches."""
    out = (0.01 * rng.standard_normal(size)).astype(np.float32)
    for start in rng.integers(0, max(size, 1), max(1, round(20 * size / RATE))):
        time = np.arange(min(int(rng.integers(80, 480)), size - int(start)))
        ring = np.exp(-time / rng.uniform(15, 120)) * np.sin(rng.uniform(0.1, 2.5) * time)
        out[start : start + len(time)] += (rng.lognormal(0, 0.7) * ring).astype(np.float32)
    return out


def _normal(wave: Wave) -> Wave:
    spread = float(np.sqrt(np.mean(wave.astype(np.float64) ** 2))) if len(wave) else 0.0
    return np.asarray(wave / spread, np.float32) if spread > 0 else wave
