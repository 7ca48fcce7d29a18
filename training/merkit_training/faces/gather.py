"""Gathers face images out of folders and lists into one set that pre-training reads (seed 3.1).

    OUT/card.json                 what it holds, with which classes; written last
    OUT/report.json, report.md    what was dropped by which filter, what could not be read
    OUT/index.sqlite              where each face came from, with box, time and measures
    OUT/faces/images.npy, labels.npy (-1: no label), split.npy    as in a corpus

`images.npy` grows in place under a name of its own until all is gathered: nothing is held in
memory but one batch, and nothing is copied at the end.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from tqdm import tqdm

from merkit.errors import InferenceError, InvalidInputError
from merkit.faces.detectors import load_cv2
from merkit_training.corpus import SET_SPLITS
from merkit_training.faces.finders import Finder
from merkit_training.faces.index import GatherIndex
from merkit_training.faces.look import GatherSettings, Looked, look
from merkit_training.faces.report import write_reports
from merkit_training.faces.sets import READERS, Item, Problem
from merkit_training.runs import read_json, write_json

BATCH = 64  # files between commits: what a kill can cost
WAITING = 4  # files that wait for each worker
PART, INDEX, CARD = "faces.part", "index.sqlite", "card.json"


def gather(
    sources: Sequence[Path], out: Path, settings: GatherSettings, workers: int = 1
) -> dict[str, Any]:
    """Gathers faces of all sources into `out`; goes on where an earlier call was stopped.

    Args:
        sources: folders, or CSV files with labels = "csv".
        out: the folder to write.
        settings: what decides the outcome.
        workers: processes that decode and detect; the outcome is the same with any number.

    Returns:
        The report, as in report.json.

    Raises:
        InvalidInputError: a source is missing, `out` cannot be written, or was begun with other
            options.
    """
    _check(sources, out, settings.labels)
    try:
        return _gather(sources, out, settings, workers)
    except (OSError, sqlite3.OperationalError) as error:
        raise InvalidInputError(
            f"{out} cannot be written ({error})",
            "a folder on a disk with room",
            "make room or choose another; what was gathered is kept",
        ) from None


def _gather(
    sources: Sequence[Path], out: Path, settings: GatherSettings, workers: int
) -> dict[str, Any]:
    options = asdict(settings) | {"sources": [str(source) for source in sources]}
    with GatherIndex(out / INDEX, options) as index:
        if (out / CARD).exists():
            return read_json(out / "report.json")
        if not (out / "faces").exists():
            _fill(sources, out / PART, settings, workers, index)
        report = write_reports(index, out, settings)
        write_json(out / CARD, _card(report, settings))
    return report


def _fill(
    sources: Sequence[Path], part: Path, settings: GatherSettings, workers: int, index: GatherIndex
) -> None:
    part.mkdir(parents=True, exist_ok=True)
    with ImageFile(part / "images.npy", settings.side, index.rows()) as images:
        entries = _news(sources, settings, index)
        progress = tqdm(
            _looked(entries, settings, workers), desc="faces", unit="file", mininterval=1
        )
        for number, (source, looked) in enumerate(progress, 1):
            split = _split(looked.item, source, settings)
            for crop in index.add(source, looked, split, images.rows):
                images.append(crop)
            if number % BATCH == 0:
                images.flush()
                index.commit()
                progress.set_postfix(kept=images.rows)
        images.finish()
        index.commit()
    _write_arrays(index, part)
    part.replace(part.with_name("faces"))


class ImageFile:
    """An `images.npy` that grows; a context manager.

    Args:
        path: the file; what lies in it beyond `rows` is cut off.
        side: of the images.
        rows: how many of its images count.
    """

    def __init__(self, path: Path, side: int, rows: int) -> None:
        self.rows, self._shape = rows, (side, side, 3)
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        self._write_header(0)
        self._header = self._file.tell()
        self._file.flush()
        end = self._header + rows * side * side * 3
        if path.stat().st_size < end:
            raise InvalidInputError(
                f"{path} holds fewer images than the index beside it knows",
                f"{rows} images of {side} pixels",
                f"remove {path.parent.parent} and gather again",
            )
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, image: NDArray[np.uint8]) -> None:
        """Adds an image [side, side, 3]."""
        self._file.write(np.ascontiguousarray(image).data)
        self.rows += 1

    def flush(self) -> None:
        """Onto the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Writes the true number of images into the header, which has room for it."""
        self._write_header(self.rows)
        if self._file.tell() != self._header:
            raise AssertionError("numpy's header has grown over the images")
        self.flush()

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write_header(self, rows: int) -> None:
        self._file.seek(0)
        facts = {"descr": "|u1", "fortran_order": False, "shape": (rows, *self._shape)}
        npy.write_array_header_1_0(self._file, facts)


def _news(
    sources: Sequence[Path], settings: GatherSettings, index: GatherIndex
) -> Iterator[tuple[str, Item]]:
    """The files not looked at yet; problems that readers meet go to the index."""
    for source in sources:
        name = str(source)
        for entry in READERS[settings.labels](source, settings.classes, settings.cropped):
            if isinstance(entry, Problem):
                index.add_problem(name, entry)
            elif not index.knows(name, entry.key):
                yield name, entry


def _looked(
    entries: Iterable[tuple[str, Item]], settings: GatherSettings, workers: int
) -> Iterator[tuple[str, Looked]]:
    """Each file looked at, in order, in this process or in others."""
    if workers <= 1:
        finder = settings.finder()
        for source, item in entries:
            yield source, look(item, settings, finder)
        return
    settings.finder()  # a wrong model file is better refused here than in a worker
    context = get_context("forkserver")  # a fork would copy the locks of threads
    with ProcessPoolExecutor(workers, context, _begin, (settings,)) as pool:
        waiting: deque[tuple[str, Future[Looked]]] = deque()
        try:
            for source, item in entries:
                waiting.append((source, pool.submit(_look_here, item)))
                if len(waiting) >= WAITING * workers:
                    name, future = waiting.popleft()
                    yield name, future.result()
            while waiting:
                name, future = waiting.popleft()
                yield name, future.result()
        except BrokenProcessPool as error:
            raise InferenceError(
                f"a worker died ({error})",
                "workers that live until the end",
                "give the same command again; with --workers 1 the report names the last file",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_here: list[tuple[GatherSettings, Finder]] = []  # of this worker process


def _begin(settings: GatherSettings) -> None:
    load_cv2().setNumThreads(1)
    _here[:] = [(settings, settings.finder())]


def _look_here(item: Item) -> Looked:
    return look(item, *_here[0])


def _split(item: Item, source: str, settings: GatherSettings) -> int:
    """The set's own split, else one drawn from the name of the file or of its folder."""
    if item.split:
        return SET_SPLITS.index(item.split)
    group = item.key if settings.group == "file" else item.key.rpartition("/")[0]
    name = f"{settings.seed}/{Path(source).name}/{group}"  # a checksum of like names is alike
    drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
    return SET_SPLITS.index("val" if drawn < settings.val_share else "train")


def _write_arrays(index: GatherIndex, folder: Path) -> None:
    """`labels.npy` and `split.npy` beside the images, a block at a time."""
    rows = index.rows()
    if not rows:  # which no memory map can hold
        np.save(folder / "labels.npy", np.zeros(0, np.int64))
        np.save(folder / "split.npy", np.zeros(0, np.int8))
        return
    labels = npy.open_memmap(folder / "labels.npy", "w+", np.dtype(np.int64), (rows,))
    splits = npy.open_memmap(folder / "split.npy", "w+", np.dtype(np.int8), (rows,))
    start = 0
    for block_labels, block_splits in index.kept():
        labels[start : start + len(block_labels)] = block_labels
        splits[start : start + len(block_splits)] = block_splits
        start += len(block_labels)
    labels.flush()
    splits.flush()


def _card(report: dict[str, Any], settings: GatherSettings) -> dict[str, Any]:
    return {
        "face_labels": list(settings.classes),
        "settings": asdict(settings),
        "faces": report["kept"],
        "sources": {name: facts["kept"] for name, facts in report["sources"].items()},
    }


def _check(sources: Sequence[Path], out: Path, labels: str) -> None:
    if not sources:
        raise InvalidInputError("no source was given", "folders, or CSV files")
    for source in sources:
        if not source.exists():
            raise InvalidInputError(
                f"there is no {source}", "a folder of pictures or videos", "check the path"
            )
        if labels != "csv" and not source.is_dir():
            raise InvalidInputError(
                f"{source} is a file", "a folder", "give its folder, or --labels csv for a table"
            )
        if source.resolve() == out.resolve() or source.resolve() in out.resolve().parents:
            raise InvalidInputError(
                f"{out} lies in the source {source}", "a folder outside the sources"
            )
    if len({str(source) for source in sources}) != len(sources):
        raise InvalidInputError("a source was given twice", "different sources")
    if out.exists() and not out.is_dir():
        raise InvalidInputError(f"{out} is a file", "a folder, or a new name")
