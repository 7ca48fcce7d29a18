"""Own clips as a table: a CSV or JSON-lines file in which each row is a clip.

Columns (others are ignored; the first spelling found of each is read):
    path       media file, absolute or below the table's folder; or only:
    name       the clip's name; default: the file's name without ending
    discrete   its class (also: label, emotion); empty: unlabelled
    text       its words (also: transcript, sentence, chinese, english)
    language   zh, en...
    group      speaker or source video (also: speaker), kept together in folds and splits
    split      train, val, a name that begins with test, or unlabelled
    valence, start, end (seconds), faces (a .npy of OpenFace crops)
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from merkit.errors import InvalidInputError
from merkit_training.data.files import MediaIndex, faces_of, fault_of
from merkit_training.data.records import UNLABELLED, ClipRecord, Problem, fit_for_a_file, number
from merkit_training.data.tables import LINES, WHERE, Row, header_of, rows_of

PATHS = ("path", "file")
LABELS = ("discrete", "label", "emotion")
TEXTS = ("text", "transcript", "sentence", "chinese", "english", "subtitle")
GROUPS = ("group", "speaker")
SPLITS = re.compile(r"train|val|test\w*|" + UNLABELLED)
SPELLINGS = {"training": "train", "dev": "val", "valid": "val", "validation": "val"}


def read_manifest(path: Path) -> tuple[list[ClipRecord], list[Problem]]:
    """Records with labels as they are spelt, one for each usable row, in order.

    Raises:
        InvalidInputError: the file cannot be read, has no header, or none that names clips.
    """
    if path.suffix.lower() not in LINES and (columns := header_of(path)):
        _refuse_nameless(path, columns)
    reader = _Reader(path)
    for row in rows_of(path):
        if isinstance(row, Problem):
            reader.problems.append(row)
        else:
            reader.add(row)
    return reader.records, reader.problems


def _refuse_nameless(path: Path, columns: Sequence[str]) -> None:
    if not {*PATHS, "name"} & set(columns):
        raise InvalidInputError(
            f"{path} has the columns {', '.join(map(ascii, columns[:9]))}",
            "a column path (or file) or name, in UTF-8, between commas, semicolons or tabs",
            "write a header such as path,discrete,text,group,split",
        )


class _LostError(Exception):
    """A row that makes no record: the kind of problem, and what exactly."""


class _Reader:
    """Collects records and problems of one table."""

    def __init__(self, table: Path) -> None:
        self.root = table.parent
        self.records: list[ClipRecord] = []
        self.problems: list[Problem] = []
        self.names: set[str] = set()
        self.stated: set[str] = set()  # files
        self.index: MediaIndex | None = None

    def add(self, row: Row) -> None:
        """Reads one row."""
        stated = first(row, ("path", "file"))
        name = row.get("name") or PurePath(stated.replace("\\", "/")).stem
        if not row.get("name") and row.get("start"):
            name += f"_{row['start']}"  # several clips of one recording
        elif not row.get("name") and name in self.names and stated not in self.stated:
            name = "-".join(PurePath(stated).with_suffix("").parts[-2:])  # a/1.mp4 and b/1.mp4
        try:
            self.records.append(self._record(row, name, stated))
            self.stated.add(stated)
        except _LostError as lost:
            kind, detail = lost.args
            self.problems.append(Problem(kind, name or row[WHERE], detail))

    def _record(self, row: Row, name: str, stated: str) -> ClipRecord:
        if not fit_for_a_file(name):
            raise _LostError("bad name", "no name for a file")
        if name in self.names:
            raise _LostError("duplicate name", "the first is used")
        self.names.add(name)
        split = split_of(row.get("split", ""))
        if split is None:
            raise _LostError(
                "unknown split", f"{row['split']!r}; known: train, val, test..., unlabelled"
            )
        try:
            valence, start, end = (number(row.get(key)) for key in ("valence", "start", "end"))
        except ValueError as error:
            raise _LostError("bad value", str(error)) from None
        if (start or 0) < 0 or (end is not None and end <= (start or 0)):
            raise _LostError("bad value", f"from second {start} to {end}")
        text = first(row, TEXTS)
        media, faces = self._media(name, stated), self._faces(name, row.get("faces", ""))
        if media is None and faces is None and not text:
            raise _LostError("missing file", "no media file of that name and no words")
        label, group = first(row, LABELS) or None, first(row, GROUPS)
        return ClipRecord(
            name, media, label, text, language_of(row), group, split, valence, start, end, faces
        )

    def _media(self, name: str, stated: str) -> Path | None:
        """The stated file, or where none is stated one of the clip's name, if there is one."""
        if stated:
            path = self.root / stated  # an absolute path stays as it is
            _refuse_unusable(path)
            return path
        self.index = self.index or MediaIndex.of(self.root)
        if name in self.index.ambiguous:
            self.problems.append(self.index.choice(name))
        return self.index.found.get(name)

    def _faces(self, name: str, stated: str) -> Path | None:
        if not stated:
            return faces_of(self.root, name)
        _refuse_unusable(self.root / stated)
        return self.root / stated


def first(row: Row, columns: Sequence[str]) -> str:
    """The first of some columns that says anything."""
    return next((str(row[c]) for c in columns if row.get(c)), "")


def language_of(row: Row) -> str:
    """What the column says, else what the transcript's column is called."""
    stated = first(row, ("language", "lang")).lower()
    if stated or row.get("text"):
        return stated
    return "zh" if row.get("chinese") else "en" if row.get("english") else ""


def split_of(text: str) -> str | None:
    """The split in its one spelling, "" for none, None for what is no split."""
    plain = SPELLINGS.get(text.lower(), text.lower())
    return plain if not plain or SPLITS.fullmatch(plain) else None


def _refuse_unusable(path: Path) -> None:
    if fault := fault_of(path):
        there = os.path.lexists(path)  # unlike Path.exists, for any name
        raise _LostError("unreadable" if there else "missing file", f"{path}: {fault}")
