"""N frames spread over a video, at a cost that hardly grows with its length.

Decoding ten minutes to look at eight frames wastes nearly all the work. So each wanted time is
reached by seeking to the keyframe before it and decoding forward from there; where no keyframe
lies between one wanted time and the next, decoding simply goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.media.picture import View
from merkit.media.streams import Damage, Reader, extent, read_frames, seconds

SHORTFALL = 0.9
"""A stream that ends before this share of its stated length is sampled anew over what it has."""
NEAR_ENOUGH = 1 / 8
"""A keyframe this share of a part before the part's middle is taken instead of it: in a long
clip nothing need be decoded but keyframes."""
STEP_BACK = (0.0, 2.0, 10.0)
"""Seconds by which a seek is repeated earlier when it landed after the wanted time."""
APPROACH = 4
"""Frames before the wanted one from which on every frame is decoded."""
UNINDEXED_STEP = 1.0
"""Seconds ahead from which a seek is tried in a format that lists no keyframes."""


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
    reader: Reader, span: tuple[float, float], p: Preprocessing, damage: Damage
) -> Sampled:
    """The frames shown at the middles of `p.frames_per_clip` equal parts of a stream's time.

    Fewer where the stream has fewer; each frame is given once. If the stream turns out to end
    long before its stated length, what is there is sampled instead, and `damage.cut` says so.

    Args:
        reader: a video stream.
        span: first and last second of the stream by its header.
        p: how many frames, and how large.
        damage: filled with what was passed over.
    """
    walker = _Walker(reader, damage)
    chosen = _at(walker, span, p)
    if walker.ended and walker.end - span[0] < SHORTFALL * (span[1] - span[0]):
        damage.cut = True
        span = extent(reader, Damage())
        walker = _Walker(reader, damage)
        chosen = _at(walker, span, p)
    if walker.view is None:
        return Sampled(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.float32))
    times = np.array([time for time, _ in chosen], np.float32)
    images = np.stack([image for _, image in chosen])
    return Sampled(images, times, walker.view.size, walker.view.rotation)


def _at(
    walker: _Walker, span: tuple[float, float], p: Preprocessing
) -> list[tuple[float, NDArray[np.uint8]]]:
    """Times and pictures, one for each part of `span` that shows something new."""
    part = (span[1] - span[0]) / p.frames_per_clip
    times = [span[0] + (index + 0.5) * part for index in range(p.frames_per_clip)]
    chosen: list[tuple[float, NDArray[np.uint8]]] = []
    for time in times:
        frame = walker.shown_at(time, NEAR_ENOUGH * part)
        if frame is None or (chosen and walker.time <= chosen[-1][0]):
            continue
        walker.damage.cut |= bool(frame.is_corrupt)
        if walker.view is None:
            codec = walker.reader.stream.codec_context.name
            walker.view = View(frame, codec, walker.pixel_aspect, p.max_frame_side)
        chosen.append((walker.time, walker.view.picture(frame)))
    return chosen


class _Walker:
    """Moves forward through a video stream, by decoding and, where it saves work, by seeking.

    Attributes:
        current: the frame on the screen, and `time` its beginning.
        upcoming: the frame after it, and `next_time` its beginning.
        end: when the last frame decoded so far leaves the screen.
        ended: whether the stream has no more frames.
    """

    def __init__(self, reader: Reader, damage: Damage) -> None:
        self.reader, self.damage = reader, damage
        self.view: View | None = None
        self.pixel_aspect = float(reader.stream.sample_aspect_ratio or 1) or 1.0
        self.gap = 1.0 / float(reader.stream.guessed_rate or 25)
        self.end = float("-inf")
        self.seekable = True
        self.started = False
        self.frames: Iterator[Any] = iter(())
        self._forget()

    def shown_at(self, time: float, slack: float) -> Any:
        """The frame on the screen at `time`: the last that does not begin after it.

        A keyframe at most `slack` seconds before will do instead.
        """
        if self.seekable and self._worth_seeking(time):
            self._seek(time)
            if time - slack <= self.next_time:
                time = self.next_time
        self.reader.unwanted_before = time - APPROACH * self.gap
        if not self.started:
            self._read_on()
        while self.upcoming is not None and (self.current is None or self.next_time <= time):
            self._advance()
        return self.current

    def _worth_seeking(self, time: float) -> bool:
        entries, base = self.reader.stream.index_entries, self.reader.stream.time_base
        keyframe = entries.search_timestamp(int(time / base), backward=True) if entries else -1
        if keyframe >= 0:
            return float(entries[keyframe].timestamp * base) > max(self.next_time, 0.0)
        return time - max(self.next_time, 0.0) > UNINDEXED_STEP

    def _seek(self, time: float) -> None:
        """To the keyframe at or before `time`; to the beginning if nothing can be found so."""
        before = self.next_time
        self.reader.unwanted_before = float("-inf")
        for back in STEP_BACK:
            target = time - back
            if target <= max(before, 0.0) or not self.reader.seek(target):
                break
            self._read_on()
            if before < self.next_time <= time:
                return
        self.seekable = False  # from here on decoding alone, from the beginning where moved
        if self.started and (self.ended or self.next_time != before):
            self.reader.rewind()
            self._read_on()

    def _read_on(self) -> None:
        """Begins to decode at the reader's position."""
        self.frames = read_frames(self.reader, self.damage)
        self.started = True
        self._forget()
        self._advance()

    def _forget(self) -> None:
        self.ended = False
        self.current, self.time = None, float("-inf")
        self.upcoming, self.next_time = None, float("-inf")

    def _advance(self) -> None:
        """One frame forward."""
        if self.upcoming is not None:
            self.current, self.time = self.upcoming, self.next_time
        self.upcoming = next(self.frames, None)
        if self.upcoming is None:
            self.ended = True
            return
        stamp = seconds(self.upcoming.pts, self.upcoming.time_base)
        after = self.time + self.gap if self.current is not None else 0.0
        self.next_time = after if stamp is None else stamp
        length = seconds(self.upcoming.duration, self.upcoming.time_base)
        self.end = max(self.end, self.next_time + (length or self.gap))
