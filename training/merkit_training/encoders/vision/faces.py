"""What the face encoders are taught with: images, labels, and action units where a set has them.

The synthetic corpus knows which action units each face was drawn with; sets of real faces often
carry such annotations too. Ten numbers a face teach a small transformer where to look far sooner
than one label does. They are an extra: without `units.npy` the labels teach alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit_training.corpus import SET_SPLITS, ArraySet, open_set
from merkit_training.labels import FACE8, MER6

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """One split of one set, in memory."""

    images: Images  # [n, side, side, 3], or [n, tiles, side, side, 3]
    labels: Labels  # [n], of FACE8 or MER6
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


@dataclass(frozen=True)
class FaceSets:
    """Single faces (FACE8) and sequences (MER6) by split."""

    singles: Mapping[str, Samples]
    sequences: Mapping[str, Samples]

    @property
    def units(self) -> int:
        """How many action units are known of each face; 0 if none."""
        return int(self.singles["train"].units.shape[1])

    @staticmethod
    def read(corpus: Path) -> FaceSets:
        """Reads both sets; InvalidInputError as `open_set`."""
        faces, sequences = open_set(corpus, "faces"), open_set(corpus, "sequences")
        if not ("units" in faces.arrays and "units" in sequences.arrays):
            nothing = {s: _samples(faces, s, None) for s in SET_SPLITS}
            return FaceSets(nothing, {s: _samples(sequences, s, None) for s in SET_SPLITS})
        known = faces["units"][faces.indices("train")]
        scale = known.mean(0), known.std(0) + 1e-3
        return FaceSets(
            {s: _samples(faces, s, scale) for s in SET_SPLITS},
            {s: _samples(sequences, s, scale) for s in SET_SPLITS},
        )


def repeated(singles: Samples, count: int, tiles: int, seed: int) -> Samples:
    """`count` random faces of the classes that MER6 knows, each in all tiles (seed Fig. 2)."""
    to_mer6 = np.array([MER6.index(name) if name in MER6 else -1 for name in FACE8])
    known = np.flatnonzero(to_mer6[singles.labels] >= 0)
    chosen = np.sort(np.random.default_rng(seed).permutation(known)[:count])
    images = np.repeat(singles.images[chosen][:, None], tiles, axis=1)
    return replace(
        singles, images=images, labels=to_mer6[singles.labels[chosen]], units=singles.units[chosen]
    )


def _samples(
    found: ArraySet, split: str, scale: tuple[NDArray[np.float32], NDArray[np.float32]] | None
) -> Samples:
    rows = found.indices(split)
    images, labels = found["images"][rows], found["labels"][rows].astype(np.int64)
    if scale is None:
        return Samples(images, labels, np.zeros((len(rows), 0), np.float32))
    units = found["units"][rows]
    if units.ndim == 3:
        units = units.mean(axis=1)
    return Samples(images, labels, ((units - scale[0]) / scale[1]).astype(np.float32))
