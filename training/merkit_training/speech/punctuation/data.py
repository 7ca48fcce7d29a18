"""Punctuated sentences as training data: words, and the mark that followed each.

Sentences of a corpus stand alone, and a model that saw them alone would learn that a text ends
after one. So samples are several sentences in a row, as speech is, and the last one may break off
anywhere, as windows do. Where a sentence has no mark at its end, a full stop is meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError
from merkit.speech.punctuate import ENDS, NOTHING, STOP, UNKNOWN, Word, role_of, split_words
from merkit_training.corpus import read_sentences

IGNORED = 0  # class of padding, FunASR's `ignore_id`
LEAST = 2  # occurrences that make a word known


@dataclass(frozen=True)
class MarkedSentences:
    """Sentences as ids of words and classes of the marks behind them."""

    words: tuple[NDArray[np.int64], ...]
    marks: tuple[NDArray[np.int64], ...]

    @staticmethod
    def of(texts: Iterable[str], tokens: Sequence[str], marks: Sequence[str]) -> MarkedSentences:
        """Encodes texts; those without a word are left out.

        Raises:
            InvalidInputError: none has a word.
        """
        ids = {token: i for i, token in enumerate(tokens)}
        roles = {
            role_of(mark): i for i, mark in reversed(list(enumerate(marks))) if mark != UNKNOWN
        }
        found = [(words, ended(words)) for text in texts if (words := split_words(text))]
        if not found:
            raise InvalidInputError("no sentence has a word", "punctuated text to learn from")
        return MarkedSentences(
            tuple(
                np.array([ids.get(w.key, ids[UNKNOWN]) for w in ws], np.int64) for ws, _ in found
            ),
            tuple(
                np.array([roles.get(m, roles[NOTHING]) for m in ms], np.int64) for _, ms in found
            ),
        )

    def __len__(self) -> int:
        return len(self.words)

    def row(
        self, first: int, joined: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A sample: the sentence `first` and up to `joined` - 1 others; the last may break off."""
        others = rng.integers(len(self), size=rng.integers(joined))
        chosen = [first, *others.tolist()]
        words = np.concatenate([self.words[i] for i in chosen])
        marks = np.concatenate([self.marks[i] for i in chosen])
        cut = int(rng.integers(len(self.words[chosen[-1]]))) if others.size else 0
        return words[: len(words) - cut], marks[: len(marks) - cut]


def ended(words: Sequence[Word]) -> list[str]:
    """The marks behind words, the last of which ends a sentence."""
    marks = [word.mark for word in words]
    if marks[-1] not in ENDS:
        marks[-1] = STOP
    return marks


def padded(
    rows: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Words int64 [b, t], their numbers [b], and marks [b, t], IGNORED behind the last word."""
    lengths = np.array([len(words) for words, _ in rows], np.int64)
    out = np.zeros((2, len(rows), int(lengths.max())), np.int64)
    for i, (words, marks) in enumerate(rows):
        out[0, i, : len(words)], out[1, i, : len(marks)] = words, marks
    return out[0], lengths, out[1]


def learn_tokens(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """`<unk>` and the most frequent words, of all that occur more than once."""
    counts = Counter(word.key for text in texts for word in split_words(text))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    known = (word for word, count in ranked if count >= LEAST and word != UNKNOWN)
    return (UNKNOWN, *list(known)[: most - 1])


def read_texts(corpus: Path, split: str, files: Sequence[str]) -> list[str]:
    """Sentences of a corpus' split; with those of `train` the lines of further files.

    Raises:
        InvalidInputError: a file cannot be read.
    """
    texts = [row["text"] or "" for row in read_sentences(corpus, split)]
    for file in files if split == "train" else ():
        try:
            texts += Path(file).expanduser().read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"{file} cannot be read ({error})", "text in UTF-8", "correct `text` in the recipe"
            ) from None
    return texts
