"""N frames spread over a video, at a cost that hardly grows with its length.

Decoding ten minutes to look at eight frames wastes nearly all the work. So each wanted time is
reached by seeking to the keyframe before it and decoding forward from there; where no keyframe
lies between one wanted time and the next, decoding simply goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.streams import Damage, extent, read_frames, seconds

SHORTFALL = 0.9
"""A stream that ends before this share of its stated length is sampled anew over what it has."""
STEP_BACK = (0.0, 2.0, 10.0, float("inf"))
"""Seconds by which a seek is repeated earlier when it landed after the wanted time."""

QUARTER_TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
"""Display matrices of turns by 0, 90, 180 and 270 degrees counterclockwise."""


@dataclass(frozen=True)
class Sampled:
    """Frames of one video stream.

    Attributes:
        frames: uint8 [n,h,w,3] RGB; [0,1,1,3] if none can be decoded.
        times: float32 [n], seconds as the stream counts them.
        size: width and height as displayed, before scaling.
        rotation: degrees clockwise by which the frames were turned.
    """

    frames: NDArray[np.uint8]
    times: NDArray[np.float32]
    size: tuple[int, int] = (0, 0)
    rotation: int = 0


def sample_frames(
    container: Any, stream: Any, span: tuple[float, float], p: Preprocessing, damage: Damage
) -> Sampled:
    """The frames shown at the middles of `p.frames_per_clip` equal parts of a stream's time.

    Fewer where the stream has fewer; each frame is given once. If the stream turns out to end
    long before its stated length, what is there is sampled instead, and `damage.cut` says so.

    Args:
        container: an open container, positioned anywhere.
        stream: one of its video streams.
        span: first and last second of the stream by its header.
        p: how many frames, and how large.
        damage: filled with what was passed over.
    """
    walker = _Walker(container, stream, damage)
    chosen = _at(walker, _middles(span, p.frames_per_clip), p)
    stated = span[1] - span[0]
    short = walker.ended and (walker.end - span[0]) < SHORTFALL * stated
    if short and stated > 0 and p.frames_per_clip > 1 and chosen:
        damage.cut = True
        walker.rewind()
        found = extent(container, stream, Damage())
        walker.rewind()
        chosen = _at(walker, _middles((found[0], min(found[1], walker.end)), p.frames_per_clip), p)
    if not chosen:
        return Sampled(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.float32))
    times = np.array([time for time, _ in chosen], np.float32)
    images = np.stack([image for _, image in chosen])
    return Sampled(images, times, walker.size, walker.rotation)


def _middles(span: tuple[float, float], count: int) -> list[float]:
    part = (span[1] - span[0]) / count
    return [span[0] + (index + 0.5) * part for index in range(count)]


def _at(
    walker: _Walker, times: Sequence[float], p: Preprocessing
) -> list[tuple[float, NDArray[np.uint8]]]:
    chosen: list[tuple[float, NDArray[np.uint8]]] = []
    size: tuple[int, int] | None = None
    for time in times:
        frame = walker.shown_at(time)
        if frame is None or (chosen and walker.time <= chosen[-1][0]):
            continue
        if size is None:
            walker.size, walker.rotation = displayed(frame, walker.pixel_aspect)
            scale = min(1.0, p.max_frame_side / max(walker.size))
            size = max(1, round(walker.size[0] * scale)), max(1, round(walker.size[1] * scale))
        image = to_rgb(frame, size)
        chosen.append((walker.time, image))
    return chosen


class _Walker:
    """Moves through a video stream, forward by decoding and onward by seeking."""

    def __init__(self, container: Any, stream: Any, damage: Damage) -> None:
        self.container, self.stream, self.damage = container, stream, damage
        self.pixel_aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        self.gap = 1.0 / float(stream.guessed_rate or 25)
        self.seekable = True
        self.end = float("-inf")  # of the last frame decoded
        self.size, self.rotation = (0, 0), 0
        self.rewind()

    def rewind(self) -> None:
        """Back to the beginning."""
        self.ended = False
        self.time = float("-inf")  # of the current frame
        self.current: Any = None
        self.next_time = float("-inf")
        self.upcoming: Any = None
        self.started = False
        self.frames: Iterator[Any] = iter(())

    def shown_at(self, time: float) -> Any:
        """The frame on the screen at `time`: the last that does not begin after it."""
        if self._worth_seeking(time):
            self._seek(time)
        elif not self.started:
            self._restart(None)
        while self.upcoming is not None and (self.current is None or self.next_time <= time):
            self._advance()
        return self.current

    def _worth_seeking(self, time: float) -> bool:
        if not self.seekable or self.ended:
            return False
        entries = self.stream.index_entries
        if not self.started:
            return len(entries) != 1
        if not len(entries):
            return time - self.time > 1.0
        keyframe = entries.search_timestamp(int(time / self.stream.time_base), backward=True)
        at = seconds(entries[keyframe].timestamp, self.stream.time_base) if keyframe >= 0 else None
        return at is not None and at > self.next_time

    def _seek(self, time: float) -> None:
        """To the keyframe at or before `time`; stays where it is if that is no progress."""
        for back in STEP_BACK:
            target = max(time - back, 0.0)
            self._restart(target)
            if self.next_time <= time or target == 0.0 or not self.seekable:
                return

    def _restart(self, target: float | None) -> None:
        import av

        before = self.time
        try:
            if target is not None:
                offset = int(target / self.stream.time_base)
                self.container.seek(offset, stream=self.stream, backward=True)
            else:
                start = self.stream.start_time or 0
                self.container.seek(min(start, 0), stream=self.stream, backward=True)
        except (av.FFmpegError, ValueError, OSError):
            self.seekable = False
            if self.started:  # nothing moved: decode on
                return
        self.frames = read_frames(self.container, self.stream, self.damage)
        self.current, self.upcoming = None, None
        self.next_time = self.time = float("-inf")
        self.started = True
        self._advance()
        if self.next_time <= before:  # the seek went backwards: this stream has too few keyframes
            self.seekable = False

    def _advance(self) -> None:
        """One frame forward."""
        if self.upcoming is not None:
            self.current, self.time = self.upcoming, self.next_time
        self.upcoming = next(self.frames, None)
        if self.upcoming is None:
            self.ended = True
            return
        stamp = seconds(self.upcoming.pts, self.upcoming.time_base)
        known = max(self.next_time, self.end if not self.seekable else float("-inf"))
        fallback = known + self.gap if known > float("-inf") else 0.0
        self.next_time = fallback if stamp is None else stamp
        length = seconds(getattr(self.upcoming, "duration", None), self.upcoming.time_base)
        self.end = max(self.end, self.next_time + (length or self.gap))


def displayed(frame: Any, pixel_aspect: float) -> tuple[tuple[int, int], int]:
    """Width and height at which a frame is meant to be seen, and its turn in degrees clockwise."""
    a, b, _, _ = display_matrix(frame)
    width = max(1, round(frame.width * max(pixel_aspect, 1.0)))
    height = max(1, round(frame.height / min(pixel_aspect, 1.0)))
    rotation = round(np.degrees(np.arctan2(b, a)) / 90) * 90 % 360
    return ((height, width) if abs(a) < abs(b) else (width, height)), int(rotation)


def to_rgb(frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A decoded frame as it is meant to be seen: upright, 8-bit RGB, `size` = (width, height).

    `frame` is an av.VideoFrame of any pixel format; transparent pixels become white.
    """
    matrix = display_matrix(frame)
    width, height = size[::-1] if abs(matrix[0]) < abs(matrix[1]) else size
    has_alpha = any(component.is_alpha for component in frame.format.components)
    see_through = has_alpha or frame.format.name == "pal8"
    layout = "rgba" if see_through else "rgb24"
    image = frame.reformat(width, height, layout, interpolation="AREA").to_ndarray()
    if see_through:
        alpha = image[:, :, 3:].astype(np.uint16)
        image = ((image[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(orient(image, matrix))


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The linear part a, b, c, d of the frame's display matrix: x' = ax + cy, y' = bx + dy."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # av raises at side data it has no name for (Exif); mirroring is lost then
        return QUARTER_TURNS[round(frame.rotation / 90) % 4]
    if data is None:
        return 1, 0, 0, 1
    values = np.frombuffer(bytes(data), np.int32)
    return int(values[0]), int(values[1]), int(values[3]), int(values[4])


def orient(image: NDArray[Any], matrix: tuple[int, int, int, int]) -> NDArray[Any]:
    """Applies the nearest of the eight quarter turns and mirrorings to an image [h,w,...]."""
    a, b, c, d = matrix
    if abs(a) < abs(b):
        image, a, d = image.swapaxes(0, 1), c, b
    if a < 0:
        image = image[:, ::-1]
    return image[::-1] if d < 0 else image
