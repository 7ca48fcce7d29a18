"""Writes what was decoded as a corpus: the arrays and tables that every stage reads.

Clips are decoded once, in parts that survive a kill; this joins the parts, a part in memory at a
time, into files that appear whole or not at all.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit_training.corpus import SET_SPLITS
from merkit_training.data.records import ClipRecord


@dataclass(frozen=True)
class Taught:
    """A clip that teaches encoders: its record, split (of SET_SPLITS), and what it holds."""

    record: ClipRecord
    split: str
    label: int
    crops: int  # how many faces
    samples: int  # of sound; 0 if silent


@dataclass(frozen=True)
class Sizes:
    """What the sets' arrays are shaped by."""

    side: int  # of a face crop, in pixels
    tiles: int  # crops of a sequence


Pieces = Iterator[tuple[Taught, NDArray[np.uint8], NDArray[np.int16]]]
"""Clips with their crops [faces, side, side, 3] and sound [samples], in order."""


def write_sets(out: Path, clips: Sequence[Taught], pieces: Pieces, sizes: Sizes) -> None:
    """Writes faces/, sequences/ and utterances/ below `out`; a set of nothing is left out."""
    seen = [clip for clip in clips if clip.crops]
    heard = [clip for clip in clips if clip.samples]
    shape = (sizes.side, sizes.side, 3)
    longest = max((clip.samples for clip in heard), default=0)
    faces = _Array(out / "faces" / "images.npy", np.uint8, (sum(c.crops for c in seen), *shape))
    rows = _Array(out / "sequences" / "images.npy", np.uint8, (len(seen), sizes.tiles, *shape))
    waves = _Array(out / "utterances" / "waveforms.npy", np.int16, (len(heard), longest))
    for clip, crops, sound in pieces:
        if clip.crops:
            faces.write(crops)
            order = [int((i + 0.5) * len(crops) / sizes.tiles) for i in range(sizes.tiles)]
            rows.write(crops[order])
        if clip.samples:
            waves.write(sound, skip=longest - len(sound))
    for array in (faces, rows, waves):
        array.keep()
    each = [clip for clip in seen for _ in range(clip.crops)]
    for kind, own in (("faces", each), ("sequences", seen), ("utterances", heard)):
        if own:
            _write_labels(out / kind, own)
    if heard:
        lengths = np.array([clip.samples for clip in heard], np.int64)
        _write_array(out / "utterances" / "lengths.npy", lengths)
        _write_rows(out / "utterances" / "table.csv", heard)
    for kind in ("faces", "sequences", "utterances"):  # a set is complete when its splits are there
        if (out / kind).is_dir():
            (out / kind / "splits.tmp").replace(out / kind / "split.npy")


def write_sentences(out: Path, clips: Sequence[Taught]) -> None:
    """Writes sentences/table.csv: the words of all clips that have some."""
    (out / "sentences").mkdir(exist_ok=True)
    _write_rows(out / "sentences" / "table.csv", [clip for clip in clips if clip.record.text])


def write_split(folder: Path, records: Sequence[ClipRecord]) -> None:
    """Writes one split of clips: MER's labels and transcripts, and last clips.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    if all(record.label for record in records):
        labels = [{"name": r.name, "discrete": r.label} for r in records]
        write_table(folder / "labels.csv", ("name", "discrete"), labels)
    spoken = [
        {
            "name": r.name,
            "chinese": r.text if r.language == "zh" else "",
            "english": "" if r.language == "zh" else r.text,
        }
        for r in records
    ]
    write_table(folder / "transcripts.csv", ("name", "chinese", "english"), spoken)
    lines = [json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in records]
    write_text(folder / "clips.jsonl", "".join(lines))


def write_text(path: Path, text: str) -> None:
    """Writes a file through a temporary name."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def write_table(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str | None]]
) -> None:
    """Writes a CSV file with a header through a temporary name."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


class _Array:
    """A .npy file written from its first row to its last: a memory map of it would fill memory
    with pages. Nothing is made of an array without rows."""

    def __init__(self, path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.tmp")
        self.file = None
        if not shape[0]:
            return
        path.parent.mkdir(exist_ok=True)
        self.file = self.temporary.open("wb")
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)

    def write(self, values: NDArray[Any], skip: int = 0) -> None:
        """The next values, and `skip` zeros after them, which take no room on most disks."""
        if self.file is not None:
            self.file.write(np.ascontiguousarray(values).tobytes())
            self.file.seek(skip * values.itemsize, os.SEEK_CUR)

    def keep(self) -> None:
        """Gives the file its length and its name."""
        if self.file is not None:
            self.file.truncate(self.file.tell())
            self.file.close()
            self.temporary.replace(self.path)


def _write_labels(folder: Path, clips: Sequence[Taught]) -> None:
    _write_array(folder / "labels.npy", np.array([clip.label for clip in clips], np.int64))
    splits = np.array([SET_SPLITS.index(clip.split) for clip in clips], np.int8)
    _write_array(folder / "splits.tmp", splits)


def _write_array(path: Path, array: NDArray[Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    temporary.replace(path)


def _write_rows(path: Path, clips: Sequence[Taught]) -> None:
    columns = ("name", "discrete", "language", "voice", "text", "split")
    rows = [
        {
            "name": clip.record.name,
            "discrete": clip.record.label,
            "language": clip.record.language,
            "voice": clip.record.group,
            "text": clip.record.text,
            "split": clip.split,
        }
        for clip in clips
    ]
    write_table(path, columns, rows)
