"""The gathering's memory: which files were looked at, and where each face came from.

Eight million images outlast any process and any memory. So all that is known lies in one SQLite
file: a batch of files is one transaction, and after a kill the images beyond the last transaction
are cut off and the rest goes on. Equal files are found by their content's hash.

    files(id, source, key, digest, label, status, detail)   status: done, duplicate, unreadable
    faces(row, file, x, y, w, h, time, label, split, reason, <measures>)   row: of images.npy
    problems(source, key, what)
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.faces.filters import MEASURES
from merkit_training.faces.look import Looked
from merkit_training.faces.sets import Problem

TABLES = f"""
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY, source TEXT, key TEXT, digest BLOB, label INTEGER, status TEXT,
    detail TEXT, UNIQUE (source, key));
CREATE INDEX IF NOT EXISTS by_digest ON files (digest) WHERE status = 'done';
CREATE TABLE IF NOT EXISTS faces (
    row INTEGER UNIQUE, file INTEGER, x REAL, y REAL, w REAL, h REAL, time REAL, label INTEGER,
    split INTEGER, reason TEXT, {", ".join(f"{name} REAL" for name in MEASURES)});
CREATE TABLE IF NOT EXISTS problems (
    source TEXT, key TEXT, what TEXT, UNIQUE (source, key, what));
"""
ROWS_AT_ONCE = 65_536


class GatherIndex:
    """An open index; a context manager.

    Args:
        path: the SQLite file, made if there is none.
        options: what decides the outcome; an index that holds files of others is refused.

    Raises:
        InvalidInputError: another process has it open, or it was begun with other options.
        BundleCorruptError: the file is no index.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.database = sqlite3.connect(path, timeout=1, isolation_level=None)
        try:
            self.database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.database.execute("BEGIN EXCLUSIVE")
            for statement in TABLES.split(";"):
                self.database.execute(statement)
            self._compare(json.dumps(options, sort_keys=True))
            self.database.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            self.database.close()
            raise self._translated(error) from None
        except InvalidInputError:
            self.database.close()
            raise

    def __enter__(self) -> GatherIndex:
        self.database.execute("BEGIN")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.database.close()  # what was not committed is gone

    def commit(self) -> None:
        """Makes what was added last, and goes on."""
        self.database.execute("COMMIT")
        self.database.execute("BEGIN")

    def knows(self, source: str, key: str) -> bool:
        """Whether a file was looked at before."""
        query = "SELECT 1 FROM files WHERE source = ? AND key = ?"
        return self.database.execute(query, (source, key)).fetchone() is not None

    def rows(self) -> int:
        """Number of faces kept so far."""
        count: int = self.database.execute("SELECT count(row) FROM faces").fetchone()[0]
        return count

    def add_problem(self, source: str, problem: Problem) -> None:
        """Notes a problem; the same twice is one."""
        values = (source, problem.key, problem.what)
        self.database.execute("INSERT OR IGNORE INTO problems VALUES (?, ?, ?)", values)

    def add(self, source: str, looked: Looked, split: int, row: int) -> list[NDArray[np.uint8]]:
        """Notes what became of a file.

        Args:
            source: the source's name.
            looked: the file's faces and measures.
            split: the number of its split.
            row: of `images.npy`, for its first kept face.

        Returns:
            The crops to append, in order; none if the file's content is known already.
        """
        item, status, detail = looked.item, "done", "; ".join(looked.notes)
        label = max(face.label for face in item.faces)
        if looked.error:
            status, detail = "unreadable", looked.error
        elif (first := self._same_content(looked.digest)) is not None:
            status, detail = "duplicate", first[0]
            if label >= 0 and first[1] >= 0 and label != first[1]:
                self.add_problem(source, Problem(f"{item.key} = {first[0]}", OTHER_LABEL))
        values = (source, item.key, looked.digest, label, status, detail)
        number = self.database.execute(
            "INSERT INTO files (source, key, digest, label, status, detail) "
            "VALUES (?, ?, ?, ?, ?, ?)", values
        ).lastrowid  # fmt: skip
        crops: list[NDArray[np.uint8]] = []
        for face in looked.faces if status == "done" else ():
            at = None if face.crop is None else row + len(crops)
            if face.crop is not None:
                crops.append(face.crop)
            measures = [_or_none(face.measures[name]) for name in MEASURES]
            facts = (at, number, *face.box, face.time, face.label, split, face.reason, *measures)
            marks = ", ".join("?" * len(facts))
            self.database.execute(f"INSERT INTO faces VALUES ({marks})", facts)
        return crops

    def kept(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int8]]]:
        """Labels and splits of all kept faces in the order of rows, a block at a time."""
        cursor = self.database.execute(
            "SELECT label, split FROM faces WHERE row IS NOT NULL ORDER BY row"
        )
        while block := cursor.fetchmany(ROWS_AT_ONCE):
            table = np.array(block, np.int64)
            yield table[:, 0], table[:, 1].astype(np.int8)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a query, for the report."""
        return self.database.execute(sql, values).fetchall()

    def _same_content(self, digest: bytes) -> tuple[str, int] | None:
        query = "SELECT source || '/' || key, label FROM files WHERE digest = ? AND status = 'done'"
        found: tuple[str, int] | None = self.database.execute(query, (digest,)).fetchone()
        return found

    def _compare(self, options: str) -> None:
        found = self.database.execute("SELECT value FROM meta WHERE name = 'options'").fetchone()
        if found is None or not self.query("SELECT 1 FROM files LIMIT 1"):
            self.database.execute("INSERT OR REPLACE INTO meta VALUES ('options', ?)", (options,))
            self.database.execute("DELETE FROM problems")
        elif found[0] != options:
            was, now = json.loads(found[0]), json.loads(options)
            other = [key for key in now if was.get(key) != now[key]]
            raise InvalidInputError(
                f"{self.path.parent} was begun with other options ({', '.join(other)})",
                ", ".join(f"{key} = {was.get(key)}" for key in other),
                "choose another folder, or remove this one",
            )

    def _translated(self, error: sqlite3.DatabaseError) -> InvalidInputError | BundleCorruptError:
        if "locked" in str(error):
            return InvalidInputError(
                f"another process is gathering into {self.path.parent}",
                "one at a time",
                "wait for it, or choose another folder",
            )
        return BundleCorruptError(
            f"{self.path} is no index of a gathering ({error})",
            "what merkit-train gather wrote",
            "remove its folder and gather again",
        )


OTHER_LABEL = "have the same content and different labels; the first label counts"


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
