"""Utterances with their tokens, in batches of like length.

A batch costs what its longest sound costs. Utterances of own data last from one second to thirty,
and padded to each other at random most of the work would be done on silence.
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
from merkit.speech.vocabulary import Vocabulary
from merkit_training.corpus import read_sentences
from merkit_training.encoders.utterances import Utterances, batched
from merkit_training.speech.recognition.frontend import WINDOW
from merkit_training.speech.recognition.model import PADDED
from merkit_training.speech.recognition.tokens import learn_vocabulary

Augmentation = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]
"""float32 [b, samples], zero padded, and a generator; returns the same shape with noise in it.
`merkit_training.speech.noise.augment.Augment` is one."""
SHORTEST = 0.1  # seconds of sound that a text may belong to


@dataclass(frozen=True)
class SpokenTexts:
    """One split of a corpus, without utterances that have no text or hardly any sound."""

    sounds: Utterances
    rows: NDArray[np.int64]  # [n], of `sounds`, by length
    targets: tuple[tuple[int, ...], ...]  # n: tokens of each, without marks
    texts: tuple[str, ...]  # n

    @staticmethod
    def of(sounds: Utterances, vocabulary: Vocabulary, split: str) -> SpokenTexts:
        """Utterances as training data.

        Raises:
            InvalidInputError: none of them has words.
        """
        least = max(WINDOW, round(SHORTEST * 16_000))
        tokens = [tuple(vocabulary.encode(text)) for text in sounds.texts]
        kept = [i for i, ids in enumerate(tokens) if ids and sounds.lengths[i] >= least]
        if not kept:
            raise InvalidInputError(
                f"none of the {len(sounds)} utterances of the split {split!r} has words",
                "utterances with a text",
                "fill the column text, or leave the recogniser out (epochs = 0)",
            )
        rows = np.array(sorted(kept, key=lambda i: (int(sounds.lengths[i]), i)), np.int64)
        return SpokenTexts(
            sounds,
            rows,
            tuple(tokens[i] for i in rows),
            tuple(sounds.texts[i] for i in rows),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> list[NDArray[np.int64]]:
        """All places, neighbours in length together, at most `size` to a batch."""
        count = -(-len(self) // size)
        return [part.astype(np.int64) for part in np.array_split(np.arange(len(self)), count)]

    def waves(
        self,
        places: NDArray[np.int64],
        augment: Augmentation | None = None,
        rng: np.random.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sound float32 [b, samples], zero padded, and lengths int64 [b]."""
        waveform, lengths = batched([self.sounds.wave(int(self.rows[i])) for i in places])
        if augment is not None and rng is not None:
            waveform = torch.from_numpy(augment(waveform.numpy(), rng))
        return waveform, lengths.squeeze(1)

    def tokens(self, places: NDArray[np.int64]) -> Tensor:
        """int64 [b, most], PADDED behind the end."""
        chosen = [self.targets[i] for i in places]
        padded = torch.full((len(chosen), max(map(len, chosen))), PADDED)
        for row, ids in zip(padded, chosen, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return padded


def corpus_vocabulary(corpus: Path, sounds: Utterances, word_pieces: int) -> Vocabulary:
    """The tokens of a corpus: of its training utterances, and of its sentences if it has any."""
    texts = list(sounds.texts)
    if (corpus / "sentences" / "table.csv").is_file():
        texts += [row["text"] for row in read_sentences(corpus, "train")]
    return learn_vocabulary(texts, word_pieces)
