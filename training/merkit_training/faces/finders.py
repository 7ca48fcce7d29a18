"""Faces in a picture together with how far each is turned away.

The SDK's default detector finds frontal faces alone, so what it misses cannot be counted as a
profile. A finder answers both questions at once: where faces are, and how far they are turned.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from merkit.faces import HaarDetector, YuNetDetector
from merkit.faces.detectors import Boxes, Confidence, load_cv2

PROFILE_CASCADE = "haarcascade_profileface.xml"
SAME_SIZE = 2.5  # a profile and a frontal box are one face unless one is this many times larger
CROP_MARGIN = 0.5  # added around a picture that is a face already: cascades need surroundings
CROP_SIDE = 128  # pixels that such a picture is looked at in


@dataclass(frozen=True)
class Found:
    """Faces of one picture."""

    boxes: NDArray[np.float32]  # [k, 4] as x, y, w, h in pixels
    confidence: NDArray[np.float32]  # [k] in 0..1
    turned: NDArray[np.float32]  # [k], the finder's measure; NaN where it cannot tell


class Finder(Protocol):
    """Finds faces and measures how far they are turned."""

    turned_is: ClassVar[str]  # what `turned` measures, for the report

    def find(self, picture: NDArray[np.uint8]) -> Found:
        """The faces of a picture uint8 [h, w, 3] RGB."""
        ...


class CascadeFinder:
    """OpenCV's frontal cascade against its profile cascade, looking both ways; no file needed.

    `turned` is the profile cascade's share of both confidences: 0 where it sees nothing, 1 where
    it alone sees a face (some of these are none: they are dropped either way).
    """

    turned_is: ClassVar[str] = "share of the profile cascade in both cascades' confidence"

    def __init__(self, side: int = 480) -> None:
        self.frontal = HaarDetector(side)
        self.profile = _ProfileDetector(side)

    def find(self, picture: NDArray[np.uint8]) -> Found:
        """See Finder."""
        boxes, confidence = self.frontal.detect(picture)
        aside, aside_confidence = self.profile.detect(picture)
        seen_aside = np.zeros(len(boxes), np.float32)
        alone: list[int] = []
        for k in np.argsort(-aside_confidence):
            same = [i for i in range(len(boxes)) if _same(boxes[i], aside[k])]
            for i in same:
                seen_aside[i] = max(seen_aside[i], aside_confidence[k])
            if not same and not any(_same(aside[j], aside[k]) for j in alone):
                alone.append(int(k))
        turned = seen_aside / np.maximum(seen_aside + confidence, np.float32(1e-6))
        return Found(
            np.concatenate((boxes, aside[alone])),
            np.concatenate((confidence, aside_confidence[alone])),
            np.concatenate((turned, np.ones(len(alone), np.float32))),
        )


class LandmarkFinder:
    """YuNet from the user's own file; `turned` is told from the landmarks.

    It is the nose's distance from the middle between the eyes, along the line through the eyes
    and in shares of their distance: about 0.6 tan(yaw), so 0.35 at 30 and 0.6 at 45 degrees.
    """

    turned_is: ClassVar[str] = "nose off the middle of the eyes, in shares of the eyes' distance"

    def __init__(self, model: str | os.PathLike[str]) -> None:
        self.detector = YuNetDetector(model)

    def find(self, picture: NDArray[np.uint8]) -> Found:
        """See Finder."""
        boxes, confidence, landmarks = self.detector.detect_landmarks(picture)
        return Found(boxes, confidence, turned_by_landmarks(landmarks))


def turned_by_landmarks(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """`turned` [k] of landmarks [k, 5, 2] as YuNet gives them."""
    one, other, nose = landmarks[:, 0], landmarks[:, 1], landmarks[:, 2]
    line = other - one
    squared = np.maximum((line**2).sum(axis=1), np.float32(1e-6))
    along: NDArray[np.float32] = ((nose - (one + other) / 2) * line).sum(axis=1) / squared
    return np.asarray(np.abs(along), np.float32)


def turned_of_crop(finder: Finder, crop: NDArray[np.uint8]) -> float:
    """How far the face that fills a picture is turned; NaN if the finder finds none in it."""
    cv2 = load_cv2()
    scale = CROP_SIDE / max(crop.shape[:2])
    size = max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale))
    edge = round(CROP_MARGIN / 2 * CROP_SIDE)
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    found = finder.find(cv2.copyMakeBorder(small, *[edge] * 4, cv2.BORDER_REPLICATE))
    if not len(found.boxes):
        return float("nan")
    return float(found.turned[np.argmax(found.boxes[:, 2] * found.boxes[:, 3])])


class _ProfileDetector(HaarDetector):
    """The profile cascade, which knows faces turned one way, on a picture and its mirror image."""

    cascade_file: ClassVar[str] = PROFILE_CASCADE

    def detect(self, frame: NDArray[np.uint8]) -> tuple[Boxes, Confidence]:
        boxes, confidence = super().detect(frame)
        mirrored, other = super().detect(np.ascontiguousarray(frame[:, ::-1]))
        mirrored[:, 0] = frame.shape[1] - mirrored[:, 0] - mirrored[:, 2]
        return np.concatenate((boxes, mirrored)), np.concatenate((confidence, other))


def _same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether two boxes are one face: alike in size, the centre of one inside the other."""
    ratio = float(one[2] / max(other[2], 1e-6))
    if not 1 / SAME_SIZE < ratio < SAME_SIZE:
        return False
    x, y = other[:2] + other[2:] / 2
    return bool(one[0] <= x <= one[0] + one[2] and one[1] <= y <= one[1] + one[3])
