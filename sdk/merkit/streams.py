"""Reading one stream of a container, damaged or not.

A truncated or corrupt clip must give what is still in it and say so, while av raises at the
first bad packet. Here bad packets are counted and passed over; video and sound share that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_BAD_PACKETS = 1000


@dataclass
class Damage:
    """What was passed over while reading a clip."""

    bad_packets: int = 0
    cut: bool = False  # the container ended in the middle of something


def read_frames(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    """Decoded frames of `stream` from the container's position to its end."""
    for packet in read_packets(container, stream, damage):
        yield from _decode(packet.decode, damage)
        if damage.bad_packets > MAX_BAD_PACKETS:
            return
    if damage.cut:
        yield from _decode(lambda: stream.codec_context.decode(None), damage)


def read_packets(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    """Packets of `stream`, the last of them the empty one that flushes the decoder."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, ValueError, OSError):
            damage.cut = True
            return
        if packet.is_corrupt and packet.size and damage_is_news(packet, stream):
            damage.cut = True
            continue
        yield packet


def damage_is_news(packet: Any, stream: Any) -> bool:
    """Whether dropping this torn packet leaves something else: a torn still image is kept."""
    return bool(stream.type == "audio" or stream.frames > 1 or (packet.pts or 0) > 0)


def seconds(value: int | None, base: Any) -> float | None:
    """A timestamp in seconds, None where there is none."""
    return None if value is None or base is None else float(value * base)


def extent(container: Any, stream: Any, damage: Damage) -> tuple[float, float]:
    """First and last time that packets of a stream carry, in seconds, read without decoding.

    For clips whose header states no duration, or a wrong one.
    """
    first, last, count = float("inf"), float("-inf"), 0
    for packet in read_packets(container, stream, damage):
        if not packet.size:
            continue
        count += 1
        start = seconds(packet.pts if packet.pts is not None else packet.dts, packet.time_base)
        if start is not None:
            length = seconds(packet.duration, packet.time_base) or 0.0
            first, last = min(first, start), max(last, start + length)
    if last < first:  # no timestamps at all: a bare stream of coded frames
        rate = float(getattr(stream, "guessed_rate", None) or 25)
        return 0.0, count / rate
    return first, last


def _decode(decode: Any, damage: Damage) -> list[Any]:
    import av

    try:
        return list(decode())
    except av.error.EOFError:
        return []
    except (av.FFmpegError, ValueError):
        damage.bad_packets += 1
        return []
