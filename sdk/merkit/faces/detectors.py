"""Face detectors behind one interface, so that a better one is a matter of one argument.

Haar ships inside OpenCV and needs no file; YuNet reads the user's own ONNX file. OpenCV's
detectors are not safe to share between threads: each thread gets its own.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError, MissingExtraError

Boxes = NDArray[np.float32]
Confidence = NDArray[np.float32]


class FaceDetector(Protocol):
    """Finds faces in one picture."""

    def detect(self, frame: NDArray[np.uint8]) -> tuple[Boxes, Confidence]:
        """Boxes float32 [k,4] as x, y, w, h in the frame's pixels, confidence float32 [k] in 0..1.

        Args:
            frame: uint8 [h,w,3] RGB.
        """
        ...


class HaarDetector:
    """OpenCV's cascade for frontal faces, the default: no download, 6-15 ms a frame.

    Works on the frame scaled to a longer side of `side` pixels, in which a face has at least
    24: smaller faces are not looked for. Faces turned far away are not found either, which is
    the seed's wish (3.1). Confidence is the logistic function of the weight of the cascade's
    last stage, (weight - 3) / 1.5: measured weights are 4.5-10 on a real frontal face, near 0
    on its weakest neighbours. It ranks; it is no probability.
    """

    cascade_file: ClassVar[str] = "haarcascade_frontalface_default.xml"

    def __init__(self, side: int = 320) -> None:
        self.side = side
        self._local = threading.local()

    def detect(self, frame: NDArray[np.uint8]) -> tuple[Boxes, Confidence]:
        """See FaceDetector."""
        cv2 = load_cv2()
        height, width = frame.shape[:2]
        scale = min(1.0, self.side / max(height, width))
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if scale < 1.0:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
        found, _, weights = self._cascade().detectMultiScale3(
            gray, scaleFactor=1.2, minNeighbors=4, minSize=(24, 24), outputRejectLevels=True
        )
        boxes = np.array(found, np.float32).reshape(-1, 4) / np.float32(scale)
        weights = np.array(weights, np.float64).reshape(-1)
        confidence = 1.0 / (1.0 + np.exp(-(weights - 3.0) / 1.5))
        return boxes, confidence.astype(np.float32)

    def _cascade(self) -> Any:
        if not hasattr(self._local, "cascade"):
            cv2 = load_cv2()
            if not hasattr(cv2, "CascadeClassifier"):
                raise MissingExtraError(
                    f"OpenCV {cv2.__version__} has no Haar cascades",
                    "OpenCV 4",
                    "run: pip install 'merkit[media]', or give YuNetDetector its model",
                )
            path = Path(cv2.data.haarcascades) / self.cascade_file
            self._local.cascade = cv2.CascadeClassifier(str(path))
        return self._local.cascade


class YuNetDetector:
    """YuNet (OpenCV's `FaceDetectorYN`) from the user's own `.onnx` file.

    Args:
        path: a `face_detection_yunet_*.onnx` file.
        threshold: least confidence of a face.

    Raises:
        InvalidInputError: no such file, or OpenCV cannot read it as YuNet.
    """

    def __init__(self, path: str | os.PathLike[str], threshold: float = 0.7) -> None:
        self.path, self.threshold = Path(path), threshold
        self._local = threading.local()
        self._network((32, 32))

    def detect(self, frame: NDArray[np.uint8]) -> tuple[Boxes, Confidence]:
        """See FaceDetector."""
        boxes, confidence, _ = self.detect_landmarks(frame)
        return boxes, confidence

    def detect_landmarks(
        self, frame: NDArray[np.uint8]
    ) -> tuple[Boxes, Confidence, NDArray[np.float32]]:
        """As `detect`, with landmarks float32 [k,5,2], x and y in pixels: the eyes, the tip of
        the nose, the corners of the mouth; of each pair the subject's right one first."""
        height, width = frame.shape[:2]
        network = self._network((width, height))
        _, found = network.detect(np.ascontiguousarray(frame[:, :, ::-1]))
        rows = np.zeros((0, 15), np.float32) if found is None else np.asarray(found, np.float32)
        confidence = np.clip(rows[:, -1], 0.0, 1.0)
        return rows[:, :4].copy(), confidence, rows[:, 4:14].reshape(-1, 5, 2).copy()

    def _network(self, size: tuple[int, int]) -> Any:
        cv2 = load_cv2()
        if not hasattr(self._local, "network"):
            try:
                self._local.network = cv2.FaceDetectorYN.create(
                    str(self.path), "", size, self.threshold
                )
            except cv2.error:
                found = "cannot be read as one" if self.path.is_file() else "does not exist"
                raise InvalidInputError(
                    f"the face detector's file {self.path} {found}",
                    "a face_detection_yunet_*.onnx file",
                    "fetch one from OpenCV's model zoo, or use HaarDetector",
                ) from None
        self._local.network.setInputSize(size)
        return self._local.network


def load_cv2() -> Any:
    """OpenCV; MissingExtraError if it is not installed."""
    try:
        import cv2
    except ImportError:
        raise MissingExtraError.of("opencv-python-headless", "media") from None
    return cv2
