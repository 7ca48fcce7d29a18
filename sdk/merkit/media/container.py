"""Opening a clip's file safely: limits first, then FFmpeg, which sees bytes and nothing else.

FFmpeg guesses a format by name, draws text files as video, and follows playlists to other files
and addresses. A clip may do none of that, so it is handed over without its name, and every
attempt to open something else is refused.
"""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from merkit.errors import (
    ClipLimitError,
    ClipNotFoundError,
    ClipUnreadableError,
    InvalidInputError,
)
from merkit.media.limits import HEADER_BYTES, Limits, image_size

Source = str | os.PathLike[str] | bytes
NAMELESS = "the clip given as bytes"
JPEG_END, JPEG_TAIL = b"\xff\xd9", 4096
PRIMING = 0.5
"""Seconds that codecs and edit lists may keep beside what is played."""
MEDIA = "a video, sound or image file that FFmpeg reads"


class ClipFile:
    """A clip's file with at most one container open on it; a context manager.

    Raises:
        ClipNotFoundError: no such file.
        ClipUnreadableError: no file, an empty one, or none that FFmpeg knows.
        ClipLimitError: larger than the limits, by its size or by an image's header.
    """

    def __init__(self, source: Source, limits: Limits) -> None:
        self.limits = limits
        if not isinstance(source, bytes | str | os.PathLike):
            raise InvalidInputError(
                f"the clip is a {type(source).__name__}",
                "a path, or bytes",
                "give the file's path, or bytes(...) of its content",
            )
        self.name = NAMELESS if isinstance(source, bytes) else os.fspath(source)
        size = len(source) if isinstance(source, bytes) else self._size(Path(source))
        if size == 0:
            raise unreadable(f"{self.name} is empty")
        if size > limits.max_bytes:
            raise ClipLimitError(
                f"{self.name} has {size} bytes",
                f"at most {limits.max_bytes}",
                "cut the clip, or raise Limits.max_bytes",
            )
        self._stack = ExitStack()
        self._file: io.BufferedIOBase
        if isinstance(source, bytes):
            self._file = self._stack.enter_context(io.BytesIO(source))
        else:
            file = Path(source).open("rb")  # noqa: SIM115  (the stack closes it)
            self._file = self._stack.enter_context(file)
        self._container: Any = None
        self._used = False

    def __enter__(self) -> ClipFile:
        stated = image_size(self._file.read(HEADER_BYTES))
        if stated:
            self.check_pixels(*stated)
        return self

    def __exit__(self, *_: object) -> None:
        if self._container is not None:
            self._container.close()
        self._stack.close()

    def peek(self) -> Any:
        """The container, to look at what it holds."""
        if self._container is None:
            self._container = self._open()
        return self._container

    def fresh(self) -> Any:
        """The container at its beginning: opened again if it has been read from."""
        if self._used:
            self._container.close()
            self._container = self._open()
        self._used = True
        return self.peek()

    def lacks_jpeg_end(self) -> bool:
        """Whether no end marker stands in the last bytes; FFmpeg fills in silently what is cut."""
        self._file.seek(max(0, self._file.seek(0, os.SEEK_END) - JPEG_TAIL))
        return JPEG_END not in self._file.read()

    def check_pixels(self, width: int, height: int) -> None:
        """ClipLimitError if a frame of this size is larger than the limits."""
        if width * height > self.limits.max_pixels:
            raise ClipLimitError(
                f"{self.name} has frames of {width} x {height} pixels",
                f"at most {self.limits.max_pixels} pixels",
                "scale it down, or raise Limits.max_pixels",
            )

    def check_seconds(self, length: float) -> None:
        """ClipLimitError if a stream of this length is longer than the limits."""
        if length > self.limits.max_seconds:
            raise ClipLimitError(
                f"{self.name} lasts {length:.1f} s",
                f"at most {self.limits.max_seconds:g} s",
                "cut the clip, or raise Limits.max_seconds",
            )

    def check_read(self, length: float) -> None:
        """The same for what is there, whatever a header states."""
        if length > self.limits.max_seconds + PRIMING:
            self.check_seconds(length)

    def _size(self, path: Path) -> int:
        if not path.exists():
            raise ClipNotFoundError.at(self.name)
        if not path.is_file():
            raise unreadable(f"{self.name} is not a file", "give the path of one clip")
        return path.stat().st_size

    def _open(self) -> Any:
        import av

        self._file.seek(0)
        options = {"max_pixels": str(self.limits.max_pixels), "protocol_whitelist": "none"}
        try:
            container = av.open(
                _Nameless(self._file),
                io_open=_refuse,
                options=options,
                metadata_errors="ignore",
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            known = isinstance(error, av.error.InvalidDataError)
            reason = "no known format, or its index is missing" if known else type(error).__name__
            raise unreadable(f"{self.name} is no media file ({reason})") from None
        if len(container.streams) > self.limits.max_streams:
            count = len(container.streams)
            container.close()
            raise ClipLimitError(
                f"{self.name} has {count} streams",
                f"at most {self.limits.max_streams}",
                "keep one video and one audio stream, or raise Limits.max_streams",
            )
        return container


def unreadable(found: str, action: str = "check that the file is whole") -> ClipUnreadableError:
    """The error for what cannot be decoded."""
    return ClipUnreadableError(found, MEDIA, action)


class _Nameless:
    """A file without its name: FFmpeg must judge by content, and has no name to put in a log."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _refuse(*_: object) -> Any:
    raise PermissionError("a clip may not open other files")
