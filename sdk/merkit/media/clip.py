"""A clip becomes arrays: sampled frames with their times, a waveform, and what was found.

Any modality may be missing and every container is different; without one place that decodes,
training and each backend would see different pixels. PyAV reads whatever FFmpeg reads. Nothing
of a clip is logged or written to disk.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError, MerkitError, MissingExtraError
from merkit.media.audio import read_sound
from merkit.media.container import ClipFile, Source, unreadable
from merkit.media.frames import Sampled, sample_frames
from merkit.media.limits import Limits
from merkit.media.streams import Damage, Reader, extent, indexed, seconds

Part = tuple[float, float | None]
"""First and last second of a part of a recording; None: to its end."""

TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})
"""FFmpeg draws text files as video; a renamed text is no clip."""


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
        duration: seconds of the longest stream, by its header where it says; 0 for an image
            and for no clip.
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


def decode_clip(
    source: Source, p: Preprocessing, limits: Limits | None = None, part: Part | None = None
) -> Decoded:
    """Decodes a video, a sound file or an image.

    Args:
        source: a path, or the file's bytes, which are decoded in memory.
        p: frames per clip and their size, sample rate, greatest length of sound.
        limits: what is refused; the defaults of `Limits`.
        part: first and last second (None: the end) of what of the recording is the clip; times
            then count from its first.

    Raises:
        ClipNotFoundError: no such file.
        ClipUnreadableError: not media, or neither picture nor sound in it (or in its part) can
            be decoded.
        ClipLimitError: larger, longer or with larger frames than `limits` allows.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        raise MissingExtraError.of("av", "media") from None
    try:
        with ClipFile(source, limits or Limits()) as clip:
            return _Decoder(clip, p, part).decode()
    except MerkitError:
        raise
    except Exception as error:  # on damage, codecs and their bindings raise errors of any kind
        name = "the clip" if isinstance(source, bytes) else str(source)
        raise unreadable(f"{name} cannot be decoded ({type(error).__name__})") from error


NOTHING = Sampled(no_clip().frames, no_clip().frame_times)


class _Decoder:
    """Decodes one clip, collecting what its caller should know on the way."""

    def __init__(self, clip: ClipFile, p: Preprocessing, part: Part | None) -> None:
        self.clip, self.p, self.part = clip, p, part
        self.warnings: list[str] = []
        self.damage = Damage()
        container = clip.peek()
        self.format = str(container.format.name)
        self.length = (container.duration or 0) / 1e6
        self.origin = (container.start_time or 0) / 1e6
        self.duration = 0.0

    def decode(self) -> Decoded:
        streams = self.clip.peek().streams
        held = ", ".join(sorted({stream.type for stream in streams})) or "no streams"
        video, audio = self._choose(streams.video, "video"), self._choose(streams.audio, "audio")
        if video is None and audio is None:
            raise unreadable(
                f"{self.clip.name} has neither picture nor sound (it holds: {held})",
                "give a clip with a video or audio stream",
            )
        empty = no_clip()
        waveform, heard = empty.waveform, None
        if audio is not None:
            waveform, heard = self._sound(audio)
        frames, times, seen = empty.frames, empty.frame_times, None
        if video is not None:
            frames, times, seen = self._picture(video)
        if not len(frames) and not len(waveform):
            raise unreadable(f"nothing of {self.clip.name} can be decoded (it holds: {held})")
        if self.damage.cut:
            self.warnings.append("the clip is truncated; what is there was used")
        if self.damage.bad_packets:
            self.warnings.append(f"damaged packets passed over: {self.damage.bad_packets}")
        notes = tuple(dict.fromkeys(self.warnings))
        info = MediaInfo(round(self.duration, 3), self.format, seen, heard, notes)
        return Decoded(frames, times, waveform, info)

    def _choose(self, streams: Any, kind: str) -> int | None:
        """Index of the stream to decode: the container's default, else the first."""
        known = [s for s in streams if s.codec_context is not None]
        known = [s for s in known if s.codec_context.name not in TEXT_CODECS]
        usable = [s for s in known if "attached_pic" not in _dispositions(s)]
        if len(usable) < len(known):
            self.warnings.append("an attached cover picture is not part of the video")
        if len(usable) > 1:
            self.warnings.append(f"of {len(usable)} {kind} streams one is used")
        default = (stream for stream in usable if "default" in _dispositions(stream))
        chosen = next(default, usable[0] if usable else None)
        return None if chosen is None else int(chosen.index)

    def _sound(self, index: int) -> tuple[NDArray[np.float32], AudioInfo | None]:
        reader = Reader(self.clip.fresh, index, self.clip.check_read)
        context = reader.stream.codec_context
        layout = context.layout
        info = AudioInfo(context.name, context.sample_rate, layout.nb_channels, layout.name)
        whole = self._span(reader)
        span = self._wanted(whole)
        begins = None if self.part is None else whole[0]
        waveform, notes = (
            read_sound(reader, span, self.p, self.damage, begins)
            if span
            else (no_clip().waveform, [])
        )
        self.warnings += notes
        if not len(waveform):
            self.warnings.append("the audio stream holds no sound")
            return waveform, None
        return waveform, info

    def _picture(
        self, index: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], VideoInfo | None]:
        reader = Reader(self.clip.fresh, index, self.clip.check_read)
        context = reader.stream.codec_context
        self.clip.check_pixels(context.width or 0, context.height or 0)
        still = self._is_still()
        rate = 0.0 if still else round(float(reader.stream.guessed_rate or 0), 3)
        self.damage.cut |= self.format == "jpeg_pipe" and self.clip.lacks_jpeg_end()
        codec, span = context.name, (0.0, 0.0) if still else self._wanted(self._span(reader))
        sampled = sample_frames(reader, span, self.p, self.damage) if span else NOTHING
        if not len(sampled.frames):
            self.warnings.append("the video stream holds no frame that can be decoded")
            return sampled.frames, sampled.times, None
        origin = self.origin + (self.part[0] if self.part else 0.0)
        times = np.maximum(sampled.times - np.float32(origin), np.float32(0))
        return sampled.frames, times, VideoInfo(codec, *sampled.size, rate, sampled.rotation)

    def _is_still(self) -> bool:
        return self.format == "image2" or self.format.endswith("_pipe")

    def _span(self, reader: Reader) -> tuple[float, float]:
        """First and last second of a stream; read from its packets where no header says."""
        start = seconds(reader.stream.start_time, reader.stream.time_base)
        length = seconds(reader.stream.duration, reader.stream.time_base) or self.length
        if length > 0:
            first = self.origin if start is None else start
            span = first, first + length
        else:
            span = extent(reader, self.damage)
        self.clip.check_seconds(span[1] - span[0])
        self.clip.check_read(indexed(reader.stream))
        wanted = self._wanted(span) or (0.0, 0.0)
        self.duration = max(self.duration, wanted[1] - wanted[0])
        return span

    def _wanted(self, span: tuple[float, float]) -> tuple[float, float] | None:
        """What of a stream's span belongs to the clip's part; None if nothing does."""
        if self.part is None:
            return span
        begin, end = self.part
        first = max(span[0], self.origin + begin)
        last = span[1] if end is None else min(span[1], self.origin + end)
        return (first, last) if last > first else None


def _dispositions(stream: Any) -> set[str]:
    return {flag.name for flag in type(stream.disposition) if flag in stream.disposition}
