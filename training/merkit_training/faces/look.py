"""One file, looked at: its faces as crops with every measure of the filters.

Runs in worker processes, so it takes and returns plain values, and it never raises: whatever is
wrong with a file becomes a line of the report.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.errors import InferenceError, MerkitError
from merkit.faces import square_crop
from merkit.faces.detectors import load_cv2
from merkit.faces.speaker import sharpness
from merkit.media import Decoded, decode_clip
from merkit_training.faces.filters import Thresholds, reason_to_drop
from merkit_training.faces.finders import CascadeFinder, Finder, LandmarkFinder, turned_of_crop
from merkit_training.faces.sets import READERS, Item
from merkit_training.labels import FACE8
from merkit_training.settings import Count, Natural, Range, Share

SHARPNESS_SIDE = 64  # pixels: one real face measured 1900 at 64, 687 at 112, 97 at 224
LEAST_SOUND, ABOUT_SOUND = 0.1, "the sound"  # seconds, and what is said of the rest: unused here
SAME_IOU = 0.2  # overlap at which boxes in two frames are one face, as in the SDK


@dataclass(frozen=True)
class GatherSettings:
    """What is gathered and how; everything that decides which faces come out."""

    side: Annotated[int, Range(1, 4096)] = 64  # of a crop, in pixels
    margin: float = 0.0  # the box is the detector's, grown by this share of its side
    frames: Count = 8  # sampled evenly from a video
    frame_side: Count = 1280  # frames and pictures are scaled down to this longer side, in pixels
    labels: Literal["none", "folders", "rafdb", "expw", "csv"] = "none"  # how sources say them
    classes: tuple[str, ...] = FACE8  # in the order of label numbers
    cropped: bool = False  # each picture is one face; nothing is searched for
    yunet: str = ""  # a YuNet model file; without it OpenCV's cascades
    val_share: Share = 0.02  # of the files whose set names no split
    group: Literal["file", "folder"] = "file"  # what goes into one split together
    seed: Natural = 0  # of the split
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError("classes must be different names, at least one")
        assert self.labels in READERS

    @property
    def preprocessing(self) -> Preprocessing:
        """The SDK's settings for decoding and cropping."""
        return replace(
            Preprocessing(),
            face_size=self.side,
            face_margin=self.margin,
            frames_per_clip=self.frames,
            max_frame_side=self.frame_side,
            max_audio_seconds=LEAST_SOUND,
        )

    def finder(self) -> Finder:
        """The finder; errors as its own."""
        return LandmarkFinder(self.yunet) if self.yunet else CascadeFinder()


@dataclass(frozen=True)
class Seen:
    """One face: where it was, its measures, and its crop if it is kept."""

    box: tuple[float, float, float, float]  # x, y, w, h in the source's pixels
    time: float  # seconds
    label: int
    measures: dict[str, float]
    reason: str | None  # the filter that it failed
    crop: NDArray[np.uint8] | None  # [side, side, 3] RGB, of kept faces


@dataclass(frozen=True)
class Looked:
    """What became of a file."""

    item: Item
    digest: bytes = b""  # of the file's content; empty if it cannot be read
    error: str = ""  # why nothing can be had from it
    notes: tuple[str, ...] = ()  # damage that was passed over
    faces: tuple[Seen, ...] = ()


def look(item: Item, settings: GatherSettings, finder: Finder) -> Looked:
    """Decodes a file and measures its faces; never raises."""
    digest = b""
    try:
        with item.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        decoded = decode_clip(item.path, settings.preprocessing)
        if not len(decoded.frames) or decoded.info.video is None:
            return Looked(item, digest, "it holds no picture")
        faces = _faces(item, decoded, settings, finder)
        notes = tuple(n for n in decoded.info.warnings if not n.startswith(ABOUT_SOUND))
        return Looked(item, digest, "", notes, tuple(faces))
    except OSError as error:
        return Looked(item, digest, f"it cannot be read ({error.strerror})")
    except MerkitError as error:
        return Looked(item, digest, error.found)
    except Exception as error:  # a codec or OpenCV on a picture of a kind that nobody met
        return Looked(item, digest, InferenceError.of("reading it", error).found)


@dataclass(frozen=True)
class _Spot:
    """A face before it is cut out, in pixels of the decoded frame."""

    frame: int
    box: NDArray[np.float32]
    label: int
    turned: float
    agreeing: float
    cut_off_known: bool = True


def _faces(item: Item, decoded: Decoded, settings: GatherSettings, finder: Finder) -> list[Seen]:
    if item.cropped:
        spots = [_whole(k, f, item, finder) for k, f in enumerate(decoded.frames)]
    elif any(face.box for face in item.faces):
        spots = _given(item, decoded, finder)
    else:
        spots = _searched(item, decoded, finder)
    return [_measured(spot, decoded, settings) for spot in spots]


def _whole(frame: int, picture: NDArray[np.uint8], item: Item, finder: Finder) -> _Spot:
    """The picture's middle square as the face."""
    height, width = picture.shape[:2]
    side = min(height, width)
    box = np.array([(width - side) / 2, (height - side) / 2, side, side], np.float32)
    turned = turned_of_crop(finder, picture)
    return _Spot(frame, box, item.faces[0].label, turned, float("nan"), cut_off_known=False)


def _given(item: Item, decoded: Decoded, finder: Finder) -> list[_Spot]:
    """Faces where the set says they are, in the first frame."""
    scale = _scale(decoded)
    picture = decoded.frames[0]
    spots = []
    for face in item.faces:
        if face.box is None:
            continue
        box = np.array(face.box, np.float32) / scale
        x, y, w, h = (round(float(v)) for v in box)
        inside = picture[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)]
        turned = turned_of_crop(finder, inside) if inside.size else float("nan")
        spots.append(_Spot(0, box, face.label, turned, float("nan")))
    return spots


def _searched(item: Item, decoded: Decoded, finder: Finder) -> list[_Spot]:
    """Faces that the finder finds; the largest of a frame has the file's label, if any."""
    found = [finder.find(frame) for frame in decoded.frames]
    still = len(found) < 2
    spots = []
    for k, here in enumerate(found):
        largest = int(np.argmax(here.boxes[:, 2])) if len(here.boxes) else -1
        for i, box in enumerate(here.boxes):
            others = (any(_overlap(box, other) for other in f.boxes) for f in found)
            agreeing = float("nan") if still else float(sum(others))
            label = item.faces[0].label if i == largest else -1
            spots.append(_Spot(k, box, label, float(here.turned[i]), agreeing))
    return spots


def _measured(spot: _Spot, decoded: Decoded, settings: GatherSettings) -> Seen:
    crop, cut_off = square_crop(decoded.frames[spot.frame], spot.box, settings.preprocessing)
    scale = _scale(decoded)
    measures = {
        "agreeing": spot.agreeing,
        "size": float(spot.box[2:].max()) * scale,
        "cut_off": cut_off if spot.cut_off_known else float("nan"),
        "turned": spot.turned,
        "sharpness": _sharpness(crop),
    }
    reason = reason_to_drop(measures, settings.thresholds)
    x, y, w, h = (float(value) * scale for value in spot.box)
    time = float(decoded.frame_times[spot.frame])
    kept = crop if reason is None else None
    return Seen((x, y, w, h), time, spot.label, measures, reason, kept)


def _sharpness(crop: NDArray[np.uint8]) -> float:
    """The SDK's measure at one size, so that one threshold serves every side."""
    cv2 = load_cv2()
    if crop.shape[0] != SHARPNESS_SIDE:
        shrinks = crop.shape[0] > SHARPNESS_SIDE
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        crop = cv2.resize(crop, (SHARPNESS_SIDE, SHARPNESS_SIDE), interpolation=interpolation)
    return sharpness(crop)


def _scale(decoded: Decoded) -> float:
    """The source's pixels in one of the decoded frame's."""
    assert decoded.info.video is not None
    return decoded.info.video.width / int(decoded.frames.shape[2])


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    if across <= 0 or down <= 0:
        return False
    both = across * down
    return bool(both / (one[2] * one[3] + other[2] * other[3] - both) >= SAME_IOU)
