"""Captions of faces: what an image-text pre-training reads beside the images.

A set of faces may bring its own (`faces/captions.csv`). Where it does not, its labels and action
units are told in words, the clear ones and in several wordings, as people caption pictures. Two
faces of which the same is told are no rivals: each would count the other's caption as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError
from merkit_training.corpus import open_set, read_table
from merkit_training.labels import face_classes_of
from merkit_training.runs import read_json

PAD, UNKNOWN = 0, 1
CLEAR = 0.8  # standard deviations from the mean at which an action unit is worth a word
WORD = re.compile(r"\w+(?:-\w+)*")
LOOKS = (
    "a face that looks {label}",
    "this person seems {label}",
    "a close picture of someone {label}",
    "the expression is {label}",
)
SHOWS = ("a face with {units}", "one sees {units}", "a close picture with {units}", "{units}")
BOTH = (
    "a face that looks {label} with {units}",
    "{units} of someone who seems {label}",
    "the expression is {label} and one sees {units}",
    "this person seems {label} showing {units}",
)
NOTHING = "nothing marked"  # of a face with no clear unit
STRONG, WEAK = "much", "little"


@dataclass(frozen=True)
class Captions:
    """What is told of each face, as words and as an identity.

    Attributes:
        rows: int64 [n], of the set, of which anything is told.
        facts: int64 [n]: equal where the same is told.
        texts: per wording, a caption of each row.
    """

    rows: NDArray[np.int64]
    facts: NDArray[np.int64]
    texts: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def ids(
        self,
        vocabulary: Sequence[str],
        indices: NDArray[np.int64],
        wordings: NDArray[np.int64],
        words: int,
    ) -> NDArray[np.int64]:
        """Word numbers [len(indices), words], right padded, of some captions, each in one of the
        wordings."""
        number = {word: i for i, word in enumerate(vocabulary)}
        ids = np.full((len(indices), words), PAD, np.int64)
        for row, (index, wording) in enumerate(zip(indices, wordings, strict=True)):
            found = split(self.texts[wording][index])[:words]
            ids[row, : len(found)] = [number.get(word, UNKNOWN) for word in found]
        return ids

    def vocabulary(self) -> tuple[str, ...]:
        """All words in all wordings, after the two special ones."""
        words = {word for texts in self.texts for text in texts for word in split(text)}
        return ("<pad>", "<unknown>", *sorted(words))


def split(text: str) -> list[str]:
    """Words in lower case; what hyphens join is one."""
    return WORD.findall(text.lower())


def read_captions(corpus: Path, split_name: str, tell: str) -> Captions:
    """The captions of the set `faces`: its own, else its labels and action units in words.

    Args:
        corpus: its root.
        split_name: `train` or `val`.
        tell: `labels`, `units` or `both`, of a set without captions of its own.

    Raises:
        InvalidInputError: captions of another number than images; nothing to tell.
    """
    found = open_set(corpus, "faces")
    rows = found.indices(split_name)
    if (corpus / "faces" / "captions.csv").is_file():
        return _written(corpus / "faces" / "captions.csv", rows, len(found.split))
    units: list[str] = [""] * len(rows)
    if tell != "labels" and "units" in found.arrays:
        known = found["units"][found.indices("train")]
        standard = (found["units"][rows] - known.mean(0)) / (known.std(0) + 1e-3)
        units = _units_told(standard, _unit_names(corpus, standard.shape[1]))
    labels = [""] * len(rows)
    if tell != "units" and "labels" in found.arrays:
        names = face_classes_of(corpus)
        labels = [names[label] if label >= 0 else "" for label in found["labels"][rows]]
    told = [i for i, pair in enumerate(zip(labels, units, strict=True)) if any(pair)]
    if not told:
        raise InvalidInputError(
            f"of the faces of the split {split_name!r} in {corpus} nothing can be told",
            "labels, units.npy or faces/captions.csv",
            "add one of them, or choose other `captions` in [face_large_pretraining]",
        )
    pairs = [(labels[i], units[i]) for i in told]
    texts = tuple(tuple(_worded(pair, wording) for pair in pairs) for wording in range(len(BOTH)))
    return Captions(rows[told], _identities(["/".join(pair) for pair in pairs]), texts)


def _written(path: Path, rows: NDArray[np.int64], count: int) -> Captions:
    lines = read_table(path)
    if len(lines) != count or (lines and "caption" not in lines[0]):
        raise InvalidInputError(
            f"{path} has {len(lines)} rows of {list(lines[0]) if lines else 'nothing'}",
            f"{count} rows, one for each image, with the column 'caption'",
            "correct it, or remove it to have labels and units told",
        )
    told = [int(row) for row in rows if split(lines[row]["caption"])]
    if not told:
        raise InvalidInputError(f"{path} tells nothing of the split's images", "captions")
    texts = tuple(" ".join(split(lines[row]["caption"])) for row in told)
    return Captions(np.array(told, np.int64), _identities(texts), (texts,))


def _worded(pair: tuple[str, str], wording: int) -> str:
    label, units = pair
    forms = BOTH if label and units else LOOKS if label else SHOWS
    return forms[wording].format(label=label, units=units)


def _units_told(standard: NDArray[np.floating], names: Sequence[str]) -> list[str]:
    """The clear units of each face, each as one word: which of two units is much and which
    little, a tower of this size would be long in learning from the order of words."""
    told = []
    for values in standard:
        clear = np.flatnonzero(np.abs(values) >= CLEAR).tolist()
        words = [f"{STRONG if values[i] > 0 else WEAK}-{names[i]}" for i in clear]
        told.append(" and ".join(words) or NOTHING)
    return told


def _unit_names(corpus: Path, count: int) -> list[str]:
    """What the corpus' card calls its action units, else their numbers."""
    card = read_json(corpus / "card.json") if (corpus / "card.json").is_file() else {}
    names = card.get("model", {}).get("face", {}).get("units", [])
    named = isinstance(names, list) and len(names) == count
    return [str(n).replace("_", "-") for n in names] if named else [f"u{i}" for i in range(count)]


def _identities(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.array(texts), return_inverse=True)[1].astype(np.int64)
