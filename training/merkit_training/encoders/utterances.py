"""Utterances as training data, and what an encoder of sound learns from them beside emotion.

A raw-waveform encoder that sees nothing but a few thousand labels learns slowly. The generator of
the synthetic corpus knows more: the prosody parameters, the class that the tone shows and the one
that the words show. Predicting these too is cheap and teaches what to listen for. Own recordings
have none of it: there the labels alone teach. Only training uses any of this; an encoder's
features come from the sound alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.errors import InvalidInputError
from merkit_training.corpus import REGENERATE, ArraySet, open_set, read_table
from merkit_training.labels import MER6, alias, classes_of
from merkit_training.synth.speech import babble, mix

Wave = NDArray[np.float32]
NOISE_SNR = (3.0, 15.0)  # dB, of the babble that training mixes in
TALKERS = (3, 7)  # voices in a babble: at least, and fewer than
NAMED = 3  # of utterances at fault that a message names


@dataclass(frozen=True)
class Utterances:
    """One split, without silent utterances (the seed filters them, 2.3)."""

    waveforms: NDArray[np.int16]  # [all, samples], zero padded; a memory map
    rows: NDArray[np.int64]  # [n]: where in `waveforms` each utterance of the split stands
    starts: NDArray[np.int64]  # [n]: first sample of what is kept of each
    lengths: NDArray[np.int64]  # [n], samples kept
    labels: Tensor  # int64 [n], of `classes`
    classes: tuple[str, ...]
    texts: tuple[str, ...]
    names: tuple[str, ...]
    silent: tuple[str, ...]  # names of those left out: no samples, or zeros alone
    prosody: Tensor  # float32 [n, parameters], standardised; no parameters where none are known
    tones: Tensor | None = None  # int64 [n]: the class that the tone shows, where it is known
    words: Tensor | None = None  # int64 [n]: the class that the words show, where it is known

    @staticmethod
    def read(corpus: Path, split: str, most: int = 0) -> Utterances:
        """Reads one split of the corpus.

        Args:
            corpus: its folder.
            split: `train` or `val`.
            most: samples; of a longer utterance the middle, as `decode` keeps it (0: no limit).

        Raises:
            InvalidInputError: a file is missing or malformed, a length or label is impossible,
                or no utterance of the split can be heard; the utterances are named.
        """
        found = open_set(corpus, "utterances")
        table = read_table(corpus / "utterances" / "table.csv")
        classes = classes_of(corpus)
        names = _checked(found, table, classes, corpus / "utterances")
        rows = found.indices(split)
        audible = _audible(found["waveforms"], found["lengths"], rows)
        chosen, silent = rows[audible], tuple(names[i] for i in rows[~audible])
        if not len(chosen):
            raise InvalidInputError(
                f"no utterance of the split {split!r} in {corpus} can be heard"
                f" ({len(silent)} silent{_some(silent)})",
                "at least one with sound",
                "check the recordings, or how they were divided into splits",
            )

        def shown(column: str) -> Tensor | None:
            if column not in table[0]:
                return None
            return torch.tensor([_place(table[i][column], classes) for i in chosen])

        lengths = np.asarray(found["lengths"])[chosen]
        kept = np.minimum(lengths, most) if most else lengths
        known = found.arrays.get("prosody")
        prosody = np.zeros((len(chosen), 0), np.float32) if known is None else known[chosen]
        return Utterances(
            found["waveforms"],
            chosen,
            (lengths - kept) // 2,
            kept,
            torch.from_numpy(np.asarray(found["labels"])[chosen]),
            classes,
            tuple(table[i].get("text", "") for i in chosen),
            tuple(names[i] for i in chosen),
            silent,
            torch.from_numpy(np.asarray(prosody)),
            shown("tone_class"),
            shown("word_class"),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def wave(self, index: int) -> Wave:
        """float32 [samples] in -1..1, padding removed."""
        start = self.starts[index]
        samples = self.waveforms[self.rows[index], start : start + self.lengths[index]]
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


def _checked(
    found: ArraySet, table: Sequence[Mapping[str, str]], classes: Sequence[str], folder: Path
) -> list[str]:
    """The utterances' names, once every row is known to be possible."""
    for key in ("waveforms", "lengths", "labels"):
        if key not in found.arrays:
            raise InvalidInputError(f"{folder} holds no {key}.npy", "a complete set", REGENERATE)
    waves, count = found["waveforms"], len(found.split)
    if waves.ndim != 2 or waves.dtype != np.int16:
        raise InvalidInputError(
            f"{folder}/waveforms.npy is {waves.dtype} {list(waves.shape)}",
            "int16 [utterances, samples]",
            REGENERATE,
        )
    if len(table) != count:
        raise InvalidInputError(
            f"{folder}/table.csv has {len(table)} rows", f"{count}, as the arrays", REGENERATE
        )
    names = [row.get("name") or f"row {i}" for i, row in enumerate(table)]
    limits: list[tuple[str, int, Any]] = [
        ("lengths", waves.shape[1], "samples that waveforms.npy holds"),
        ("labels", len(classes) - 1, f"places among {', '.join(classes)}"),
    ]
    for key, most, what in limits:
        values = np.asarray(found[key])
        wrong = [names[i] for i in np.flatnonzero((values < 0) | (values > most))]
        if wrong:
            raise InvalidInputError(
                f"{len(wrong)} values in {folder}/{key}.npy are impossible{_some(wrong)}",
                f"0 to {most}, {what}",
                "correct or remove these utterances",
            )
    return names


def _place(name: str, classes: Sequence[str]) -> int:
    return classes.index(name if name in classes else alias(name))


def _some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    more = ", ..." if len(names) > NAMED else ""
    return f": {', '.join(names[:NAMED])}{more}" if names else ""


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
    """Linear readings of a feature: emotion, and tone, words and prosody for data that has them."""

    def __init__(
        self, width: int, prosody: int, classes: int = len(MER6), shown: bool = True
    ) -> None:
        """Heads for `prosody` parameters (0: none), and for tone and words if they are `shown`."""
        super().__init__()
        self.emotion = nn.Linear(width, classes)
        self.tone = nn.Linear(width, classes) if shown else None
        self.words = nn.Linear(width, classes) if shown else None
        self.prosody = nn.Linear(width, prosody) if prosody else None

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
        """Cross-entropies of the three classes and squared error of the prosody, weighted; a
        term of weight 0, without a head, or of which `data` knows nothing is absent."""
        place = features.device
        truth = data.labels[indices].to(place)
        total = F.cross_entropy(self.emotion(features), truth, label_smoothing=smoothing)
        if class_weight > 0:
            for head, shown in ((self.tone, data.tones), (self.words, data.words)):
                if head is not None and shown is not None:
                    total = total + class_weight * F.cross_entropy(
                        head(features), shown[indices].to(place)
                    )
        if prosody_weight > 0 and self.prosody is not None:
            known = data.prosody[indices].to(place)
            total = total + prosody_weight * F.mse_loss(self.prosody(features), known)
        return total
