"""Odd clips, made while the tests run: no recording travels with the project."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

QUADRANTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
"""Colours of the picture's corners: upper left, upper right, lower left, lower right."""


def quadrants(width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """A picture of four colours, which shows how it was turned."""
    image = np.zeros((height, width, 3), np.uint8)
    for k, colour in enumerate(QUADRANTS):
        rows = slice(0, height // 2) if k < 2 else slice(height // 2, None)
        columns = slice(0, width // 2) if k % 2 == 0 else slice(width // 2, None)
        image[rows, columns] = colour
    return image


def corners(image: NDArray[np.uint8]) -> list[tuple[int, int, int]]:
    """The quadrants' colours as found in a picture, rounded to full or none."""
    h, w = image.shape[:2]
    spots = [(h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, w // 4), (3 * h // 4, 3 * w // 4)]
    return [tuple(255 * int(value > 127) for value in image[y, x]) for y, x in spots]


def gray(level: int, width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """A picture of one gray level, which tells the time where levels count frames."""
    return np.full((height, width, 3), level, np.uint8)


def tone(seconds: float, rate: int = 16_000, channels: int = 1) -> NDArray[np.float32]:
    """A sine of 440 Hz at half of full scale, [channels, samples], the same in all channels."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def movie(
    pictures: list[NDArray[np.uint8]],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 10,
    times: list[float] | None = None,
    rotation: int = 0,
    aspect: Fraction | None = None,
    gop: int = 12,
    sound: NDArray[np.float32] | None = None,
    sound_codec: str = "aac",
    sound_rate: int = 16_000,
    layout: str = "mono",
    options: dict[str, str] | None = None,
    cover: NDArray[np.uint8] | None = None,
) -> bytes:
    """A clip's bytes. `times` (seconds) makes the frame rate variable; `cover` is attached."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as out:
        video = None
        if pictures:
            video = out.add_stream(codec, rate=rate)
            video.height, video.width = pictures[0].shape[:2]
            video.pix_fmt = pixels
            video.gop_size = gop
            video.codec_context.max_b_frames = 0
            if aspect is not None:
                video.codec_context.sample_aspect_ratio = aspect
            if rotation:
                video.set_display_rotation(rotation)
            if times is not None:
                video.codec_context.time_base = Fraction(1, 1000)
        speech = None
        if sound is not None:
            speech = out.add_stream(sound_codec, rate=sound_rate, layout=layout)
        if cover is not None:
            _mux_cover(out, cover)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            out.mux(video.encode(frame))
        if video is not None:
            out.mux(video.encode())
        if speech is not None and sound is not None:
            _mux_sound(out, speech, sound, sound_rate, layout)
    return file.getvalue()


def _mux_sound(out: Any, stream: Any, sound: NDArray[np.float32], rate: int, layout: str) -> None:
    for start in range(0, sound.shape[1], 1024):
        block = np.ascontiguousarray(sound[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        out.mux(stream.encode(frame))
    out.mux(stream.encode())


def _mux_cover(out: Any, cover: NDArray[np.uint8]) -> None:
    stream = out.add_stream("png", rate=1)
    stream.height, stream.width = cover.shape[:2]
    stream.pix_fmt, stream.disposition = "rgb24", av.stream.Disposition.attached_pic
    out.mux(stream.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
    out.mux(stream.encode())


def quick_start(clip: bytes, folder: Path) -> bytes:
    """The same mp4 with its index in front, which needs a real file to be written."""
    path = folder / "quick_start.mp4"
    options = {"movflags": "faststart"}
    with av.open(io.BytesIO(clip)) as source, av.open(str(path), "w", options=options) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return path.read_bytes()


def sound_file(
    sound: NDArray[np.float32],
    container: str = "wav",
    codec: str = "pcm_s16le",
    rate: int = 16_000,
    layout: str = "mono",
) -> bytes:
    """A file with sound only."""
    return movie(
        [], container=container, sound=sound, sound_codec=codec, sound_rate=rate, layout=layout
    )


def float_wav(samples: NDArray[np.float32], rate: int = 16_000) -> bytes:
    """A WAV file of 32-bit floats, written by hand so that any value can stand in it."""
    data = samples.astype("<f4").tobytes()
    head = struct.pack("<HHIIHH", 3, 1, rate, 4 * rate, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(body) + len(data)) + body + data


def picture(image: NDArray[np.uint8], codec: str, pixels: str) -> bytes:
    """An image file: `codec` is png, mjpeg, bmp, tiff, gif, libwebp."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = image.shape[:2]
    context.pix_fmt, context.time_base = pixels, Fraction(1, 25)
    layout = "rgba" if image.shape[2] == 4 else "rgb24"
    frame = av.VideoFrame.from_ndarray(image, format=layout).reformat(format=pixels)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def png_header(width: int, height: int) -> bytes:
    """A PNG that states any size in its header and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")
