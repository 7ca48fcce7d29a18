"""Utterances as training data, and what an encoder of sound learns from them beside emotion.

A raw-waveform encoder that sees nothing but six-way labels of a few thousand utterances learns
slowly. The generator knows more: the prosody parameters, the class that the tone shows and the
one that the words show. Predicting these too is cheap and teaches what to listen for. Only
training uses them; an encoder's features come from the sound alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit_training.corpus import open_set, read_table
from merkit_training.labels import MER6, alias
from merkit_training.synth.speech import babble, mix

Wave = NDArray[np.float32]
NOISE_SNR = (3.0, 15.0)  # dB, of the babble that training mixes in
TALKERS = (3, 7)  # voices in a babble: at least, and fewer than


@dataclass(frozen=True)
class Utterances:
    """One split, without silent utterances (the seed filters them, 2.3)."""

    waveforms: NDArray[np.int16]  # [all, samples], zero padded; a memory map
    rows: NDArray[np.int64]  # [n]: where in `waveforms` each utterance of the split stands
    lengths: NDArray[np.int64]  # [n]
    labels: Tensor  # int64 [n], of MER6
    tones: Tensor  # int64 [n]: the class that the tone shows
    words: Tensor  # int64 [n]: the class that the words show
    prosody: Tensor  # float32 [n, parameters], standardised
    texts: tuple[str, ...]

    @staticmethod
    def read(corpus: Path, split: str) -> Utterances:
        """Reads one split of the corpus."""
        found = open_set(corpus, "utterances")
        rows = found.indices(split)
        table = read_table(corpus / "utterances" / "table.csv")
        chosen = rows[_audible(found["waveforms"], found["lengths"], rows)]

        def classes(column: str) -> Tensor:
            return torch.tensor([MER6.index(alias(table[i][column])) for i in chosen])

        return Utterances(
            found["waveforms"],
            chosen,
            np.asarray(found["lengths"])[chosen],
            torch.from_numpy(np.asarray(found["labels"])[chosen]),
            classes("tone_class"),
            classes("word_class"),
            torch.from_numpy(np.asarray(found["prosody"])[chosen]),
            tuple(table[i]["text"] for i in chosen),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def wave(self, index: int) -> Wave:
        """float32 [samples] in -1..1, padding removed."""
        samples = self.waveforms[self.rows[index], : self.lengths[index]]
        return np.asarray(samples.astype(np.float32) / np.float32(32768))

    def crop(self, index: int, size: int, rng: np.random.Generator) -> Wave:
        """A random stretch of `size` samples, or all of a shorter utterance."""
        wave = self.wave(index)
        start = int(rng.integers(max(1, len(wave) - size + 1)))
        return wave[start : start + size]

    def take(self, index: int, copy: int, seed: int) -> Wave:
        """Copy 0 is the utterance itself; each other one has babble of its own."""
        if copy == 0:
            return self.wave(index)
        return self.noisy(index, np.random.default_rng([seed, copy, index]))

    def noisy(self, index: int, rng: np.random.Generator) -> Wave:
        """The utterance with babble of other utterances, as in a crowded room."""
        others = rng.integers(len(self), size=rng.integers(*TALKERS))
        clean = self.wave(index)
        noise = babble([self.wave(int(i)) for i in others], len(clean), rng)
        return mix(clean, noise, float(rng.uniform(*NOISE_SNR)))


def _audible(
    waveforms: NDArray[np.int16], lengths: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    return np.array([bool(np.any(waveforms[i, : lengths[i]])) for i in rows], bool)


def batched(waves: list[Wave]) -> tuple[Tensor, Tensor]:
    """waveform float32 [n, samples] and waveform_length int64 [n, 1], as the contract has them."""
    lengths = torch.tensor([[len(wave)] for wave in waves])
    waveform = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(waveform, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return waveform, lengths


class Heads(nn.Module):
    """Linear readings of a feature: emotion, tone, words and prosody."""

    def __init__(self, width: int, prosody: int) -> None:
        super().__init__()
        self.emotion = nn.Linear(width, len(MER6))
        self.tone = nn.Linear(width, len(MER6))
        self.words = nn.Linear(width, len(MER6))
        self.prosody = nn.Linear(width, prosody)

    def loss(
        self,
        features: Tensor,
        data: Utterances,
        indices: Tensor,
        *,
        prosody_weight: float,
        class_weight: float,
        smoothing: float,
    ) -> Tensor:
        """Cross-entropies of the three classes and squared error of the prosody, weighted."""
        emotion = F.cross_entropy(
            self.emotion(features), data.labels[indices], label_smoothing=smoothing
        )
        tone = F.cross_entropy(self.tone(features), data.tones[indices])
        words = F.cross_entropy(self.words(features), data.words[indices])
        prosody = F.mse_loss(self.prosody(features), data.prosody[indices])
        total: Tensor = emotion + class_weight * (tone + words) + prosody_weight * prosody
        return total
