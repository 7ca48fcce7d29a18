"""What one clip holds for training: face crops, sound, and what a person should know of it.

The very code that serves decodes here too, so encoders learn from the crops and waveforms that
they will meet. A clip's faults become problems; only one that holds nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.bundle import sha256_file
from merkit.contract import Preprocessing
from merkit.errors import MerkitError
from merkit.faces import FaceDetector, Faces, HaarDetector, PrecomputedFaces, find_faces
from merkit.media import Decoded, decode_clip, no_clip
from merkit_training.data.records import ClipRecord, Problem

CROWDED = 2
"""Frames with several faces from which on a clip is reported."""

KINDS = {
    "ClipNotFoundError": "missing file",
    "ClipLimitError": "beyond limits",
    "InvalidInputError": "unusable faces",
}
"""Problems by the error they were; any other means that the file is damaged."""


@dataclass
class Evidence:
    """A decoded clip."""

    crops: NDArray[np.uint8]  # [faces, side, side, 3] RGB, in time order
    waveform: NDArray[np.float32]  # [samples]; empty if silent or none
    problems: list[Problem] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # sha256, seconds

    @property
    def lost(self) -> bool:
        """Whether the clip cannot be used."""
        return any(problem.lost for problem in self.problems)


def read_evidence(record: ClipRecord, p: Preprocessing) -> Evidence:
    """Decodes a clip, finds its faces, and says what is wrong with it; never raises for a clip."""
    found = Evidence(np.zeros((0, p.face_size, p.face_size, 3), np.uint8), np.zeros(0, np.float32))
    try:
        decoded = decode_record(record, p)
        detector = CountingDetector(HaarDetector())
        faces = faces_in(record, decoded, p, detector)
    except MerkitError as error:
        kind = KINDS.get(type(error).__name__, "corrupt")
        found.problems.append(Problem(kind, record.name, error.found))
        return found
    found.crops = faces.crops
    if is_audible(decoded.waveform, p):
        found.waveform = decoded.waveform
    found.facts = {
        "seconds": decoded.info.duration,
        "sha256": sha256_file(record.path) if record.path else None,
    }
    found.problems = [
        Problem(kind, record.name, detail, lost=False)
        for kind, detail in _remarks(record, decoded, faces, detector, found).items()
    ]
    if not len(found.crops) and not len(found.waveform) and not record.text:
        found.problems.append(Problem("no evidence", record.name, "no face, sound or words"))
    return found


def decode_record(record: ClipRecord, p: Preprocessing) -> Decoded:
    """The clip's part of its file; nothing where only faces or words are given."""
    if record.path is None:
        return no_clip()
    part = (
        None if record.start is None and record.end is None else (record.start or 0.0, record.end)
    )
    return decode_clip(record.path, p, part=part)


def faces_in(
    record: ClipRecord, decoded: Decoded, p: Preprocessing, detector: FaceDetector | None = None
) -> Faces:
    """OpenFace's crops where the record has some, else the speaker's face as found."""
    if record.faces is not None:
        return PrecomputedFaces(record.faces, bgr=True).faces(p)
    return find_faces(decoded.frames, decoded.frame_times, p, detector)


def is_audible(waveform: NDArray[np.float32], p: Preprocessing) -> bool:
    """Whether sound counts as present, by the contract's constants."""
    if len(waveform) < p.min_audio_seconds * p.sample_rate:
        return False
    return bool(level(waveform) >= p.silence_dbfs)


def level(waveform: NDArray[np.float32]) -> float:
    """RMS in dBFS; -inf for digital silence and for none."""
    power = float(np.mean(waveform.astype(np.float64) ** 2)) if len(waveform) else 0.0
    return 10 * float(np.log10(power)) if power else float("-inf")


def _remarks(
    record: ClipRecord, decoded: Decoded, faces: Faces, detector: CountingDetector, found: Evidence
) -> Mapping[str, str]:
    """What does not prevent a clip's use, kind by kind."""
    told: dict[str, str] = {}
    if record.path and decoded.info.video is None and record.faces is None:
        told["no video stream"] = ""
    elif record.path and not len(faces):
        told["no face"] = f"in {len(decoded.frames)} frames"
    if detector.crowded >= CROWDED and len(faces):
        x, y, w, h = (round(100 * float(v)) for v in faces.boxes.mean(axis=0))
        where = f"the one at {x}%, {y}% of {w}x{h}% of the picture"
        told["several faces"] = f"{where} is used, seen in {len(faces)} frames"
    if record.path and decoded.info.audio is None:
        told["no sound"] = ""
    elif record.path and not len(found.waveform):
        told["silent"] = f"{level(decoded.waveform):.0f} dBFS"
    if decoded.info.warnings:
        told["remark"] = "; ".join(decoded.info.warnings)
    return told


class CountingDetector:
    """A detector that counts the frames in which it saw more than one face."""

    def __init__(self, detector: FaceDetector) -> None:
        self.detector, self.crowded = detector, 0

    def detect(self, frame: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See FaceDetector."""
        boxes, confidence = self.detector.detect(frame)
        self.crowded += len(boxes) > 1
        return boxes, confidence


def problems_from(values: list[dict[str, Any]]) -> list[Problem]:
    """Reads problems that were written as plain values."""
    return [Problem(**value) for value in values]


def plain(problems: list[Problem]) -> list[dict[str, Any]]:
    """Problems as plain values."""
    return [asdict(problem) for problem in problems]
