"""The seed's three filters (3.1), as measures with thresholds.

The seed drops "blurry faces, incomplete faces, and large profile faces", a million of nine, and
gives no measure. A filter whose measure nobody sees removes whatever it likes; so here each face
gets every measure, the report shows their distributions beside the thresholds, and a face that is
dropped counts under the first filter that it fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from merkit_training.settings import Amount, Share


@dataclass(frozen=True)
class Thresholds:
    """What a face must have to be kept; one field for each measure, in the order of judgement."""

    agreeing: Amount = 2  # sampled frames of a video that show the face; fewer: a stray detection
    size: Amount = 40  # side of the face in the source's pixels, at least; smaller: incomplete
    cut_off: Share = 0.15  # of the face's square outside the picture, at most; more: incomplete
    turned: Amount = 0.6  # at most (`finders` says of what); more: a large profile
    sharpness: Amount = 40.0  # variance of the Laplacian at 64 pixels, at least; less: blurred


MEASURES = tuple(field.name for field in fields(Thresholds))
AT_MOST = frozenset({"cut_off", "turned"})  # of the others a face must have at least so much
REASONS = dict(
    zip(MEASURES, ("stray", "too small", "cut off", "large profile", "blurred"), strict=True)
)
EDGES: dict[str, tuple[float, ...]] = {
    "agreeing": (1, 2, 3, 4, 6, 8, 16),
    "size": (0, 20, 40, 60, 80, 120, 160, 240, 480),
    "cut_off": (0, 0.001, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5),
    "turned": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
    "sharpness": (0, 10, 20, 40, 80, 160, 320, 640, 1280),
}
"""Lower edges of the report's bins; the last bin has no end."""


def reason_to_drop(measures: dict[str, float], thresholds: Thresholds) -> str | None:
    """The first filter that a face fails, None if it is kept.

    Args:
        measures: by name; NaN where something cannot be measured, which no filter holds against
            the face.
    """
    for name in MEASURES:
        value, limit = measures[name], getattr(thresholds, name)
        if math.isnan(value):
            continue
        if value > limit if name in AT_MOST else value < limit:
            return REASONS[name]
    return None
