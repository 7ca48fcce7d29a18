"""The speaker's face in a clip: detectors, tracks, crops."""

from merkit.faces.detectors import FaceDetector, HaarDetector, YuNetDetector
from merkit.faces.speaker import Faces, PrecomputedFaces, find_faces, no_faces, square_crop

__all__ = [
    "FaceDetector",
    "Faces",
    "HaarDetector",
    "PrecomputedFaces",
    "YuNetDetector",
    "find_faces",
    "no_faces",
    "square_crop",
]
