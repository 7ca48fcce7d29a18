"""Readers of face sets: which files there are, and what each says about its faces.

RAF-DB numbers its classes from 1, ExpW from 0 in another order, AffectNet in a third, and a
wrong order trains without a complaint. Each order stands here once. A label that has no place
among the asked classes (AffectNet's contempt among the eight) is reported, and its face kept
without a label: pre-training needs none.

All readers are generators over a sorted tree, so that millions of files fit.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TextIO

from merkit.errors import InvalidInputError
from merkit_training.labels import place

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
VIDEOS = frozenset(
    {".mp4", ".avi", ".mkv", ".mov", ".webm", ".flv", ".mpg", ".mpeg", ".wmv", ".m4v", ".3gp"}
)
RAFDB = ("", "surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
"""RAF-DB's classes by number, from 1 (list_patition_label.txt, the set's own spelling)."""
EXPW = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""ExpW's classes by number, from 0 (label.lst)."""
AFFECTNET = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
"""AffectNet's classes by number, from 0."""
AFFECTNET_FOLDERS = frozenset(map(str, range(len(AFFECTNET))))
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val",
          "validation": "val", "test": "val"}  # fmt: skip

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Face:
    """What a set says about one face: where it is (x, y, w, h in the picture's pixels; None if
    it is to be found, or fills the picture) and its class number (-1 if unknown)."""

    box: Box | None = None
    label: int = -1


@dataclass(frozen=True)
class Item:
    """One file to gather from."""

    path: Path
    key: str  # its path below the source, with slashes: its name in the index and in reports
    faces: tuple[Face, ...] = (Face(),)
    split: str = ""  # "train" or "val" where the set says
    cropped: bool = False  # the whole picture is one face


@dataclass(frozen=True)
class Problem:
    """Something of a set that cannot be used as it is meant to."""

    key: str  # the file or row
    what: str  # the kind, the same for all of a kind


Entry = Item | Problem
Reader = Callable[[Path, Sequence[str], bool], Iterator[Entry]]


def read_plain(root: Path, classes: Sequence[str], cropped: bool) -> Iterator[Entry]:  # noqa: ARG001
    """All pictures and videos below a folder, without labels."""
    for path, key, known in _files(root):
        yield Item(path, key, cropped=cropped) if known else Problem(key, NO_MEDIA)


def read_folders(root: Path, classes: Sequence[str], cropped: bool) -> Iterator[Entry]:
    """A folder per class, by name or by AffectNet's number, below `train`, `val` or `test` folders
    or at the top: FER, AffectNet and one's own sets."""
    for path, key, known in _files(root):
        if not known:
            yield Problem(key, NO_MEDIA)
            continue
        parts = [part.lower() for part in PurePosixPath(key).parts[:-1]]
        split = next((SPLITS[part] for part in parts if part in SPLITS), "")
        names = [part for part in parts if part not in SPLITS]
        label = -1
        if not names:
            yield Problem(key, "lies in no class folder: kept without a label")
        else:
            name = AFFECTNET[int(names[0])] if names[0] in AFFECTNET_FOLDERS else names[0]
            label = yield from _placed(name, classes, key)
        yield Item(path, key, (Face(label=label),), split, cropped)


def read_rafdb(root: Path, classes: Sequence[str], cropped: bool) -> Iterator[Entry]:  # noqa: ARG001
    """RAF-DB, basic: `EmoLabel/list_patition_label.txt` of lines `train_00001.jpg 5` and the
    pictures `Image/aligned/train_00001_aligned.jpg` (or both beside each other)."""
    table = _first(root, "EmoLabel/list_patition_label.txt", "list_patition_label.txt")
    folder = _first(root, "Image/aligned", "aligned", "Image/original", "original")
    with _opened(table) as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            where = f"{table.name}:{number}"
            if len(fields) != 2 or not fields[1].isdecimal() or int(fields[1]) not in range(1, 8):
                yield from _malformed(where, line, "a file name and a class from 1 to 7")
                continue
            name = PurePosixPath(fields[0])
            aligned = f"{name.stem}_aligned{name.suffix}" if folder.name == "aligned" else fields[0]
            path = _inside(folder, aligned)
            if path is None or not path.is_file():
                yield Problem(f"{where} {aligned}", NOT_THERE)
                continue
            label = yield from _placed(RAFDB[int(fields[1])], classes, where)
            split = SPLITS.get(fields[0].partition("_")[0], "")
            yield Item(path, aligned, (Face(label=label),), split, folder.name == "aligned")


def read_expw(root: Path, classes: Sequence[str], cropped: bool) -> Iterator[Entry]:  # noqa: ARG001
    """ExpW: `label.lst` of lines `name face_id top left right bottom confidence class` (a picture
    may have several faces) and the pictures in `origin/` (or beside it)."""
    table = _first(root, "label/label.lst", "label.lst")
    folder = _first(root, "image/origin", "origin", "image", ".")
    by_picture: dict[str, list[Face]] = {}
    with _opened(table) as lines:
        for number, line in enumerate(lines, 1):
            fields, where = line.split(), f"{table.name}:{number}"
            try:
                top, left, right, bottom = (float(value) for value in fields[2:6])
                name, label_name = fields[0], EXPW[int(fields[7])] if int(fields[7]) >= 0 else ""
            except (ValueError, IndexError):
                label_name = ""
            if not label_name or right <= left or bottom <= top:
                yield from _malformed(where, line, "name id top left right bottom score class 0-6")
                continue
            label = yield from _placed(label_name, classes, where)
            box = (left, top, right - left, bottom - top)
            by_picture.setdefault(name, []).append(Face(box, label))
    for name, faces in sorted(by_picture.items()):
        path = _inside(folder, name)
        if path is None or not path.is_file():
            yield Problem(f"{table.name} {name}", NOT_THERE)
            continue
        yield Item(path, name, tuple(faces))


def read_csv(table: Path, classes: Sequence[str], cropped: bool) -> Iterator[Entry]:
    """A CSV of files and labels, such as CH-SIMS' and CMU-MOSI's `label.csv`.

    Columns: `path` (or `name`, or `video_id` and `clip_id`, the file then being
    `Raw/VIDEO/CLIP.mp4`); the label in `label`, `discrete`, `emotion` or `annotation` (the first
    that names a class; numbers in `label` are CH-SIMS' sentiment, -1 to 1); optionally `split` or
    `mode`. Of a folder its `label.csv` is read. A video's label goes to the largest face of each
    frame, which the seed warns of (2.2.1).
    """
    table = _first(table, "label.csv", "labels.csv") if table.is_dir() else table
    folder = table.parent
    with _opened(table) as lines:
        rows = csv.DictReader(lines)
        for number, row in enumerate(rows, 2):
            where = f"{table.name}:{number}"
            key = _file_of(row)
            path = _inside(folder, key) if key else None
            if not key or path is None or not path.is_file():
                yield Problem(f"{where} {key or 'no file'}", NOT_THERE)
                continue
            label = yield from _placed(_label_of(row, classes), classes, where)
            split = SPLITS.get((row.get("split") or row.get("mode") or "").strip().lower(), "")
            yield Item(path, key, (Face(label=label),), split, cropped)


READERS: dict[str, Reader] = {
    "none": read_plain,
    "folders": read_folders,
    "rafdb": read_rafdb,
    "expw": read_expw,
    "csv": read_csv,
}
"""By the name that `merkit-train gather --labels` takes."""
NOT_THERE = "is listed, but not there"
NO_MEDIA = "is neither a picture nor a video by its name"


def _files(root: Path) -> Iterator[tuple[Path, str, bool]]:
    """Files below a folder in a fixed order, hidden ones left out and links not followed; whether
    each is a picture or a video by its name."""
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and not path.is_symlink():
                known = path.suffix.lower() in PICTURES | VIDEOS
                yield path, path.relative_to(root).as_posix(), known


def _placed(name: str, classes: Sequence[str], where: str) -> Generator[Problem, None, int]:
    """The number of a class, as the generator's value; a problem if it has no place."""
    number = place(name, classes) if name else -1
    if number is None:
        yield Problem(where, f"the label {name!r} has no place: kept without a label")
        return -1
    return number


def _malformed(where: str, line: str, expected: str) -> Iterator[Problem]:
    if line.strip():
        yield Problem(f"{where} {line.strip()[:80]!r}", f"is no line of {expected}")


def _file_of(row: dict[str, str]) -> str:
    if path := (row.get("path") or row.get("name") or "").strip():
        return path
    video, clip = (row.get("video_id") or "").strip(), (row.get("clip_id") or "").strip()
    return f"Raw/{video}/{clip}.mp4" if video and clip else ""


def _label_of(row: dict[str, str], classes: Sequence[str]) -> str:
    """The first column that names a class; else the first that says anything."""
    said = [(row.get(c) or "").strip() for c in ("discrete", "emotion", "annotation", "label")]
    said = [_sentiment(value) for value in said if value]
    known = (value for value in said if place(value, classes) is not None)
    return next(known, said[0] if said else "")


def _sentiment(value: str) -> str:
    """A sentiment score's sign by name; anything else as it is."""
    try:
        score = float(value)
    except ValueError:
        return value
    return "neutral" if score == 0 else "positive" if score > 0 else "negative"


def _inside(folder: Path, name: str) -> Path | None:
    """The file below the folder, None for a name that leads out of it."""
    path = PurePosixPath(name.replace("\\", "/"))
    return None if path.is_absolute() or ".." in path.parts else folder / path


def _first(root: Path, *places: str) -> Path:
    for name in places:
        if (root / name).exists():
            return root / name
    raise InvalidInputError(
        f"{root} has none of {', '.join(places)}",
        "the folder of a face set as it is published",
        "check --labels and the path",
    )


def _opened(table: Path) -> TextIO:
    try:
        return table.open(encoding="utf-8-sig", errors="replace", newline="")
    except OSError as error:
        raise InvalidInputError(
            f"{table} cannot be read ({error.strerror})", "a table of files and labels"
        ) from None
