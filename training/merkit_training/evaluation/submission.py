"""The challenge's file of answers: every name once, in the list's order, and no silent guess.

A submission with a name missing or one too many is refused by the organisers after the deadline
has passed. So names are checked against their list here, and a clip that gave no answer gets the
majority class and is told, one by one.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

from merkit.errors import InferenceError, InputError, InvalidInputError
from merkit.pipeline import DECODED_IN
from merkit_training.data import ClipRecord, Problem
from merkit_training.data.manifest import TEXTS, first, read_manifest
from merkit_training.data.mer import read_mer
from merkit_training.data.tables import TABLES, rows_of
from merkit_training.evaluation.material import look
from merkit_training.evaluation.stored import read_for, records_in, stored_backend
from merkit_training.evaluation.subject import VALENCE, Subject
from merkit_training.runs import write_bytes

COLUMNS = ("name", "discrete", "valence")
NAMED = 10  # names in an error


@dataclass(frozen=True)
class Submission:
    """What was written.

    Attributes:
        labels: by name, in the file's order.
        filled: names without an answer of the model, with the reason; they have `majority`.
        extra: clips of the folder that the list does not name; not written.
        majority: the class that was filled in; "" if none was needed.
        valence: by name, where the model knows it; of filled names the mean of the others.
    """

    labels: Mapping[str, str]
    filled: Mapping[str, str]
    extra: tuple[str, ...]
    majority: str
    valence: Mapping[str, float]


@dataclass(frozen=True)
class _Answer:
    label: str
    valence: float | None


def submit(
    subject: Subject,
    data: Path,
    out: Path,
    *,
    names: Path | None = None,
    texts: Path | None = None,
    majority: str = "",
    fill_missing: bool = False,
    overwrite: bool = False,
    workers: int = 2,
) -> Submission:
    """Answers every clip and writes `name,discrete`, with `valence` if the model knows it.

    Args:
        subject: the model.
        data: MER's folder, a folder of media, or a table of clips; labels in it are not read. Of
            a run without encoders: the folder that holds feature folders of its groups.
        out: the CSV file.
        names: the official list: a CSV with a column `name`, or a name a line.
        texts: a CSV of transcripts, where `data` has none: `name` and `text`, `chinese`...
        majority: the class for clips without an answer; default: the commonest answer.
        fill_missing: give names without a clip the majority class too, instead of refusing.
        overwrite: replace `out`.
        workers: clips at a time.

    Raises:
        InvalidInputError: `out` exists, names are missing, twice or unknown, or nothing is there.
        BackendError, BundleError: the model failed, other than on a clip.
    """
    _check(subject, out, majority, overwrite, workers)
    backend = stored_backend(subject)
    filled: dict[str, str] = {}
    if backend is None:
        records, filled = _records(data, texts)
    else:
        records = {record.name: record for record in records_in(backend, data)}
    asked = list(records) + [name for name in filled if name not in records]
    order = _listed(names) if names else sorted(asked)
    absent = [name for name in order if name not in records and name not in filled]
    if absent and not fill_missing:
        told = ", ".join(absent[:NAMED]) + (", ..." if len(absent) > NAMED else "")
        raise InvalidInputError(
            f"{len(absent)} names of {names} have no clip in {data} ({told})",
            "a clip of each name",
            "check the folder, or give --fill-missing to give them the majority class",
        )
    filled |= {name: "no clip of this name" for name in absent}
    listed = set(order)
    answers: dict[str, _Answer] = {}
    chosen = [records[name] for name in order if name in records]
    if backend is None:
        said = _answers(subject, chosen, workers)
    else:
        found = backend.of(read_for(backend, chosen, data))
        said = zip(chosen, (_of(found, i, subject) for i in range(len(chosen))), strict=True)
    for record, answer in said:
        if isinstance(answer, Problem):
            filled[record.name] = answer.detail
        else:
            answers[record.name] = answer
    filled = {name: reason for name, reason in filled.items() if name in listed}
    labels = [answer.label for answer in answers.values()]
    common = majority or _commonest(labels, subject.labels) if filled else ""
    rows = {name: answers[name].label if name in answers else common for name in order}
    known = {n: a.valence for n, a in answers.items() if a.valence is not None}
    mean = fmean(known.values()) if known else 0.0
    valence = {name: known.get(name, mean) for name in order} if known else {}
    write_bytes(out, _csv(rows, valence).encode())
    extra = tuple(name for name in sorted(asked) if name not in listed)
    return Submission(rows, {n: filled[n] for n in order if n in filled}, extra, common, valence)


def _answers(
    subject: Subject, records: Sequence[ClipRecord], workers: int
) -> Iterator[tuple[ClipRecord, _Answer | Problem]]:
    """The answer on each clip, or why there is none, in order; few clips are held at a time."""
    p, backend = subject.contract.preprocessing, subject.client.backend

    def answer(record: ClipRecord) -> _Answer | Problem:
        try:
            tensors = look(record, p).tensors
            found = backend.infer({name: tensors[name] for name in DECODED_IN})
        except (InputError, InferenceError) as error:
            return Problem(type(error).__name__, record.name, error.found)
        return _of(found, 0, subject)

    with ThreadPoolExecutor(workers, thread_name_prefix="submit") as pool:
        done = tqdm(pool.map(answer, records), total=len(records), unit="clip", mininterval=1)
        yield from zip(records, done, strict=True)


def _of(found: Mapping[str, NDArray[Any]], row: int, subject: Subject) -> _Answer | Problem:
    """A row of what a backend answered."""
    label = int(found["label"][row])
    if label < 0:
        return Problem("no evidence", "", subject.nothing)
    valence = float(found[VALENCE][row]) if VALENCE in found else None
    return _Answer(subject.labels[label], valence)


def _records(data: Path, texts: Path | None) -> tuple[dict[str, ClipRecord], dict[str, str]]:
    """Clips by name, and names of clips that cannot be used, with the reason."""
    if not data.is_dir() and data.suffix.lower() not in TABLES:
        raise InvalidInputError(
            f"{data} is neither" if data.exists() else f"there is no {data}",
            f"a folder, or a table ({', '.join(TABLES)})",
            "check --data",
        )
    found, problems = read_mer(data) if data.is_dir() else read_manifest(data)
    records = {record.name: record for record in found}
    lost = {p.name: f"{p.kind}: {p.detail}" for p in problems if p.lost and p.name not in records}
    if not records:
        raise InvalidInputError(f"{data} has no usable clip", "at least one", "check --data")
    for row in rows_of(texts) if texts else ():
        if not isinstance(row, Problem) and (name := row.get("name", "")) in records:
            records[name] = replace(records[name], text=first(row, TEXTS))
    return records, lost


def _listed(path: Path) -> list[str]:
    """The official names in their order."""
    if path.suffix.lower() in TABLES:
        rows = [row for row in rows_of(path) if not isinstance(row, Problem)]
        found = [str(row["name"]) for row in rows if row.get("name")]
    else:
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"{path} cannot be read ({error})", "a list of names", "check --names"
            ) from None
        found = [line.strip() for line in lines if line.strip()]
    twice = [name for name, count in Counter(found).items() if count > 1]
    if not found or twice:
        raise InvalidInputError(
            f"{path} names {twice[0]} twice" if twice else f"{path} holds no names",
            "each clip's name once, in a column `name` or a name a line",
            "correct --names",
        )
    return found


def _commonest(labels: Sequence[str], order: Sequence[str]) -> str:
    """The commonest answer, the first in the model's order of equals."""
    tally = Counter(labels)
    return max(order, key=lambda label: (tally[label], -order.index(label)))


def _csv(rows: Mapping[str, str], valence: Mapping[str, float]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if valence:
        writer.writerow(COLUMNS)
        writer.writerows([name, label, f"{valence[name]:.4f}"] for name, label in rows.items())
    else:
        writer.writerows([COLUMNS[:2], *rows.items()])
    return text.getvalue()


def _check(subject: Subject, out: Path, majority: str, overwrite: bool, workers: int) -> None:
    if out.is_dir() or (out.exists() and not overwrite) or not out.resolve().parent.is_dir():
        raise InvalidInputError(
            f"{out} exists" if out.exists() else f"there is no folder {out.parent}",
            "a new file in an existing folder",
            "choose another name, or give --overwrite",
        )
    if majority and majority not in subject.labels:
        raise InvalidInputError(
            f"the class {majority!r} is none of the model's",
            f"one of {', '.join(subject.labels)}",
            "correct --majority",
        )
    if workers < 1:
        raise InvalidInputError(f"workers is {workers}", "1 or more", "correct it")
