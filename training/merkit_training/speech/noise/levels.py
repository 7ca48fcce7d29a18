"""Levels and mixing: an SNR means nothing unless it is said over which samples it was measured.

A sentence of two seconds with one of silence around it has a third less power than the sentence.
Measured over all samples, "5 dB" would be louder noise in short sentences than in long ones. So
the level of speech is that of its active frames alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]

FRAME = 320  # samples: 20 ms at 16 kHz
ACTIVE = 30.0  # dB below the loudest frame a frame still counts as active
PEAK = 0.98  # full scale that no mixture passes


def active_power(wave: Wave) -> float:
    """Mean square over the frames within 30 dB of the loudest; 0 for silence and for nothing."""
    if not len(wave):
        return 0.0
    frames = np.pad(wave, (0, -len(wave) % FRAME)).astype(np.float64).reshape(-1, FRAME)
    power = (frames**2).mean(axis=1)
    return float(power[power >= power.max() * 10 ** (-ACTIVE / 10)].mean())


def power(wave: Wave) -> float:
    """Mean square over all samples; 0 for nothing."""
    return float(np.mean(wave.astype(np.float64) ** 2)) if len(wave) else 0.0


def mix(speech: Wave, noise: Wave, snr: float, noise_power: float) -> Wave:
    """`speech` with `noise` behind it at `snr` dB, both turned down alike where they would clip.

    Args:
        speech: float32 [s]; its level is that of its active frames.
        noise: float32 [s].
        snr: dB.
        noise_power: of `noise`: `power` of steady noise, `active_power` of voices.

    Returns:
        float32 [s], within ±PEAK; `speech` as it is where one of the two is silent.
    """
    level = active_power(speech)
    if level <= 0 or noise_power <= 0:
        return speech
    mixed = speech + np.sqrt(level / (noise_power * 10 ** (snr / 10))) * noise
    loudest = float(np.abs(mixed).max())
    return np.asarray(mixed * (PEAK / loudest if loudest > PEAK else 1.0), np.float32)


def stretched(wave: Wave, size: int, rng: np.random.Generator) -> Wave:
    """A random stretch of `size` samples; of a shorter sound repetitions from a random point."""
    if not len(wave):
        return np.zeros(size, np.float32)
    if len(wave) >= size:
        start = int(rng.integers(len(wave) - size + 1))
        return wave[start : start + size]
    return np.resize(np.roll(wave, -int(rng.integers(len(wave)))), size)
