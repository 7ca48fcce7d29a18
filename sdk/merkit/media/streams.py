"""Reading one stream of a container, damaged or not.

A truncated or corrupt clip must give what is still in it and say so, while av raises at the
first bad packet; and some formats cannot go back to their beginning except by being opened
again. Video and sound share what handles both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MAX_BAD_PACKETS = 1000


@dataclass
class Damage:
    """What was passed over while reading a clip."""

    bad_packets: int = 0
    cut: bool = False  # the container ended in the middle of something


class Reader:
    """One stream of an open container, and a way back to its beginning.

    Args:
        opener: opens the container anew, closing the one before.
        index: which of its streams to read; the others are skipped over.
        check_read: told how far from the stream's beginning each packet ends that is decoded, it
            raises where that is too far: a header may state less than there is.

    Attributes:
        unwanted_before: frames before this second are wanted only as far as later ones are
            built on them; the decoder leaves out the others.
    """

    def __init__(
        self,
        opener: Callable[[], Any],
        index: int,
        check_read: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._opener, self._index, self._check_read = opener, index, check_read
        self.unwanted_before = float("-inf")
        self.rewind()

    def rewind(self) -> None:
        """To the beginning. Opening again takes 1-2 ms, and works where seeking does not."""
        import av

        self.container = self._opener()
        self.stream = self.container.streams[self._index]
        self.stream.codec_context.thread_count = (
            1  # av frees a codec's threads only some time later
        )
        for other in self.container.streams:
            if other.index != self._index:
                other.discard = av.stream.Discard.all

    def check(self, packet: Any) -> None:
        """Tells `check_read` of the packet."""
        at = packet.pts if packet.pts is not None else packet.dts
        if at is not None and packet.size:
            since = at - (self.stream.start_time or 0) + (packet.duration or 0)
            self._check_read(float(since * packet.time_base))

    def seek(self, time: float) -> bool:
        """To the last keyframe at or before second `time`; False if the format cannot."""
        import av

        with suppress(av.FFmpegError, ValueError, OSError):
            offset = int(time / self.stream.time_base)
            self.container.seek(offset, stream=self.stream, backward=True)
            return True
        return False


def read_frames(reader: Reader, damage: Damage) -> Iterator[Any]:
    """Decoded frames from the reader's position to the stream's end."""
    context = reader.stream.codec_context
    for packet in read_packets(reader, damage):
        reader.check(packet)
        at = seconds(packet.pts, packet.time_base)
        unwanted = at is not None and at < reader.unwanted_before
        context.skip_frame = "NONREF" if unwanted else "DEFAULT"
        yield from _decode(packet.decode, damage)
        if damage.bad_packets > MAX_BAD_PACKETS:
            return
    if damage.cut:  # the empty packet that flushes the decoder never came
        yield from _decode(reader.stream.codec_context.decode, damage)


def read_packets(reader: Reader, damage: Damage) -> Iterator[Any]:
    """Packets of the stream, the last of them the empty one that flushes the decoder."""
    import av

    packets = reader.container.demux(reader.stream)
    first = True
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, ValueError, OSError):
            damage.cut = True
            return
        if packet.is_corrupt and packet.size:
            damage.cut = True
            if not first:  # a torn picture among whole ones is left out; alone, it is kept
                continue
        first = False
        yield packet


def seconds(value: int | None, base: Any) -> float | None:
    """A timestamp in seconds, None where there is none."""
    return None if value is None or base is None else float(value * base)


def indexed(stream: Any) -> float:
    """Seconds from the first to the last entry of the container's index; 0 without one."""
    entries = stream.index_entries
    if len(entries) < 2:
        return 0.0
    return float((entries[-1].timestamp - entries[0].timestamp) * stream.time_base)


def extent(reader: Reader, damage: Damage) -> tuple[float, float]:
    """First and last second of a stream by its packets, which are read but not decoded.

    For clips whose header states no duration, or a wrong one. Leaves the reader at the beginning.
    """
    reader.rewind()
    first, last, count = float("inf"), float("-inf"), 0
    for packet in read_packets(reader, damage):
        if not packet.size:
            continue
        count += 1
        start = seconds(packet.pts if packet.pts is not None else packet.dts, packet.time_base)
        if start is not None:
            length = seconds(packet.duration, packet.time_base) or 0.0
            first, last = min(first, start), max(last, start + length)
    rate = float(getattr(reader.stream, "guessed_rate", None) or 25)
    reader.rewind()
    if last < first:  # no timestamps at all: a bare stream of coded frames
        return 0.0, count / rate
    return first, last


def _decode(decode: Callable[[], list[Any]], damage: Damage) -> list[Any]:
    import av

    try:
        return decode()
    except av.error.EOFError:
        return []
    except (av.FFmpegError, ValueError):
        damage.bad_packets += 1
        return []
