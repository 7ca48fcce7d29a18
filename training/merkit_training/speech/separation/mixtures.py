"""Mixtures with known sources, made while training from utterances of different voices.

Nobody records two people apart and together at once. So two sentences are added up, or one and a
noise, at a random ratio. No mixture is kept: each one is a function of a generator alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit.errors import InvalidInputError
from merkit_training.corpus import read_table
from merkit_training.encoders.utterances import Utterances, Wave
from merkit_training.speech.noise.generated import Voices
from merkit_training.speech.noise.levels import PEAK, active_power, power
from merkit_training.speech.separation.config import SeparatorConfig

Noise = Callable[[int, np.random.Generator, Voices | None], Wave]
"""Draws noise float32 [samples], in which the given voices may speak: `Augment.ambient`."""


@dataclass(frozen=True)
class Mixture:
    """One sample: `waveform` float32 [s], and `sources` float32 [2, s] that add up to it. Of a
    noisy one the voice comes first."""

    waveform: Wave
    sources: Wave
    noisy: bool


@dataclass(frozen=True)
class Mixer:
    """Draws mixtures of one split, whose voices and sentences no other split has."""

    data: Utterances
    voices: NDArray[np.int64]  # [n]: each utterance's voice
    config: SeparatorConfig
    noise: Noise

    @staticmethod
    def read(corpus: Path, split: str, config: SeparatorConfig, noise: Noise) -> Mixer:
        """Reads a split's utterances and voices.

        An utterance whose voice the table does not tell counts as a voice of its own.

        Raises:
            InvalidInputError: as `Utterances.read`, or one voice where two are to be mixed.
        """
        data = Utterances.read(corpus, split)
        table = read_table(corpus / "utterances" / "table.csv")
        names = [table[i].get("voice") or f"row {i}" for i in data.rows]
        voices = np.unique(names, return_inverse=True)[1].astype(np.int64)
        if config.noise_share < 1 and len(set(voices.tolist())) < 2:
            raise InvalidInputError(
                f"the utterances of the split {split!r} are of one voice",
                "two or more",
                "add recordings of others, or set noise_share = 1.0 in [separator]",
            )
        return Mixer(data, voices, config, noise)

    def draw(self, rng: np.random.Generator, samples: int = 0) -> Mixture:
        """A random mixture of `samples` samples (0: as long as its longest sentence)."""
        index = int(rng.integers(len(self.data)))
        noisy = bool(rng.random() < self.config.noise_share)
        others = np.flatnonzero(self.voices != self.voices[index])
        first = self.data.wave(index)

        def another(rng: np.random.Generator) -> Wave:
            return self.data.wave(int(rng.choice(others)))

        if noisy:
            size = samples or len(first)
            second = self.noise(size, rng, another if len(others) else None)
        else:
            second = another(rng)
            size = samples or max(len(first), len(second))
        sources = np.stack([_placed(wave, size, rng) for wave in (first, second)])
        low, high = self.config.noise_snr if noisy else self.config.snr
        level = power(sources[1]) if noisy else active_power(sources[1])
        wanted = active_power(sources[0]) * 10 ** (-rng.uniform(low, high) / 10)
        sources[1] *= np.float32(np.sqrt(wanted / max(level, 1e-12)))
        waveform = sources.sum(0)
        scale = np.float32(min(1.0, PEAK / max(float(np.abs(waveform).max()), PEAK)))
        return Mixture(waveform * scale, sources * scale, noisy)


def batch(mixtures: list[Mixture]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """waveform [b, s], length int64 [b, 1], sources [b, 2, s] and mask float [b, s], padded."""
    lengths = torch.tensor([[len(m.waveform)] for m in mixtures])
    size = int(lengths.max())
    waveform, sources = torch.zeros(len(mixtures), size), torch.zeros(len(mixtures), 2, size)
    for i, mixture in enumerate(mixtures):
        waveform[i, : lengths[i]] = torch.from_numpy(mixture.waveform)
        sources[i, :, : lengths[i]] = torch.from_numpy(mixture.sources)
    return waveform, lengths, sources, (torch.arange(size) < lengths).float()


def _placed(wave: Wave, size: int, rng: np.random.Generator) -> Wave:
    """A random stretch of a longer wave; a shorter one at a random place, silence around it."""
    if len(wave) >= size:
        start = int(rng.integers(len(wave) - size + 1))
        return wave[start : start + size]
    start = int(rng.integers(size - len(wave) + 1))
    return np.pad(wave, (start, size - len(wave) - start))
