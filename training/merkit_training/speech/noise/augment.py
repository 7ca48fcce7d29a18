"""Noise augmentation of the recogniser (seed 2.4.1): clean, ambient and voices as 2:1:1.

A recogniser that has heard only clean speech fails at the first running tap. Each utterance of a
batch stays as it is, or gets ambient noise (a recording, or generated), or voices of other
utterances through a room. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merkit_training.speech.noise.config import NoiseConfig
from merkit_training.speech.noise.folders import SoundFolder
from merkit_training.speech.noise.generated import Voices, generated
from merkit_training.speech.noise.levels import Wave, active_power, mix, power, stretched
from merkit_training.speech.noise.rooms import heard_in, rooms_of

Noise = Callable[[int, np.random.Generator], Wave]
"""Draws noise float32 [samples]."""
SPEECH = "speech"  # folder of MUSAN whose files are voices, not noise


class Augment:
    """Puts noise behind a batch of utterances.

    Args:
        config: the `[noise]` table.
        voices: draws utterances of others; without them the batch's other utterances speak.

    Raises:
        InvalidInputError: a folder of the table holds no sound.
    """

    def __init__(self, config: NoiseConfig, voices: Voices | None = None) -> None:
        self.config = config
        self._rooms = rooms_of(config)
        self._recorded = SoundFolder(Path(config.folder), without=SPEECH) if config.folder else None
        self._speakers: SoundFolder | None = None
        if self._recorded and any(Path(config.folder).expanduser().rglob(SPEECH)):
            self._speakers = SoundFolder(Path(config.folder), only=SPEECH)
        self._voices = voices

    def __call__(
        self, waveform: NDArray[np.float32], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """The batch float32 [b, samples], zero padded on the right, with noise in it.

        What is padding stays zero, and no sample passes full scale.
        """
        rows = [row[: _length(row)] for row in waveform]
        out = np.zeros_like(waveform)
        for i, row in enumerate(rows):
            others = [other for other in (*rows[:i], *rows[i + 1 :]) if len(other)]
            out[i, : len(row)] = self.one(row, rng, _any_of(others))
        return out

    def take(self, wave: Wave, seed: int, index: int) -> Wave:
        """One utterance with the noise that (seed, index) draws, always the same."""
        return self.one(wave, np.random.default_rng([seed, index]))

    def one(self, wave: Wave, rng: np.random.Generator, others: Voices | None = None) -> Wave:
        """One utterance float32 [samples] with noise; `others` speak where there are no voices."""
        c, voices = self.config, self._background(others)
        weights = np.array([c.clean, c.ambient, c.voices if voices else 0.0])
        if not len(wave) or not weights.any():
            return wave
        kind = int(rng.choice(3, p=weights / weights.sum()))
        if kind == 1:
            noise = self.ambient(len(wave), rng, voices)
            return mix(wave, noise, float(rng.uniform(*c.ambient_snr)), power(noise))
        if kind == 2 and voices:
            noise = self.voices(len(wave), rng, voices)
            return mix(wave, noise, float(rng.uniform(*c.voices_snr)), active_power(noise))
        return wave

    def ambient(self, size: int, rng: np.random.Generator, voices: Voices | None = None) -> Wave:
        """Noise of the surroundings float32 [size]: a recording, or a generated kind."""
        if self._recorded is not None:
            return stretched(self._recorded.draw(rng), size, rng)
        kinds = self.config.kinds
        kind = kinds[int(rng.integers(len(kinds)))]
        return generated(kind, size, rng, voices or self._voices)

    def voices(self, size: int, rng: np.random.Generator, voices: Voices) -> Wave:
        """Voices in the background float32 [size], each in its own place of one of the rooms."""
        low, high = self.config.talkers
        total = np.zeros(size, np.float32)
        for _ in range(int(rng.integers(low, high + 1))):
            total += heard_in(self._rooms(rng), stretched(voices(rng), size, rng))
        return total

    def _background(self, others: Voices | None) -> Voices | None:
        return self._speakers.draw if self._speakers else self._voices or others


def _any_of(waves: list[Wave]) -> Voices | None:
    return (lambda rng: waves[int(rng.integers(len(waves)))]) if waves else None


def _length(row: Wave) -> int:
    """Samples before the zeros that end a row."""
    sounding = np.flatnonzero(row)
    return int(sounding[-1]) + 1 if sounding.size else 0
