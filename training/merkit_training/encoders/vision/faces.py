"""What the face encoders are taught with: images, labels, and action units where a set has them.

The synthetic corpus knows which action units each face was drawn with; sets of real faces often
carry such annotations too. Ten numbers a face teach a small transformer where to look far sooner
than one label does. They are an extra: without `units.npy` the labels teach alone.

Single faces have their classes and clips have theirs (eight and six at MER); Table 2 also teaches
both with three, so classes travel by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit.errors import InvalidInputError
from merkit_training.corpus import SET_SPLITS, ArraySet, open_set
from merkit_training.labels import FACE3, classes_of, face_classes_of, place

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Scale = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Samples:
    """One split of one set, in memory."""

    images: Images  # [n, side, side, 3], or [n, tiles, side, side, 3]
    labels: Labels  # [n], numbers of the set's classes
    units: NDArray[np.float32]  # [n, units], standardised, the mean over tiles; units may be 0

    def targets(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Labels and units of some samples."""
        return torch.from_numpy(self.labels[indices]), torch.from_numpy(self.units[indices])

    def joined(self, other: Samples) -> Samples:
        """These samples, then the other ones."""
        return Samples(
            np.concatenate((self.images, other.images)),
            np.concatenate((self.labels, other.labels)),
            np.concatenate((self.units, other.units)),
        )

    def relabelled(self, numbers: NDArray[np.int64]) -> Samples:
        """Labels replaced by `numbers[label]`; samples whose number is -1 are left out."""
        kept = np.flatnonzero(numbers[self.labels] >= 0)
        return Samples(self.images[kept], numbers[self.labels[kept]], self.units[kept])


@dataclass(frozen=True)
class FaceSets:
    """Single faces and sequences by split, and the names behind their labels."""

    singles: Mapping[str, Samples]
    sequences: Mapping[str, Samples]
    face_classes: tuple[str, ...]  # of singles
    classes: tuple[str, ...]  # of sequences

    @property
    def units(self) -> int:
        """How many action units are known of each face; 0 if none."""
        return int(self.singles["train"].units.shape[1])

    @staticmethod
    def read(corpus: Path, sources: Sequence[Path] = ()) -> FaceSets:
        """Reads both sets, without samples that have no label.

        Args:
            corpus: its root.
            sources: folders of `merkit-train gather`, whose labelled faces are added.

        Raises:
            InvalidInputError: as `open_set`; a label beyond the classes; an empty split; faces of
                another side.
        """
        faces, sequences = open_set(corpus, "faces"), open_set(corpus, "sequences")
        names = face_classes_of(corpus), classes_of(corpus)
        scale: Scale | None = None
        if "units" in faces.arrays and "units" in sequences.arrays:
            known = faces["units"][faces.indices("train")]
            scale = known.mean(0), known.std(0) + 1e-3
        return FaceSets(
            {s: _samples(faces, s, scale, names[0], corpus / "faces") for s in SET_SPLITS},
            {s: _samples(sequences, s, scale, names[1], corpus / "sequences") for s in SET_SPLITS},
            *names,
        )._beside(sources)

    def _beside(self, sources: Sequence[Path]) -> FaceSets:
        """These sets with the labelled faces of other folders. Their classes find their numbers
        by name, new ones follow; action units, which they lack, are then told of nobody."""
        if not sources:
            return self
        names = list(self.face_classes)
        for folder in sources:
            names += [name for name in face_classes_of(folder) if place(name, names) is None]
        singles, clips = (
            {s: replace(samples, units=samples.units[:, :0]) for s, samples in own.items()}
            for own in (self.singles, self.sequences)
        )
        for folder in sources:
            found, own = open_set(folder, "faces"), face_classes_of(folder)
            for split in SET_SPLITS:
                if split != "train" and not len(_labelled(found, split)):
                    continue  # what there is to choose by is the corpus' own
                more = _samples(found, split, None, own, folder / "faces")
                if more.images.shape[1:] != singles[split].images.shape[1:]:
                    raise InvalidInputError(
                        f"the faces of {folder} have {more.images.shape[1]} pixels",
                        f"{singles[split].images.shape[1]}, as the corpus' own",
                        "gather them with --recipe, which says so",
                    )
                numbers = numbers_of(own, tuple(names))
                singles[split] = singles[split].joined(more.relabelled(numbers))
        return replace(self, singles=singles, sequences=clips, face_classes=tuple(names))

    def taught(self, count: int) -> FaceSets:
        """The sets as `FaceEncoderConfig.classes` wants them.

        Args:
            count: 8 leaves all as it is; 6 keeps single faces of the clips' classes alone, under
                their numbers; 3 makes all labels sentiments (FACE3) and leaves out those without.

        Raises:
            InvalidInputError: nothing is left of a split.
        """
        if count == 8:
            return self
        classes = self.classes if count == 6 else FACE3
        faces, clips = numbers_of(self.face_classes, classes), numbers_of(self.classes, classes)
        mapped = replace(
            self,
            singles={s: samples.relabelled(faces) for s, samples in self.singles.items()},
            sequences={s: samples.relabelled(clips) for s, samples in self.sequences.items()},
            face_classes=classes,
            classes=classes,
        )
        for split in SET_SPLITS:
            if not len(mapped.singles[split].labels) or not len(mapped.sequences[split].labels):
                raise InvalidInputError(
                    f"no face or no clip of the split {split!r} has one of {', '.join(classes)}",
                    "samples of these classes",
                    "choose another number of classes in the recipe",
                )
        return mapped


def numbers_of(names: tuple[str, ...], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """For each of `names` its number among `classes`, by `labels.place`; -1 if it has none."""
    found = [place(name, classes) for name in names]
    return np.array([-1 if number is None else number for number in found], np.int64)


def repeated(faces: FaceSets, count: int, seed: int) -> Samples:
    """`count` random faces of the classes that clips have, each in all tiles (seed Fig. 2)."""
    singles, tiles = faces.singles["train"], faces.sequences["train"].images.shape[1]
    numbers = numbers_of(faces.face_classes, faces.classes)
    known = np.flatnonzero(numbers[singles.labels] >= 0)
    chosen = np.sort(np.random.default_rng(seed).permutation(known)[:count])
    images = np.repeat(singles.images[chosen][:, None], tiles, axis=1)
    return Samples(images, numbers[singles.labels[chosen]], singles.units[chosen])


def _labelled(found: ArraySet, split: str) -> NDArray[np.int64]:
    """Rows of a split; gathered faces may lack a label."""
    rows = found.indices(split)
    return rows[found["labels"][rows] >= 0]


def _samples(
    found: ArraySet, split: str, scale: Scale | None, classes: tuple[str, ...], where: Path
) -> Samples:
    rows = _labelled(found, split)
    if not len(rows):
        raise InvalidInputError(
            f"{where} has no labelled samples in the split {split!r}",
            "some to train with and some to choose by",
            "add labelled faces, or set other shares of the splits",
        )
    images, labels = found["images"][rows], found["labels"][rows].astype(np.int64)
    if labels.max() >= len(classes):
        raise InvalidInputError(
            f"{where} has the label {labels.max()}",
            f"numbers below {len(classes)}, of {', '.join(classes)}",
            "name all classes in the corpus' card.json",
        )
    if scale is None:
        return Samples(images, labels, np.zeros((len(rows), 0), np.float32))
    units = found["units"][rows]
    if units.ndim == 3:
        units = units.mean(axis=1)
    return Samples(images, labels, ((units - scale[0]) / scale[1]).astype(np.float32))
