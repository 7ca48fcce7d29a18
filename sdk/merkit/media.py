"""A clip becomes arrays: sampled frames with their times, a waveform, and what was found.

Every modality may be missing and every container is different; without one place that decodes,
training and each backend would see different pixels. PyAV reads whatever FFmpeg reads. Nothing
of a clip is logged or written to disk.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.audio import read_sound
from merkit.contract import Preprocessing
from merkit.errors import (
    ClipLimitError,
    ClipNotFoundError,
    ClipUnreadableError,
    InvalidInputError,
    MissingExtraError,
)
from merkit.frames import sample_frames
from merkit.limits import HEADER_BYTES, Limits, image_size
from merkit.streams import Damage, extent, seconds

Source = str | os.PathLike[str] | bytes
TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})
"""FFmpeg draws text files as video; a renamed text is no clip."""
MEDIA = "a video, sound or image file that FFmpeg reads"


@dataclass(frozen=True)
class VideoInfo:
    """The video stream or image that was sampled; sizes in pixels as displayed."""

    codec: str
    width: int
    height: int
    frame_rate: float  # per second; 0 for an image
    rotation: int  # degrees clockwise that the source asks to be turned by


@dataclass(frozen=True)
class AudioInfo:
    """The audio stream that was decoded."""

    codec: str
    sample_rate: int  # Hz, before resampling
    channels: int
    layout: str


@dataclass(frozen=True)
class MediaInfo:
    """What a clip was found to hold. Becomes the tensor `media_info`.

    Attributes:
        duration: seconds of the longest stream; 0 for an image and for no clip.
        container: FFmpeg's name of the format, "" for no clip.
        video: None where there is no picture.
        audio: None where there is no sound.
        warnings: what the caller should know: damage, parts not used.
    """

    duration: float = 0.0
    container: str = ""
    video: VideoInfo | None = None
    audio: AudioInfo | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=True)

    @staticmethod
    def from_json(text: str | bytes) -> MediaInfo:
        """Reads what `to_json` wrote; InvalidInputError for anything else."""
        try:
            value = json.loads(text)
            video, audio = value.pop("video"), value.pop("audio")
            return MediaInfo(
                video=VideoInfo(**video) if video else None,
                audio=AudioInfo(**audio) if audio else None,
                warnings=tuple(value.pop("warnings")),
                **value,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"media_info is malformed ({type(error).__name__})",
                "the JSON that the decode step writes",
                "check that client and server run the same version of merkit",
            ) from None

    def in_pixels(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Face boxes [k,4], shares of the frame, as x, y, w, h in the source's pixels."""
        if self.video is None:
            return np.zeros((0, 4), np.float32)
        size = np.array([self.video.width, self.video.height] * 2, np.float32)
        return (boxes * size).astype(np.float32)


@dataclass(frozen=True)
class Decoded:
    """A clip as arrays; what it does not hold is of zero length.

    Attributes:
        frames: uint8 [n,h,w,3] RGB, upright, square pixels, longer side at most
            `max_frame_side`; [0,1,1,3] without a picture.
        frame_times: float32 [n], seconds from the clip's beginning, ascending.
        waveform: float32 [s], mono at `sample_rate`, in -1..1.
        info: what was found.
    """

    frames: NDArray[np.uint8]
    frame_times: NDArray[np.float32]
    waveform: NDArray[np.float32]
    info: MediaInfo


def no_clip() -> Decoded:
    """What stands for the clip where only words are given."""
    times, waveform = np.zeros(0, np.float32), np.zeros(0, np.float32)
    return Decoded(np.zeros((0, 1, 1, 3), np.uint8), times, waveform, MediaInfo())


def decode_clip(source: Source, p: Preprocessing, limits: Limits | None = None) -> Decoded:
    """Decodes a video, a sound file or an image.

    Args:
        source: a path, or the file's bytes, which are decoded in memory.
        p: frames per clip and their size, sample rate, greatest length of sound.
        limits: what is refused; the defaults of `Limits`.

    Raises:
        ClipNotFoundError: no such file.
        ClipUnreadableError: not media, or neither picture nor sound in it can be decoded.
        ClipLimitError: larger, longer or with larger frames than `limits` allows.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError.of("av", "media") from None
    limits = limits or Limits()
    name = "the clip given as bytes" if isinstance(source, bytes) else str(Path(source))
    try:
        with _file(source, name, limits) as file, _opened(file, name, limits) as container:
            return _Clip(container, name, p, limits).decode()
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        reason = f"{name} cannot be decoded ({type(error).__name__})"
        raise _unreadable(reason) from None


def _unreadable(found: str, action: str = "check that the file is whole") -> ClipUnreadableError:
    return ClipUnreadableError(found, MEDIA, action)


@contextmanager
def _file(source: Source, name: str, limits: Limits) -> Iterator[io.BufferedIOBase]:
    """The source as an open file whose size and stated image size are within the limits."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        path = Path(source)
        if not path.exists():
            action = "check the path; clips are read from files, not from addresses"
            raise ClipNotFoundError(f"there is no file {name}", "a readable file", action)
        if not path.is_file():
            raise _unreadable(f"{name} is not a file", "give the path of one clip")
        size = path.stat().st_size
    if size == 0:
        raise _unreadable(f"{name} is empty")
    if size > limits.max_bytes:
        raise ClipLimitError(
            f"{name} has {size} bytes",
            f"at most {limits.max_bytes}",
            "cut the clip, or raise Limits.max_bytes",
        )
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        stated = image_size(file.read(HEADER_BYTES))
        if stated:
            _check_pixels(name, *stated, limits)
        file.seek(0)
        yield file


def _check_pixels(name: str, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise ClipLimitError(
            f"{name} has frames of {width} x {height} pixels",
            f"at most {limits.max_pixels} pixels",
            "scale it down, or raise Limits.max_pixels",
        )


class _Nameless:
    """A file without its name: FFmpeg must judge by content, and has no name to put in a log."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _refuse(*_: object) -> Any:
    """Playlists name other files and addresses: a clip may open none of them."""
    raise PermissionError("a clip may not open other files")


@contextmanager
def _opened(file: io.BufferedIOBase, name: str, limits: Limits) -> Iterator[Any]:
    import av

    options = {"max_pixels": str(limits.max_pixels), "protocol_whitelist": "none"}
    try:
        container = av.open(
            _Nameless(file),
            io_open=_refuse,
            options=options,
            metadata_errors="ignore",
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        kind = "its data are not those of any known format, or its index is missing"
        reason = kind if isinstance(error, av.error.InvalidDataError) else type(error).__name__
        raise _unreadable(f"{name} is no media file ({reason})") from None
    with container:
        yield container


class _Clip:
    """One open container: what it holds, then its arrays."""

    def __init__(self, container: Any, name: str, p: Preprocessing, limits: Limits) -> None:
        self.container, self.name, self.p, self.limits = container, name, p, limits
        self.warnings: list[str] = []
        self.damage = Damage()
        if len(container.streams) > limits.max_streams:
            raise ClipLimitError(
                f"{name} has {len(container.streams)} streams",
                f"at most {limits.max_streams}",
                "keep one video and one audio stream, or raise Limits.max_streams",
            )
        self.origin = (container.start_time or 0) / 1e6
        self.video = self._video_stream()
        self.audio = self._audio_stream()
        if self.video is None and self.audio is None:
            held = ", ".join(sorted({s.type for s in container.streams})) or "no streams"
            raise _unreadable(
                f"{name} has neither picture nor sound (it holds: {held})",
                "give a clip with a video or audio stream",
            )

    def decode(self) -> Decoded:
        spans = {s.index: self._span(s) for s in (self.video, self.audio) if s is not None}
        still = self.video is not None and self.audio is None and self._is_still()
        duration = 0.0 if still else max(end - start for start, end in spans.values())
        if duration > self.limits.max_seconds:
            raise ClipLimitError(
                f"{self.name} lasts {duration:.1f} s",
                f"at most {self.limits.max_seconds:g} s",
                "cut the clip, or raise Limits.max_seconds",
            )
        empty = no_clip()
        frames, times, waveform = empty.frames, empty.frame_times, empty.waveform
        video, audio = None, None
        if self.audio is not None:
            waveform, audio = self._sound(spans[self.audio.index])
        if self.video is not None:
            frames, times, video = self._picture(spans[self.video.index], still)
        if not len(frames) and not len(waveform):
            raise _unreadable(f"nothing of {self.name} can be decoded")
        if self.damage.cut:
            self.warnings.append("the clip is truncated; what is there was used")
        if self.damage.bad_packets:
            count = self.damage.bad_packets
            self.warnings.append(f"{count} damaged packets were passed over")
        container = str(self.container.format.name)
        info = MediaInfo(round(duration, 3), container, video, audio, tuple(self.warnings))
        return Decoded(frames, times, waveform, info)

    def _video_stream(self) -> Any:
        streams = [s for s in self.container.streams.video if s.codec_context is not None]
        streams = [s for s in streams if s.codec_context.name not in TEXT_CODECS]
        moving = [s for s in streams if "attached_pic" not in _dispositions(s)]
        if len(moving) < len(streams):
            self.warnings.append("an attached cover picture is not part of the video")
        if len(moving) > 1:
            self.warnings.append(f"of {len(moving)} video streams one is used")
        if not moving:
            return None
        chosen = next((s for s in moving if "default" in _dispositions(s)), moving[0])
        context = chosen.codec_context
        _check_pixels(self.name, context.width or 0, context.height or 0, self.limits)
        context.options = {"max_pixels": str(self.limits.max_pixels)}
        return chosen

    def _audio_stream(self) -> Any:
        streams = [s for s in self.container.streams.audio if s.codec_context is not None]
        if len(streams) > 1:
            self.warnings.append(f"of {len(streams)} audio streams one is used")
        return next((s for s in streams if "default" in _dispositions(s)), (streams or [None])[0])

    def _is_still(self) -> bool:
        name = str(self.container.format.name)
        return name == "image2" or name.endswith("_pipe")

    def _span(self, stream: Any) -> tuple[float, float]:
        """First and last second of a stream; read from its packets where no header says."""
        start = seconds(stream.start_time, stream.time_base)
        length = seconds(stream.duration, stream.time_base)
        if length is None and self.container.duration:
            length = self.container.duration / 1e6
        if length is not None and length > 0:
            first = self.origin if start is None else start
            return first, first + length
        if self._is_still():
            return 0.0, 0.0
        found = extent(self.container, stream, self.damage)
        self._rewind()
        return found

    def _rewind(self) -> None:
        import av

        try:
            self.container.seek(0)
        except (av.FFmpegError, ValueError, OSError):
            self.damage.cut = True

    def _sound(self, span: tuple[float, float]) -> tuple[NDArray[np.float32], AudioInfo | None]:
        waveform, warnings = read_sound(self.container, self.audio, span, self.p, self.damage)
        self.warnings += warnings
        if not len(waveform):
            self.warnings.append("the audio stream holds no sound")
            return waveform, None
        context = self.audio.codec_context
        layout = context.layout
        info = AudioInfo(context.name, context.sample_rate, layout.nb_channels, layout.name)
        return waveform, info

    def _picture(
        self, span: tuple[float, float], still: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], VideoInfo | None]:
        sampled = sample_frames(self.container, self.video, span, self.p, self.damage)
        if not len(sampled.frames):
            self.warnings.append("the video stream holds no frame that can be decoded")
            return sampled.frames, sampled.times, None
        rate = 0.0 if still else round(float(self.video.guessed_rate or 0), 3)
        codec = self.video.codec_context.name
        info = VideoInfo(codec, *sampled.size, rate, sampled.rotation)
        times = np.maximum(sampled.times - np.float32(self.origin), np.float32(0))
        return sampled.frames, times, info


def _dispositions(stream: Any) -> set[str]:
    return {flag.name for flag in type(stream.disposition) if flag in stream.disposition}
