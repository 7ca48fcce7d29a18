"""Sentences as training data: ids end to end in one array, labels where there are any.

The seed fine-tunes on two million texts. Padded to the longest they would fill the memory many
times over; so they lie in one row of tokens, and each batch is cut out and padded when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit.errors import InvalidInputError
from merkit_training.corpus import read_sentences
from merkit_training.encoders.text import tokenizer
from merkit_training.labels import alias, classes_of
from merkit_training.recipe import Recipe

UNLABELLED = -1
AT_ONCE = 4096  # texts tokenised together


@dataclass(frozen=True)
class Sentences:
    """One split, without empty texts."""

    tokens: NDArray[np.int32]  # of all texts, one after the other
    starts: NDArray[np.int64]  # [n + 1]: where in `tokens` each text begins, and the last ends
    labels: Tensor  # int64 [n], of `classes`; -1: none
    classes: tuple[str, ...]
    empty: tuple[int, ...]  # rows of the split (from 1) that held no words and are left out

    @staticmethod
    def read(recipe: Recipe, corpus: Path, run: Path, split: str) -> Sentences:
        """Reads and tokenises one split of the corpus.

        Raises:
            InvalidInputError: an unknown label, by row, or no text with words in the split.
            BundleError: the run has no tokeniser.
        """
        classes, rows = classes_of(corpus), read_sentences(corpus, split)
        words, limit = tokenizer.load(run), recipe.preprocessing.max_text_tokens
        labels = [_place(row.get("discrete", ""), classes, i) for i, row in enumerate(rows, 1)]
        parts, counts = [np.zeros(0, np.int32)], []
        for i in range(0, len(rows), AT_ONCE):
            texts = [row.get("text") or "" for row in rows[i : i + AT_ONCE]]
            ids, lengths = tokenizer.encode(words, texts, limit)
            parts.append(ids[np.arange(ids.shape[1]) < lengths].astype(np.int32))
            counts += lengths[:, 0].tolist()
        if not any(counts):
            raise InvalidInputError(
                f"{corpus / 'sentences'} has no words in the split {split!r} ({len(rows)} rows)",
                "a table.csv with the columns text, discrete, split",
                "add sentences, or check their split",
            )
        kept = [i for i, count in enumerate(counts) if count]
        starts = np.cumsum([0, *(counts[i] for i in kept)], dtype=np.int64)
        empty = tuple(i + 1 for i, count in enumerate(counts) if not count)
        chosen = torch.tensor([labels[i] for i in kept])
        return Sentences(np.concatenate(parts), starts, chosen, classes, empty)

    def __len__(self) -> int:
        return len(self.labels)

    def labelled(self) -> NDArray[np.int64]:
        """Numbers of the texts that have a label."""
        return np.flatnonzero(self.labels.numpy() != UNLABELLED)

    def batch(self, indices: NDArray[np.int64], place: torch.device) -> tuple[Tensor, Tensor]:
        """ids int64 [batch, longest], right padded, and lengths int64 [batch, 1]."""
        lengths = (self.starts[indices + 1] - self.starts[indices])[:, None]
        ids = np.zeros((len(indices), int(lengths.max(initial=1))), np.int64)
        for row, i in zip(ids, indices, strict=True):
            own = self.tokens[self.starts[i] : self.starts[i + 1]]
            row[: len(own)] = own
        return torch.from_numpy(ids).to(place), torch.from_numpy(lengths).to(place)


def _place(name: str, classes: Sequence[str], row: int) -> int:
    """The number of a class; UNLABELLED where no name is given."""
    if not name.strip():
        return UNLABELLED
    if name in classes:
        return classes.index(name)
    try:
        return classes.index(alias(name))
    except (ValueError, InvalidInputError):
        raise InvalidInputError(
            f"sentence {row} has the label {name!r}",
            f"one of {', '.join(classes)}, or nothing",
            "correct the table, or name the class in the corpus' card.json",
        ) from None
