"""Which media file belongs to a clip's name, found by one walk over a folder.

MER's collections name clips without saying where their files lie, nor with what ending; asking
the file system for each name and ending would take hours on a hundred thousand clips.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from merkit_training.data.records import Problem

VIDEO = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts")
SOUND = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac")
PICTURE = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
RANK = {suffix: rank for rank, kind in enumerate((VIDEO, SOUND, PICTURE)) for suffix in kind}
"""A video is preferred to sound of the same name, and sound to a picture."""

FACES = "openface_face"
NOT_CLIPS = frozenset({FACES, "features", "__pycache__"})
"""Folders of MER's collections that hold what was made from clips."""


@dataclass
class MediaIndex:
    """Media files below a folder by their name without ending."""

    root: Path
    found: dict[str, Path] = field(default_factory=dict)
    ambiguous: dict[str, Path] = field(default_factory=dict)  # the file that was not taken

    @staticmethod
    def of(root: Path) -> MediaIndex:
        """Walks `root`, without links to other folders, hidden folders and NOT_CLIPS."""
        index = MediaIndex(root)
        for folder, below, files in os.walk(root):
            below[:] = sorted(b for b in below if b not in NOT_CLIPS and not b.startswith("."))
            for name in sorted(files):
                path = Path(folder, name)
                if path.suffix.lower() in RANK and not name.startswith("."):
                    index._add(path.stem, path)
        return index

    def choice(self, name: str) -> Problem:
        """Which of two files of one name is used."""
        detail = f"{self.found[name]} is used, not {self.ambiguous[name]}"
        return Problem("two files", name, detail, lost=False)

    def _add(self, stem: str, path: Path) -> None:
        known = self.found.setdefault(stem, path)
        if known is path:
            return
        old, new = RANK[known.suffix.lower()], RANK[path.suffix.lower()]
        if new < old:
            self.found[stem] = path
        elif new == old:
            self.ambiguous.setdefault(stem, path)


def faces_of(root: Path, name: str) -> Path | None:
    """The OpenFace crops of a clip in MER's layout, if they are there."""
    path = root / FACES / name / f"{name}.npy"
    return path if path.is_file() else None


def fault_of(path: Path) -> str:
    """Why a file cannot be read, "" if it can as far as one can see without opening it."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return error.strerror or type(error).__name__
    except ValueError as error:  # a null character
        return str(error)
    if not path.is_file():
        return "no plain file"
    if not size:
        return "the file is empty"
    return "" if os.access(path, os.R_OK) else "no permission to read"
