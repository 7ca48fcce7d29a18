"""Tables of clips row by row: CSV or JSON lines of any size, with the line of each bad row.

`csv` and `json` raise in the middle of a file and say nothing of the rows after it. Here a bad row
is a problem like any other, and reading goes on. Nothing is held but the row in hand.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from merkit.errors import InvalidInputError
from merkit_training.data.records import Problem

if TYPE_CHECKING:
    import _csv

LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = (".csv", ".tsv", *LINES)
FIELD_BYTES = 1 << 20
"""Of one cell; a quote that is never closed would otherwise swallow the file."""

Row = Mapping[str, Any]
WHERE = ""
"""Key under which a row says where it stands."""


def rows_of(path: Path) -> Iterator[Row | Problem]:
    """Rows by lower-case column name, and a Problem in place of each that cannot be read.

    Raises:
        InvalidInputError: no such file, not to be opened, or not even a header.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _lines(file) if path.suffix.lower() in LINES else _cells(file, path)
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read ({error.strerror})",
            "a CSV file with a header, or a JSON object a line",
            "check the path",
        ) from None


def header_of(path: Path) -> tuple[str, ...]:
    """Lower-case column names of a CSV file; none where there is no readable header."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return tuple(name.strip().lower() for name in next(_reader(file, path)))
    except (OSError, StopIteration, csv.Error):
        return ()


def _reader(file: TextIO, path: Path) -> _csv.Reader:
    first = file.readline(FIELD_BYTES)
    file.seek(0)
    counts = {mark: first.count(mark) for mark in (",", ";", "\t")}
    mark = "\t" if path.suffix.lower() == ".tsv" else max(counts, key=lambda m: counts[m])
    csv.field_size_limit(FIELD_BYTES)
    return csv.reader(file, delimiter=mark, strict=True)  # a quote left open swallows no row unseen


def _cells(file: TextIO, path: Path) -> Iterator[Row | Problem]:
    reader = _reader(file, path)
    try:
        header = [name.strip().lower() for name in next(reader)]
    except (StopIteration, csv.Error):
        header = []
    if not any(header) or len(set(header)) < len(header):
        raise InvalidInputError(
            f"{path} begins with {header or 'nothing'}",
            "a header line of different column names",
            "name the columns, such as path,discrete,text,group,split",
        )
    number = 1
    while True:
        number, begun = number + 1, reader.line_num + 1
        where = f"row {number} of {path.name}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            swallowed = "" if reader.line_num <= begun else f", lines {begun} to {reader.line_num}"
            yield Problem("bad row", where + swallowed, str(error))
            continue
        if not any(cells):
            continue
        if len(cells) > len(header):
            yield Problem("bad row", where, f"{len(cells)} cells under {len(header)} columns")
        elif not _is_unicode("".join(cells)):
            yield Problem("bad row", where, "not UTF-8")
        else:
            padded = [*cells, *[""] * (len(header) - len(cells))]
            found = {name: cell.strip() for name, cell in zip(header, padded, strict=True)}
            yield found | {WHERE: where}


def _lines(file: TextIO) -> Iterator[Row | Problem]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            yield Problem("bad row", where, f"no JSON: {error}")
            continue
        if not isinstance(value, dict):
            yield Problem("bad row", where, f"{type(value).__name__}, not an object")
        elif not _is_unicode(line):
            yield Problem("bad row", where, "not UTF-8")
        else:
            found = {str(key).strip().lower(): _plain(cell) for key, cell in value.items()}
            yield found | {WHERE: where}


def _plain(cell: Any) -> Any:
    if cell is None:
        return ""
    return cell.strip() if isinstance(cell, str) else str(cell)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
