"""A decoded frame as it is meant to be seen: upright, square pixels, 8-bit RGB, not too large.

A phone stores its pictures lying on their side and says so in metadata; a face detector that is
handed what is stored finds nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUARTER_TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
"""Display matrices of turns by 0, 90, 180 and 270 degrees counterclockwise."""


UNSAFE_SIDE_DATA = frozenset({"png", "apng", "ico", "lscr"})
"""FFmpeg's PNG decoder gives colour profiles a name, and PyAV (18.1) frees such names twice: once
their side data have been looked at, the next garbage collection crashes the process."""


class View:
    """How the frames of one clip are to be seen, as its first frame says.

    Args:
        frame: an av.VideoFrame of any pixel format.
        codec: FFmpeg's name of the codec that it came from.
        pixel_aspect: width of a pixel by its height.
        max_side: the longer side is scaled down to this.

    Attributes:
        size: width and height as displayed, before scaling.
        rotation: degrees clockwise by which frames are turned.
    """

    def __init__(self, frame: Any, codec: str, pixel_aspect: float, max_side: int) -> None:
        from av.video.reformatter import VideoReformatter

        # One for all frames: with one of its own, each frame would start threads that stay.
        self._scaler = VideoReformatter()
        self._matrix = a, b, _, _ = self._display_matrix(frame, codec)
        width = max(1, round(frame.width * max(pixel_aspect, 1.0)))
        height = max(1, round(frame.height / min(pixel_aspect, 1.0)))
        scale = min(1.0, max_side / max(width, height))
        self._stored = max(1, round(width * scale)), max(1, round(height * scale))
        self.size = (height, width) if abs(a) < abs(b) else (width, height)
        self.rotation = round(float(np.degrees(np.arctan2(b, a))) / 90) * 90 % 360

    def picture(self, frame: Any) -> NDArray[np.uint8]:
        """The frame as RGB [h,w,3]; all frames of a clip get one size, transparency white."""
        has_alpha = any(component.is_alpha for component in frame.format.components)
        see_through = has_alpha or frame.format.name == "pal8"
        layout = "rgba" if see_through else "rgb24"
        scaled = self._scaler.reformat(
            frame, *self._stored, layout, interpolation="AREA", threads=1
        )
        image = scaled.to_ndarray()
        if see_through:
            alpha = image[:, :, 3:].astype(np.uint16)
            image = ((image[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(orient(image, self._matrix))

    def _display_matrix(self, frame: Any, codec: str) -> tuple[int, int, int, int]:
        """The linear part a, b, c, d of the display matrix: x' = ax + cy, y' = bx + dy.

        Read from a copy of 2 x 2 pixels, since a frame whose side data were looked at keeps
        itself, and its decoder's buffers, alive until garbage is collected.
        """
        if codec in UNSAFE_SIDE_DATA:  # mirroring is lost then
            return QUARTER_TURNS[round(frame.rotation / 90) % 4]
        small: Any = self._scaler.reformat(frame, 2, 2, "gray", threads=1)
        try:
            data = small.side_data.get("DISPLAYMATRIX")
        except ValueError:  # av has no name for some side data (Exif); mirroring is lost then
            return QUARTER_TURNS[round(small.rotation / 90) % 4]
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
