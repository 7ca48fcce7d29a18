"""What a clip becomes before a backend sees it: the entry tensors of the pipeline.

The same clip can be given as a path, as bytes, decoded already or as words alone, and be decoded
here or on a server. All ways are turned into one of the pipeline's two entries here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import strings
from merkit.contract import Preprocessing
from merkit.errors import (
    ClipLimitError,
    ClipNotFoundError,
    ClipUnreadableError,
    InferenceError,
    InvalidInputError,
    MerkitError,
)
from merkit.media.limits import Limits
from merkit.pipeline import DECODED_IN

if TYPE_CHECKING:
    from merkit.faces import FaceDetector
    from merkit.media import Decoded

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Clip:
    """One request: media (a path, bytes or a `Decoded`), words, or both.

    Attributes:
        media: the clip, or None for words alone.
        text: what is said in it.
        source: what to call it in the result; default: the path.
    """

    media: PathLike | bytes | Decoded | None = None
    text: str | None = None
    source: str | None = None

    @property
    def name(self) -> str:
        """The source as results and errors name it."""
        if self.source is not None:
            return self.source
        if isinstance(self.media, str | os.PathLike):
            return os.fspath(self.media)
        if self.media is None:
            return "text"
        return "bytes" if isinstance(self.media, bytes) else "decoded clip"


@dataclass(frozen=True)
class Entry:
    """What a backend is asked, and what of the answer is known already.

    Attributes:
        tensors: `pipeline.BYTES_IN` or `pipeline.DECODED_IN`.
        detail: what there is of `pipeline.DETAIL`.
        frames: frames in which faces were found, by time, where they were asked for.
        timings_ms: what it took.
    """

    tensors: Mapping[str, NDArray[Any]]
    detail: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    frames: Mapping[float, NDArray[Any]] = field(default_factory=dict)
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    def unheard(self) -> Entry:
        """The same without `text`: nobody is to write the words."""
        return replace(self, tensors={n: t for n, t in self.tensors.items() if n != "text"})


def bytes_entry(clip: Clip, limits: Limits) -> Entry:
    """The clip's bytes and words, for a server that decodes."""
    raw = np.zeros((1, 0), np.uint8) if clip.media is None else _clip_bytes(clip.media, limits)
    return Entry({"clip": raw, "text": strings(clip.text or "")})


def decoded_entry(
    clip: Clip,
    p: Preprocessing,
    limits: Limits,
    detector: FaceDetector | None,
    keep_frames: bool,
) -> Entry:
    """The clip decoded and its faces found in this process. Words alone need no codec."""
    if clip.media is None:
        return Entry(_words(clip.text or "", p))
    from merkit.faces import find_faces
    from merkit.media import Decoded, decode_clip
    from merkit.steps import decoded_tensors

    start = time.perf_counter()
    media = clip.media
    decoded = media if isinstance(media, Decoded) else decode_clip(media, p, limits)
    middle = time.perf_counter()
    try:
        faces = find_faces(decoded.frames, decoded.frame_times, p, detector)
    except (MerkitError, MemoryError):
        raise
    except Exception as error:  # a detector is foreign code, and OpenCV has errors of its own
        raise InferenceError.of("finding faces", error) from error
    timings = {"decode": (middle - start) * 1e3, "faces": (time.perf_counter() - middle) * 1e3}
    tensors = decoded_tensors(decoded, faces, clip.text or "")
    entry = {name: tensors.pop(name) for name in DECODED_IN}
    frames = {}
    if keep_frames:
        seen = {float(t) for t in faces.times}
        times = map(float, decoded.frame_times)
        frames = {t: f for t, f in zip(times, decoded.frames, strict=True) if t in seen}
    return Entry(entry, tensors, frames, timings)


def _words(text: str, p: Preprocessing) -> dict[str, NDArray[Any]]:
    return {
        "face_crops": np.zeros((1, 0, p.face_size, p.face_size, 3), np.uint8),
        "face_count": np.zeros((1, 1), np.int64),
        "waveform": np.zeros((1, 0), np.float32),
        "waveform_length": np.zeros((1, 1), np.int64),
        "text": strings(text),
    }


def check_text(text: Any) -> None:
    if text is not None and not isinstance(text, str):
        raise InvalidInputError(
            f"text is of type {type(text).__name__}", "a string or None", "give the words as str"
        )
    try:
        (text or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"text holds a lone surrogate at position {error.start}",
            "words that can be encoded as UTF-8",
            "decode the bytes they came from with the right encoding",
        ) from None


def _clip_bytes(media: Any, limits: Limits) -> NDArray[np.uint8]:
    """The clip as a tensor [1, n]; size is checked before anything is read."""
    if not isinstance(media, str | os.PathLike | bytes):
        raise InvalidInputError(
            f"a clip of type {type(media).__name__} for a server that decodes",
            "a path or bytes",
            "connect with decode='client' to send what is decoded already",
        )
    if not isinstance(media, bytes):
        media = _read(Path(media), limits)
    if not media:
        raise ClipUnreadableError("the clip is empty (0 bytes)", "a media file", "give another")
    _check_size(len(media), limits)
    return np.frombuffer(media, np.uint8)[None]


def _read(path: Path, limits: Limits) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise ClipUnreadableError(
                f"{path} is not a file", "a readable media file", "give the path of one clip"
            )
        _check_size(path.stat().st_size, limits)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ClipNotFoundError.at(path) from None
    except (OSError, ValueError) as error:
        raise ClipUnreadableError(
            f"{path} cannot be read ({error})", "a readable media file", "check the path"
        ) from None


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise ClipLimitError(
            f"a clip of {size} bytes",
            f"at most {limits.max_bytes}",
            "give a shorter clip, or raise Limits.max_bytes",
        )
