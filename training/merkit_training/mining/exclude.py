"""Which clips of the pool no learner may be taught by: test clips, and clips labelled already.

The seed's pool of 115,595 clips seems to contain its test clips; scores then say how well the
test was studied. Names tell most of them, but the same clip may have two names. So contents are
compared too: random projections of the features, equal within what half precision and another
batch leave uncertain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from merkit_training.fusion.dataset import FeatureSet
from merkit_training.fusion.model import group_presence
from merkit_training.mining.pool import Pool

REASONS = (
    "asked",
    "labelled clips by name",
    "labelled clips by content",
    "test clips by name",
    "test clips by content",
    "clips without any evidence",
)
"""What an entry of `exclusions` means: 0, the clip takes part."""

PROJECTIONS = 4  # numbers that stand for a feature group
ALIKE = 0.02  # standard deviations within which all of a clip's numbers must agree
APART = 10.0  # between a present group and an absent one
BLOCK = 1024


def exclusions(
    pool: Pool, labelled: Sequence[FeatureSet], tests: Sequence[FeatureSet], transductive: bool
) -> NDArray[np.int8]:
    """An index of REASONS for each clip of the pool.

    Args:
        pool: the unlabelled clips.
        labelled: what learners train on or are chosen by.
        tests: what they are judged on.
        transductive: leave the clips of `tests` in.
    """
    found = np.zeros(len(pool), np.int8)
    found[~pool.presence.any(dim=1).numpy()] = REASONS.index("clips without any evidence")
    projections = _projections(pool.widths)
    own = np.concatenate(list(_of_pool(pool, projections)))
    for what, parts in (("test", () if transductive else tests), ("labelled", labelled)):
        if not parts:
            continue
        known = np.concatenate([s for part in parts for s in _of_set(part, projections)])
        scale = np.maximum(known.std(axis=0), 1e-6)
        scale[-len(pool.widths) :] = 1  # the columns of presence
        distance, _ = cKDTree(known / scale).query(
            own / scale, p=np.inf, distance_upper_bound=ALIKE
        )
        found[np.isfinite(distance) & (found == 0)] = REASONS.index(f"{what} clips by content")
        names = {name for part in parts for name in part.names}
        found[pool.numbers(names)] = REASONS.index(f"{what} clips by name")
    return found


def tally(codes: NDArray[np.int8]) -> dict[str, int]:
    """How many clips of the pool take part, and how many do not for which reason."""
    counts = Counter(codes.tolist())
    return {reason: counts[i] for i, reason in enumerate(REASONS) if counts[i] or not i}


def _projections(widths: Mapping[str, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        g: torch.randn(width, PROJECTIONS, generator=generator) / width**0.5
        for g, width in widths.items()
    }


def _of_pool(pool: Pool, projections: Mapping[str, Tensor]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(pool), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(pool)))
        yield _signatures(pool.features(rows), pool.presence[start : start + BLOCK], projections)


def _of_set(data: FeatureSet, projections: Mapping[str, Tensor]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(data), BLOCK):
        rows = torch.arange(start, min(start + BLOCK, len(data)))
        shown = data.presence[rows]
        yield _signatures(data.features(rows, shown), shown, projections)


def _signatures(
    features: Mapping[str, Tensor], presence: Tensor, projections: Mapping[str, Tensor]
) -> NDArray[np.float32]:
    """float32 [n, groups * PROJECTIONS + groups]: projected features, then what is present."""
    here = group_presence(presence, projections)
    columns = [torch.where(here[g], features[g] @ projections[g], 0.0) for g in projections]
    flags = [here[g] * APART for g in projections]
    return torch.cat([*columns, *flags], dim=1).numpy()
