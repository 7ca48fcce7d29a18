"""Limits on what is decoded, and the size of an image read from its header.

A picture of 50,000 x 50,000 pixels fits into a kilobyte of PNG and into no memory. Such input
must be refused before a codec sees it, so sizes are read here from the first bytes alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
HEADER_BYTES = 1 << 20
"""Enough to reach a JPEG's size past its metadata and thumbnails."""


@dataclass(frozen=True)
class Limits:
    """What a clip may be at most; more is a ClipLimitError, raised before decoding."""

    max_bytes: int = 1 << 30  # 1 GiB
    max_seconds: float = 3600.0  # of the longest stream
    max_pixels: int = 50_000_000  # of one frame or image, before scaling
    max_streams: int = 64


def image_size(header: bytes) -> tuple[int, int] | None:
    """Width and height that a PNG, JPEG, GIF, BMP or WebP file states, None for anything else.

    Args:
        header: the first bytes of the file, `HEADER_BYTES` or all of them.
    """
    try:
        return _image_size(header)
    except (struct.error, IndexError):
        return None


def _image_size(header: bytes) -> tuple[int, int] | None:
    width: int
    height: int
    if header.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", header, 16)
    elif header.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack_from("<HH", header, 6)
    elif header.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", header, 18)
    elif header.startswith(b"\xff\xd8"):
        return _jpeg_size(header)
    elif header.startswith(b"RIFF") and header[8:12] == b"WEBP":
        return _webp_size(header)
    else:
        return None
    return abs(width), abs(height)


def _jpeg_size(header: bytes) -> tuple[int, int] | None:
    at = 2
    while at < len(header):
        if header[at] != 0xFF:
            return None
        marker = header[at + 1]
        if marker in JPEG_SIZE_MARKERS:
            height, width = struct.unpack_from(">HH", header, at + 5)
            return width, height
        if marker == 0xFF or 0xD0 <= marker <= 0xD8:  # fill byte, or a marker without a body
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + struct.unpack_from(">H", header, at + 2)[0]
    return None


def _webp_size(header: bytes) -> tuple[int, int] | None:
    kind = header[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(header[24:27], "little"),
            1 + int.from_bytes(header[27:30], "little"),
        )
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", header, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", header, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
