"""How a face moves through a clip: onset, apex and offset, blinking, speaking, head sway.

A clip whose every frame showed the whole expression would not need several frames. Here the
expression comes and goes, and in brief clips only part of the frames show it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from merkit_training.synth.faces import View
from merkit_training.synth.model import UNITS, Floats

MOUTH_OPEN = UNITS.index("mouth_open")
MOUTH_WIDTH = UNITS.index("mouth_width")
SWAY_HZ = (0.35, 0.8)


@dataclass(frozen=True)
class Performance:
    """Times in shares of the clip's duration, which runs from 0 to 1."""

    onset: float  # the expression begins to rise
    apex: float  # it is fully there
    release: float  # it begins to fall
    offset: float  # it is gone
    brief: bool
    blinks: tuple[float, ...]
    sway: tuple[float, float, float]  # amplitude over x, y (canvas units) and angle (degrees)
    phase: tuple[float, float, float]


def perform(rng: np.random.Generator, brief_share: float) -> Performance:
    """Draws a performance; brief ones show the expression in 40 to 55 % of the time."""
    brief = bool(rng.random() < brief_share)
    if brief:
        length = rng.uniform(0.40, 0.55)
        onset = rng.uniform(0.02, 0.98 - length)
    else:
        onset, length = rng.uniform(-0.15, 0.05), rng.uniform(0.95, 1.2)
    rise, fall = rng.uniform(0.04, 0.10, 2)
    return Performance(
        onset,
        onset + rise,
        onset + length - fall,
        onset + length,
        brief,
        tuple(rng.uniform(0, 1, rng.integers(0, 3)).tolist()),
        (rng.uniform(0.5, 1.6), rng.uniform(0.3, 1.0), rng.uniform(0.5, 2.0)),
        tuple(rng.uniform(0, 2 * np.pi, 3).tolist()),
    )


def intensity(how: Performance, time: float) -> float:
    """Share of the apex shown at `time`: 0 to 1, with smooth flanks."""
    edges = (how.onset, how.apex, how.release, how.offset)
    level = float(np.interp(time, edges, (0.0, 1.0, 1.0, 0.0)))
    return level * level * (3 - 2 * level)


def frame_units(how: Performance, apex: Floats, time: float, voiced: float) -> Floats:
    """Face parameters at `time`; `voiced` in 0..1 is how loudly the mouth speaks."""
    units = apex * intensity(how, time)
    units[MOUTH_OPEN] += 0.5 * voiced
    units[MOUTH_WIDTH] -= 0.12 * voiced
    return units


def blink(how: Performance, time: float, seconds: float) -> float:
    """How far the lids are closed at `time`: 0 to 1, for some 0.2 s around each blink."""
    gaps = [abs(time - b) * seconds / 0.1 for b in how.blinks]
    return float(max((1 - gap for gap in gaps if gap < 1), default=0.0))


def sway(how: Performance, view: View, time: float, seconds: float) -> View:
    """The view as the head moves."""
    turns = [2 * np.pi * f * time * seconds for f in (SWAY_HZ[0], SWAY_HZ[1], SWAY_HZ[0])]
    x, y, angle = (
        a * np.sin(turn + p) for a, turn, p in zip(how.sway, turns, how.phase, strict=True)
    )
    centre = (view.centre[0] + x * view.scale, view.centre[1] + y * view.scale)
    return replace(view, centre=centre, angle=view.angle + angle)


def loudness(wave: NDArray[np.float32], rate: int, times: Floats) -> Floats:
    """Loudness of the voice around each of `times` (seconds), 0 to 1."""
    window = rate // 12
    envelope = np.sqrt(np.maximum(uniform_filter1d(wave.astype(np.float64) ** 2, window), 0))
    level = envelope / (np.percentile(envelope, 95) + 1e-9)
    spots = np.clip((times * rate).astype(np.int64), 0, wave.size - 1)
    return np.asarray(np.clip(level[spots], 0, 1))
