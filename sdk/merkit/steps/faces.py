"""The step `faces`: sampled frames become the speaker's face crops.

"No face" travels as a count of zero with crops of zero length, never as a crop of zeros that an
encoder would take for a face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from merkit.contract import Contract
from merkit.faces import FaceDetector, Faces, HaarDetector, find_faces
from merkit.steps.base import Array, column, padded, take


class FindFaces:
    """`frames`, `frame_times` -> `face_crops`, `face_count`, `face_boxes`, `face_times`,
    `face_confidence`, padded with zeros to the most faces of the batch."""

    name: ClassVar[str] = "faces"

    def __init__(self, contract: Contract, resources: Path | None = None) -> None:  # noqa: ARG002
        self.contract = contract
        self.detector: FaceDetector = HaarDetector()

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """See Step."""
        frames, times = take(tensors, self.contract, "frames", "frame_times")
        p = self.contract.preprocessing
        found = [find_faces(*clip, p, self.detector) for clip in zip(frames, times, strict=True)]
        return face_tensors(found)


def face_tensors(batch: Sequence[Faces]) -> dict[str, Array]:
    """The outputs of the step `faces`: crops and their particulars, padded to the most faces."""
    return {
        "face_crops": padded([faces.crops for faces in batch]),
        "face_count": column([len(faces) for faces in batch]),
        "face_boxes": padded([faces.boxes for faces in batch]),
        "face_times": padded([faces.times for faces in batch]),
        "face_confidence": padded([faces.confidence for faces in batch]),
    }
