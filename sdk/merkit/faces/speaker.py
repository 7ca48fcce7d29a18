"""The speaker's face in a clip, as crops with their boxes, times and confidence.

A detector alone reports bystanders, posters and now and then a patch of wall. Detections are
joined into tracks over the sampled frames; the speaker's is the longest, then the largest, then
the most central (seed 3.1), and a track of too few usable detections is stray. No face means no
crops, never a crop of zeros.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit.faces.detectors import FaceDetector, HaarDetector, load_cv2

DEFAULT_DETECTOR = HaarDetector()
SAME_IOU = 0.2
"""Overlap at which detections in successive frames are one face."""
SAME_DISTANCE, SAME_SIZE = 0.6, 2.0
"""... or their centres' distance in face sides, if neither is this many times the larger."""
LEAST_SHARPNESS = 2.0
"""A crop with less variance of its Laplacian is a smear: two real faces measured 580-1900, and
still 24 after three pyramid levels of blur (MER-NOISE has at most two)."""
MOST_CUT_OFF = 0.5
"""Share of a box outside the frame from which on a face is too much cut off."""


@dataclass(frozen=True)
class Faces:
    """One face over time.

    Attributes:
        crops: uint8 [f,s,s,3] RGB, s = `face_size`.
        boxes: float32 [f,4] as x, y, w, h in shares of the frame's width and height, as
            detected (`MediaInfo.in_pixels` gives the source's pixels).
        times: float32 [f], seconds.
        confidence: float32 [f], the detector's, in 0..1.
        sharpness: float32 [f], variance of the crop's Laplacian.
        cut_off: float32 [f], share of the square crop that lies outside the frame.
    """

    crops: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    times: NDArray[np.float32]
    confidence: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    cut_off: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.crops)


def no_faces(p: Preprocessing) -> Faces:
    """No face: everything of zero length."""
    crops = np.zeros((0, p.face_size, p.face_size, 3), np.uint8)
    none = np.zeros(0, np.float32)
    return Faces(crops, np.zeros((0, 4), np.float32), none, none, none, none)


def find_faces(
    frames: NDArray[np.uint8],
    times: NDArray[np.float32],
    p: Preprocessing,
    detector: FaceDetector | None = None,
) -> Faces:
    """The speaker's face in the sampled frames of a clip.

    Args:
        frames: uint8 [n,h,w,3] RGB, in time order; n may be 0.
        times: float32 [n], seconds.
        p: crop size, margin, and how many detections make a face of a video (a single frame
            needs one).
        detector: `HaarDetector()` if None.

    Raises:
        InvalidInputError: arrays of another type or shape.
        MissingExtraError: OpenCV is not installed.
    """
    _check(frames, times)
    if not len(frames):
        return no_faces(p)
    detector = detector or DEFAULT_DETECTOR
    tracks: list[_Track] = []
    for index, frame in enumerate(frames):
        boxes, confidence = detector.detect(frame)
        order = np.argsort(-confidence, kind="stable")
        _extend(tracks, [_Seen(index, boxes[k], float(confidence[k])) for k in order])
    least = min(p.min_face_detections, len(frames))
    tracks = [track for track in tracks if len(track.seen) >= least]
    if not tracks:
        return no_faces(p)
    height, width = frames.shape[1:3]
    speaker = max(tracks, key=lambda track: track.rank(width, height))
    faces = _cropped(frames, times, speaker.seen, p)
    return faces if len(faces) >= least else no_faces(p)


@dataclass(frozen=True)
class PrecomputedFaces:
    """Faces that another tool has cut out already, such as MER's `openface_face` arrays.

    Args:
        source: uint8 [n,h,w,3], or the path of a `.npy` file of it.
        bgr: whether its channels are blue, green, red, as MER's are.
        frame_rate: faces per second; 0 if unknown, and all times are then 0.
    """

    source: str | os.PathLike[str] | NDArray[np.uint8]
    bgr: bool = True
    frame_rate: float = 0.0

    def faces(self, p: Preprocessing) -> Faces:
        """At most `p.frames_per_clip` of them, spread evenly, at `p.face_size`.

        Raises:
            InvalidInputError: no such file, or an array of another type or shape.
        """
        crops = self._load()
        if not len(crops):
            return no_faces(p)
        count = min(p.frames_per_clip, len(crops))
        chosen = [int((part + 0.5) * len(crops) / count) for part in range(count)]
        images = [crops[i][:, :, ::-1] if self.bgr else crops[i] for i in chosen]
        times = [i / self.frame_rate if self.frame_rate > 0 else 0.0 for i in chosen]
        resized = [_resized(np.ascontiguousarray(image), p.face_size) for image in images]
        return Faces(
            np.stack(resized),
            np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1)),
            np.array(times, np.float32),
            np.ones(count, np.float32),
            np.array([sharpness(crop) for crop in resized], np.float32),
            np.zeros(count, np.float32),
        )

    def _load(self) -> NDArray[np.uint8]:
        array: Any = self.source
        found = "the given faces"
        if not isinstance(array, np.ndarray):
            found = str(Path(array))
            try:
                array = np.load(found, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                _refuse(f"{found} cannot be read as an array ({type(error).__name__})")
        shaped = isinstance(array, np.ndarray) and array.ndim == 4 and array.shape[3:] == (3,)
        if not shaped or array.dtype != np.uint8 or 0 in array.shape[1:]:
            shape = getattr(array, "shape", type(array).__name__)
            _refuse(f"{found} has shape {shape} and type {getattr(array, 'dtype', None)}")
        loaded: NDArray[np.uint8] = array
        return loaded


def sharpness(crop: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of an RGB crop's brightness."""
    cv2 = load_cv2()
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


@dataclass(frozen=True)
class _Seen:
    """One detection: frame index, box in pixels, confidence."""

    frame: int
    box: NDArray[np.float32]
    confidence: float


@dataclass
class _Track:
    """Detections of one face, in time order."""

    seen: list[_Seen] = field(default_factory=list)

    def rank(self, width: int, height: int) -> tuple[int, float, float]:
        """Sorts by length, then area, then nearness to the middle."""
        boxes = np.stack([seen.box for seen in self.seen]).astype(np.float64)
        area = float((boxes[:, 2] * boxes[:, 3]).mean())
        x, y = (boxes[:, :2] + boxes[:, 2:] / 2).mean(axis=0)
        distance = np.hypot(x / width - 0.5, y / height - 0.5)
        return len(self.seen), area, -float(distance)


def _extend(tracks: list[_Track], detections: Sequence[_Seen]) -> None:
    """Gives each detection of one frame to the track it continues, or begins one."""
    open_tracks = list(tracks)
    for seen in detections:
        scores = [_affinity(track.seen[-1].box, seen.box) for track in open_tracks]
        best = int(np.argmax(scores)) if scores else -1
        if best >= 0 and scores[best] > 0:
            open_tracks.pop(best).seen.append(seen)
        else:
            tracks.append(_Track([seen]))


def _affinity(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Above 0 if two boxes can be one face: 1 + overlap, or nearness below 1."""
    ax, ay, aw, ah = (float(value) for value in one)
    bx, by, bw, bh = (float(value) for value in other)
    across = max(0.0, min(ax + aw, bx + bw) - max(ax, bx))
    down = max(0.0, min(ay + ah, by + bh) - max(ay, by))
    overlap = across * down / max(aw * ah + bw * bh - across * down, 1e-9)
    if overlap >= SAME_IOU:
        return 1.0 + overlap
    side, other_side = max(aw, ah, 1e-9), max(bw, bh, 1e-9)
    apart = float(np.hypot(ax + aw / 2 - bx - bw / 2, ay + ah / 2 - by - bh / 2))
    apart /= (side + other_side) / 2
    alike = max(side / other_side, other_side / side) < SAME_SIZE
    return max(0.0, 1.0 - apart / SAME_DISTANCE) if alike else 0.0


def _cropped(
    frames: NDArray[np.uint8], times: NDArray[np.float32], seen: Sequence[_Seen], p: Preprocessing
) -> Faces:
    height, width = frames.shape[1:3]
    cut = [square_crop(frames[s.frame], s.box, p) for s in seen]
    sharp = [sharpness(crop) for crop, _ in cut]
    good = [
        k
        for k, (_, cut_off) in enumerate(cut)
        if sharp[k] >= LEAST_SHARPNESS and cut_off <= MOST_CUT_OFF
    ]
    if not good:
        return no_faces(p)
    size = np.array([width, height, width, height], np.float32)
    return Faces(
        np.stack([cut[k][0] for k in good]),
        np.stack([seen[k].box / size for k in good]).astype(np.float32),
        np.array([times[seen[k].frame] for k in good], np.float32),
        np.array([seen[k].confidence for k in good], np.float32),
        np.array([sharp[k] for k in good], np.float32),
        np.array([cut[k][1] for k in good], np.float32),
    )


def square_crop(
    frame: NDArray[np.uint8], box: NDArray[np.float32], p: Preprocessing
) -> tuple[NDArray[np.uint8], float]:
    """The square around a box, what lies outside the frame repeated from its edge.

    Args:
        frame: uint8 [h,w,3] RGB.
        box: x, y, w, h in the frame's pixels.
        p: the crop's size and margin.

    Returns:
        The crop uint8 [s,s,3], and the share of the square that lies outside the frame.
    """
    x, y, w, h = (float(value) for value in box)
    side = max(2, round(max(w, h) * (1 + p.face_margin)))
    left, top = round(x + (w - side) / 2), round(y + (h - side) / 2)
    rows = np.clip(np.arange(top, top + side), 0, frame.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, frame.shape[1] - 1)
    inside = max(0, min(frame.shape[0], top + side) - max(0, top))
    inside *= max(0, min(frame.shape[1], left + side) - max(0, left))
    square = frame[rows[:, None], columns[None, :]]
    return _resized(square, p.face_size), 1.0 - inside / side**2


def _resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """To a square of `size`: by area where it shrinks, bilinearly where it grows."""
    cv2 = load_cv2()
    shrinks = min(image.shape[:2]) >= size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: NDArray[np.uint8] = cv2.resize(image, (size, size), interpolation=interpolation)
    return resized


def _check(frames: NDArray[np.uint8], times: NDArray[np.float32]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise InvalidInputError(
            f"frames have shape {frames.shape} and type {frames.dtype}",
            "uint8 [n,h,w,3] in RGB",
            "give what decode_clip returns",
        )
    if times.shape != frames.shape[:1]:
        raise InvalidInputError(
            f"{times.shape[0] if times.ndim else 0} times stand beside {len(frames)} frames",
            "one time for each frame",
            "give what decode_clip returns",
        )


def _refuse(found: str) -> NoReturn:
    action = "give MER's openface_face array, or crops of that form"
    raise InvalidInputError(found, "faces as uint8 [n,h,w,3]", action)
