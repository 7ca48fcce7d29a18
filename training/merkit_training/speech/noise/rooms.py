"""Rooms: a voice in the background reaches the microphone by way of the walls.

Voices added as they were recorded sound as near as the speaker, and a recogniser that learns to
ignore those learns little about a crowded room. Rooms are simulated by the image-source method
(pyroomacoustics), or given as recordings of impulse responses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.signal import fftconvolve

from merkit.errors import MissingExtraError
from merkit_training.speech.noise.config import NoiseConfig, Pair
from merkit_training.speech.noise.folders import SoundFolder
from merkit_training.speech.noise.generated import RATE
from merkit_training.speech.noise.levels import Wave

Rooms = Callable[[np.random.Generator], Wave]
"""Draws an impulse response, float32 [samples]."""
SIZES = ((2.5, 8.0), (2.5, 8.0), (2.4, 3.6))  # metres: length, width, height
MARGIN = 0.4  # metres that source and microphone keep from the walls
NEAREST = 1.0  # metre between a voice in the background and the microphone
DRAWS = 50  # tries for places that keep apart
ORDER = 12  # reflections at most: later ones lie below what the mixture lets one hear
BEFORE = 8  # samples kept before the direct sound, which the resampling of a recording spreads


def rooms_of(config: NoiseConfig) -> Rooms:
    """The rooms that a table asks for: recordings if it names a folder, else simulated ones.

    Raises:
        InvalidInputError: a folder without recordings.
    """
    if config.rooms_folder:
        folder = SoundFolder(Path(config.rooms_folder))
        return lambda rng: aligned(folder.draw(rng))

    @lru_cache(maxsize=config.rooms)
    def room(number: int) -> Wave:
        return simulated(number, config.reverberation)

    return lambda rng: room(int(rng.integers(config.rooms)))


def simulated(number: int, reverberation: Pair = (0.15, 0.6)) -> Wave:
    """The impulse response of a box-shaped room; the same number gives the same room.

    Args:
        number: of the room; draws its size, the places of voice and microphone, and the walls.
        reverberation: bounds of the time in seconds in which sound falls by 60 dB.

    Raises:
        MissingExtraError: pyroomacoustics is not installed.
    """
    try:
        import pyroomacoustics as acoustics
    except ImportError:
        raise MissingExtraError.of("pyroomacoustics", "noise") from None
    rng = np.random.default_rng([0x700, number])
    size = np.array([rng.uniform(*bounds) for bounds in SIZES])
    wanted = float(rng.uniform(*reverberation))
    volume, walls = size.prod(), 2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
    absorbed = min(0.161 * volume / (walls * wanted), 0.99)  # Sabine
    ear, mouth = _places(size, rng)
    room = acoustics.ShoeBox(
        size, fs=RATE, materials=acoustics.Material(absorbed), max_order=ORDER, air_absorption=False
    )
    room.add_source(mouth)
    room.add_microphone(ear)
    room.compute_rir()
    return aligned(np.asarray(room.rir[0][0], np.float32))


def aligned(response: Wave) -> Wave:
    """From just before the direct sound on, with energy 1: rooms neither delay nor amplify."""
    first = int(np.abs(response).argmax())
    kept = response[max(first - BEFORE, 0) :].astype(np.float64)
    return np.asarray(kept / max(float(np.sqrt((kept**2).sum())), 1e-9), np.float32)


def heard_in(room: Wave, voice: Wave) -> Wave:
    """The voice as it arrives through the room; as long as it was."""
    return np.asarray(fftconvolve(voice, room)[: len(voice)], np.float32)


def _places(size: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Microphone and voice, away from the walls and from each other (in a small room as far as
    the last draw has them)."""
    for _ in range(DRAWS):
        ear, mouth = (rng.uniform(MARGIN, size - MARGIN) for _ in range(2))
        if np.linalg.norm(ear - mouth) >= NEAREST:
            break
    return ear, mouth
