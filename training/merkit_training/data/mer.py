"""MER's folders: MER2023, MER2024, MER2025 and MERBench's, however the year arranged them.

Each year names its files anew. What stays is what they hold: `label*.npz` with dictionaries by
corpus, CSV files with the columns `name` and `discrete`, CSV transcripts with `name` and `chinese`
or `english`, media files named after the clips, OpenFace's crops. So files are recognised by what
they hold. Media that no label file names are the year's unlabelled clips.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath

from merkit.errors import InvalidInputError
from merkit_training.corpus import read_mer_npz
from merkit_training.data.files import FACES, MediaIndex, faces_of, fault_of
from merkit_training.data.manifest import GROUPS, LABELS, PATHS, TEXTS, first, language_of
from merkit_training.data.records import UNLABELLED, ClipRecord, Problem, fit_for_a_file, number
from merkit_training.data.tables import Row, header_of, rows_of
from merkit_training.labels import ALIASES

NO_VALENCE = -10.0
SPLIT_MARKS = (  # the first that a file's or corpus' name contains; MER2023's tests by number
    ("train", "train"),
    ("val", "val"),
    ("dev", "val"),
    ("test1", "test_multi"),
    ("multi", "test_multi"),
    ("test2", "test_noise"),
    ("noise", "test_noise"),
    ("test3", "test_semi"),
    ("semi", "test_semi"),
    ("test", "test"),
)


def read_mer(root: Path) -> tuple[list[ClipRecord], list[Problem]]:
    """Records with labels as they are spelt, labelled ones first, then those without a label.

    Raises:
        InvalidInputError: nothing in the folder is a clip, or a label file is malformed.
    """
    reader = _Reader(root)
    for path in sorted(root.iterdir()):
        if path.suffix == ".npz" and "label" in path.name:
            reader.read_npz(path)
    for path in sorted(root.glob("*.csv")):
        header = set(header_of(path))
        named = header & {"name", *PATHS}
        if named and header & set(LABELS):
            reader.read_labels(path)
        elif named and header & set(TEXTS):
            reader.read_texts(path)
        else:
            reader.pass_over(path, header)
    return reader.records(), reader.problems


class _Reader:
    """What is known of each clip, by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clips: dict[str, ClipRecord] = {}
        self.words: dict[str, tuple[str, str]] = {}  # text and language
        self.problems: list[Problem] = []

    def read_npz(self, path: Path) -> None:
        """MERTools' dictionaries, by the safe reader."""
        for corpus, entries in read_mer_npz(path).items():
            for name, entry in entries.items():
                valence = entry.get("val")
                self._label(str(name), str(entry.get("emo", "")), valence, corpus, path)

    def read_labels(self, path: Path) -> None:
        """A table with `name` (or `path`) and `discrete`."""
        seen: set[str] = set()
        for row in rows_of(path):
            if isinstance(row, Problem):
                self.problems.append(row)
            elif (name := _name(row)) in seen:
                self._tell("duplicate name", name, f"in {path.name}; the first is used")
            else:
                seen.add(name)
                label, split = first(row, LABELS), row.get("split") or path.stem
                self._label(name, label, row.get("valence"), split, path)
                if text := first(row, TEXTS):
                    self.words.setdefault(name, (text, language_of(row)))
                if (group := first(row, GROUPS)) and name in self.clips:
                    self.clips[name] = replace(self.clips[name], group=group)

    def read_texts(self, path: Path) -> None:
        """A table with `name` (or `path`) and `chinese` or `english`."""
        for row in rows_of(path):
            if isinstance(row, Problem):
                self.problems.append(row)
            else:
                self.words.setdefault(_name(row), (first(row, TEXTS), language_of(row)))

    def pass_over(self, path: Path, header: set[str]) -> None:
        """Names a table that says nothing of clips, lest its labels be missed in silence."""
        columns = ", ".join(sorted(header)[:9])
        detail = f"not read: no column name or path beside labels or words, but {columns}"
        self.problems.append(Problem("remark", path.name, detail, lost=False))

    def _label(self, name: str, label: str, valence: object, split: str, path: Path) -> None:
        if not fit_for_a_file(name):
            return self._tell("bad name", name, f"no name for a file; in {path.name}")
        try:
            value = number(valence)
        except ValueError as error:
            return self._tell("bad value", name, f"valence: {error}")
        split = next((s for mark, s in SPLIT_MARKS if mark in split.lower()), "")
        new = ClipRecord(
            name, label=label or None, split=split, valence=None if value == NO_VALENCE else value
        )
        known = self.clips.setdefault(name, new)
        if known.label and new.label and _class(known.label) != _class(new.label):
            detail = f"{known.label!r}, and {label!r} in {path.name}; the first is used"
            return self.problems.append(Problem("two labels", name, detail, lost=False))
        self.clips[name] = replace(
            known, label=known.label or new.label, split=known.split or new.split
        )
        return None

    def records(self) -> list[ClipRecord]:
        """All clips with their files and words."""
        index = MediaIndex.of(self.root)
        labelled = self.clips
        others = [name for name in index.found if name not in labelled]
        names = [*labelled, *(name for name in others if fit_for_a_file(name))]
        made = (self._record(name, index) for name in names)
        records = [record for record in made if record is not None]
        if not names:
            raise InvalidInputError(
                f"{self.root} holds neither media nor labels",
                "media files, label*.npz or CSV files with name,discrete, transcripts",
                "give the folder that holds them, or a CSV manifest",
            )
        return records

    def _record(self, name: str, index: MediaIndex) -> ClipRecord | None:
        known = self.clips.get(name, ClipRecord(name, split=UNLABELLED))
        media, faces = index.found.get(name), faces_of(self.root, name)
        text, language = self.words.get(name, ("", ""))
        if name in index.ambiguous:
            self.problems.append(index.choice(name))
        if media and (fault := fault_of(media)):
            self._tell("unreadable", name, f"{media}: {fault}")
            return None
        if not media and not faces:
            self._tell("missing file", name, f"neither media nor {FACES} below {self.root}")
            return None
        return replace(known, path=media, faces=faces, text=text, language=language)

    def _tell(self, kind: str, name: str, detail: str) -> None:
        self.problems.append(Problem(kind, name, detail))


def _name(row: Row) -> str:
    """What a row is about: its `name`, or the name of its file without ending."""
    return row.get("name") or PurePath(first(row, PATHS)).stem


def _class(label: str) -> str:
    return ALIASES.get(label.lower(), label.lower())
