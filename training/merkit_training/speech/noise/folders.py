"""Recordings of noise and of rooms in a user's folder, such as MUSAN and RIRS_NOISES.

Such sets hold tens of gigabytes. Only their names are read at the start; a file is decoded when
it is drawn, and what is kept decoded is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError, MerkitError
from merkit_training.speech.noise.levels import Wave

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac"})
LONGEST = 120.0  # seconds that are taken of a file, from its middle
KEPT = 64 * 2**20  # bytes of decoded sound


class SoundFolder:
    """Sound files below a folder, in order of name; decoded lazily.

    Args:
        folder: searched with all its subfolders.
        only, without: a folder's name that must, or must not, stand in a file's path.

    Raises:
        InvalidInputError: no such folder, or no sound file in it.
    """

    def __init__(self, folder: Path, *, only: str = "", without: str = "") -> None:
        root = folder.expanduser()
        found = root.rglob("*") if root.is_dir() else ()
        self.paths = [
            path
            for path in sorted(found)
            if path.suffix.lower() in SUFFIXES
            and (not only or only in path.relative_to(root).parts[:-1])
            and (not without or without not in path.relative_to(root).parts[:-1])
        ]
        if not self.paths:
            raise InvalidInputError(
                f"{folder} is no folder" if not root.is_dir() else f"{folder} holds no sound files",
                f"a folder with {', '.join(sorted(SUFFIXES))} in it",
                "correct the path in [noise], or leave it out: noise is then generated",
            )
        self._kept: OrderedDict[int, Wave] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Wave:
        """The sound, 16 kHz mono float32 [samples].

        Raises:
            InvalidInputError: it cannot be decoded, or holds no sound.
        """
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        wave = decode(self.paths[index])
        self._kept[index] = wave
        self._bytes += wave.nbytes
        while self._bytes > KEPT and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return wave

    def draw(self, rng: np.random.Generator) -> Wave:
        """One of them at random."""
        return self[int(rng.integers(len(self)))]


def decode(path: Path) -> Wave:
    """A file's sound, 16 kHz mono float32 [samples]; of a long one the middle.

    Raises:
        InvalidInputError: it cannot be decoded, or holds no sound.
    """
    from merkit.media.clip import decode_clip

    try:
        wave = decode_clip(path, replace(Preprocessing(), max_audio_seconds=LONGEST)).waveform
    except MerkitError as error:
        raise InvalidInputError(
            f"{path}: {error.found}", "a sound file that can be decoded", "remove or replace it"
        ) from None
    if not len(wave):
        raise InvalidInputError(f"{path} holds no sound", "a recording", "remove or replace it")
    return wave
