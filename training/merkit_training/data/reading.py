"""`read_dataset`: whatever lies at a path, as one list of clips, one list of classes, and problems.

Which classes there are decides what a misspelt label is. So classes are settled once, after all
labels have been read, and every label outside them is reported with its clip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from merkit.errors import InvalidInputError
from merkit_training.data.manifest import read_manifest
from merkit_training.data.mer import read_mer
from merkit_training.data.records import ClipRecord, Dataset, Problem, in_order
from merkit_training.data.tables import TABLES
from merkit_training.labels import ALIASES, MER6

LEAST_CLIPS = 3
"""A class with fewer is taken for a slip of the pen, unless it was asked for by name: it could not
be in training, validation and a test at once."""
NO_LABEL = frozenset({"nan", "na", "n/a", "null", "none", "-"})
"""What other tools write for a label that is missing: a class only if it was asked for by name."""


def read_dataset(path: Path, classes: Sequence[str] = ()) -> Dataset:
    """Reads a CSV or JSON-lines manifest, or a folder of MER's or of plain media files.

    Args:
        path: the file or folder.
        classes: the classes in order. Without them: MER's six where all six are found (in any of
            MER's spellings) or a folder speaks of nothing else; otherwise the labels found.

    Raises:
        InvalidInputError: nothing there, nothing that could be read, or a class named twice.
    """
    path = Path(path)
    if path.is_dir():
        records, problems = read_mer(path)
    elif path.suffix.lower() in TABLES:
        records, problems = read_manifest(path)
    else:
        found = f"{path} is no table of clips" if path.exists() else f"there is no {path}"
        raise InvalidInputError(
            found, f"a folder, or a table ({', '.join(TABLES)})", "check the path"
        )
    kept, known, lost = settle(records, classes, is_mer=path.is_dir())
    problems = [*problems, *lost, *_wordless(kept), *_groupless(kept)]
    return Dataset(path, tuple(kept), known, tuple(problems))


def settle(
    records: Sequence[ClipRecord], classes: Sequence[str], *, is_mer: bool
) -> tuple[list[ClipRecord], tuple[str, ...], list[Problem]]:
    """Labels in one spelling, the classes, and a problem for each clip of another class.

    Args:
        records: with labels as they are spelt.
        classes: in order; none: those that the labels name, see `read_dataset`.
        is_mer: whether labels can only be MER's.

    Raises:
        InvalidInputError: a class named twice.
    """
    spelt = _spelling(records, classes)
    known = tuple(classes) or _classes(spelt, is_mer=is_mer)
    if len(set(known)) < len(known):
        raise InvalidInputError(
            f"the classes are {', '.join(known)}", "each class once", "correct the recipe"
        )
    kept, lost = _known(spelt, known)
    return kept, known, lost


def _spelling(records: Sequence[ClipRecord], classes: Sequence[str]) -> list[ClipRecord]:
    """Labels in one spelling: as `classes` has them, else lower case and MER's where all fit."""
    if classes:
        by_fold = {name.lower(): name for name in classes}
        aliases = {k: v for k, v in ALIASES.items() if v in classes and k not in by_fold}
        by_fold |= aliases
        return [_labelled(r, by_fold.get((r.label or "").lower(), r.label)) for r in records]
    found = {(r.label or "").lower() for r in records if r.label}
    mer = {*MER6, *ALIASES}
    mostly = sum((r.label or "").lower() in mer for r in records if r.label)
    by_alias = ALIASES if 2 * mostly > len([r for r in records if r.label]) else {}
    folded = {name: by_alias.get(name, name) for name in found}
    return [_labelled(r, folded.get((r.label or "").lower())) for r in records]


def _labelled(record: ClipRecord, label: str | None) -> ClipRecord:
    return record if record.label == label else replace(record, label=label)


def _classes(records: Sequence[ClipRecord], is_mer: bool) -> tuple[str, ...]:
    """MER6, or the labels that enough clips have."""
    tally = Counter(record.label for record in records if record.label)
    if set(MER6) <= set(tally) and sum(tally[n] for n in MER6) > 0.9 * sum(tally.values()):
        return MER6
    if is_mer and tally and set(tally) <= set(MER6):
        return MER6
    real = {name: count for name, count in tally.items() if name not in NO_LABEL}
    often = [name for name, count in real.items() if count >= LEAST_CLIPS]
    return in_order(often or list(real), MER6)


def _known(
    records: Sequence[ClipRecord], classes: Sequence[str]
) -> tuple[list[ClipRecord], list[Problem]]:
    kept, lost = [], []
    for record in records:
        if record.label is None or record.label in classes:
            kept.append(record)
        else:
            detail = f"{record.label!r} is none of {', '.join(classes)}"
            lost.append(Problem("unknown label", record.name, detail))
    return kept, lost


def _wordless(records: Sequence[ClipRecord]) -> list[Problem]:
    """Clips without words; one remark where no clip has any."""
    silent = [record for record in records if not record.text]
    if len(silent) == len(records):
        return [Problem("no transcripts", "", "no clip has words", lost=False)] if silent else []
    return [Problem("empty transcript", record.name, lost=False) for record in silent]


def _groupless(records: Sequence[ClipRecord]) -> list[Problem]:
    """One remark where speakers are unknown: then the same one may stand in training and test."""
    unknown = sum(not record.group for record in records if record.label)
    if not unknown:
        return []
    detail = (
        f"{unknown} labelled clips have no speaker or source video: each counts as its own, so "
        "one speaker may stand in training and test, and scores may be too high; add a column group"
    )
    return [Problem("no groups", "", detail, lost=False)]
