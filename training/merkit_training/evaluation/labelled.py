"""The clips that a report is about, with their labels and the columns to group them by.

A report is asked for on a corpus' split, on MER's folder or on a table of one's own. What they
say of a clip beyond its label (speaker, voice, whether its modalities agree) differs; here it
becomes plain columns, so that no measure depends on where clips come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from merkit.errors import InvalidInputError
from merkit_training.corpus import clip_splits, read_clips
from merkit_training.data import ClipRecord, Problem, read_dataset
from merkit_training.data.manifest import first
from merkit_training.data.tables import TABLES, Row, header_of, rows_of
from merkit_training.labels import classes_of

SUBSET = "subset"
"""Column that says whether a clip's modalities agree: aligned, mixed or conflicting."""
COLUMNS = ("speaker", "voice", "language")
"""Columns that are looked at without being asked for."""


@dataclass(frozen=True)
class Item:
    """A labelled clip. `label` is its class's number in the model's order."""

    record: ClipRecord
    label: int
    facts: Mapping[str, str]  # by column


@dataclass(frozen=True)
class LabelledSet:
    """What a report is about, in order of name."""

    source: Path
    split: str
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]  # clips that are not among the items, and remarks
    unlabelled: int

    def sample(self, most: int, seed: int) -> tuple[Item, ...]:
        """At most so many of the items, drawn at random, in order of name."""
        if not 0 < most < len(self.items):
            return self.items
        chosen = np.random.default_rng(seed).choice(len(self.items), most, replace=False)
        return tuple(self.items[i] for i in sorted(chosen.tolist()))


def read_labelled(
    source: Path, labels: Sequence[str], split: str = "", by: Sequence[str] = ()
) -> LabelledSet:
    """Reads a labelled set.

    Args:
        source: a table of clips, MER's folder, a corpus, or a split's folder in a corpus.
        labels: the model's classes in order; a clip of another class is reported as a problem.
        split: of a corpus, or of the column `split`; "" for all that is not a corpus.
        by: columns to group by besides COLUMNS and SUBSET.

    Raises:
        InvalidInputError: nothing there, no labelled clip, no such split or column.
    """
    corpus, split = _corpus_of(source, split)
    if corpus is None:
        found = read_dataset(source, labels)
        records, problems = list(found.records), list(found.problems)
        if split:
            records = [r for r in records if r.split == split]
        known = _columns(source, records)
    else:
        records, problems, known = _of_corpus(corpus, split, labels)
    names = {column for facts in known.values() for column in facts}
    check_columns(by, names | {"speaker", "language"})
    wanted = {SUBSET, *COLUMNS, *by}
    items = [
        Item(r, labels.index(r.label), _facts(r, known.get(r.name, {}), wanted))
        for r in sorted(records, key=lambda r: r.name)
        if r.label
    ]
    if not items:
        raise InvalidInputError(
            f"{source} has no labelled clip" + (f" in the split {split!r}" if split else ""),
            f"clips labelled {', '.join(labels)}",
            "check the path, --split, and that the labels are the model's",
        )
    advice = {"no groups"}  # for those who train
    told = tuple(p for p in problems if p.kind not in advice)
    return LabelledSet(source, split, tuple(items), told, len(records) - len(items))


def _corpus_of(source: Path, split: str) -> tuple[Path | None, str]:
    """The corpus that `source` is or lies in, and the split; None for other sets."""
    if (source / "clips").is_dir() and (source / "card.json").is_file():
        splits = clip_splits(source)
        if split not in splits:
            raise InvalidInputError(
                f"{source} is a corpus, and its split is given as {split!r}",
                f"one of {', '.join(splits)}",
                "give --split",
            )
        return source, split
    corpus = source.resolve().parent.parent
    inside = source.resolve().parent.name == "clips" and (corpus / "card.json").is_file()
    return (corpus, source.resolve().name) if inside and not split else (None, split)


def _of_corpus(
    corpus: Path, split: str, labels: Sequence[str]
) -> tuple[list[ClipRecord], list[Problem], dict[str, dict[str, str]]]:
    classes = classes_of(corpus)
    records, problems, known = [], [], {}
    for clip in read_clips(corpus, split):
        label = None if clip.label is None else classes[clip.label]
        if label is not None and label not in labels:
            detail = f"{label!r} is none of {', '.join(labels)}"
            problems.append(Problem("unknown label", clip.name, detail))
            continue
        plain = ClipRecord(clip.name, clip.path, label, clip.text, clip.language, clip.group, split)
        records.append(replace(clip.record, label=label) if clip.record else plain)
        simple = {k: v for k, v in clip.truth.items() if isinstance(v, str | int | bool)}
        known[clip.name] = {k: str(v) for k, v in simple.items()}
    return records, problems, known


def _columns(source: Path, records: Sequence[ClipRecord]) -> dict[str, dict[str, str]]:
    """All cells of the tables that name the clips, by clip and column."""
    tables = [source]
    if source.is_dir():
        paths = sorted(p for p in source.iterdir() if p.suffix.lower() in TABLES)
        tables = [path for path in paths if "name" in header_of(path)]
    open_names = {record.name for record in records}
    known: dict[str, dict[str, str]] = {name: {} for name in open_names}
    for table in tables:
        left = set(open_names)
        for row in rows_of(table):
            if isinstance(row, Problem):
                continue
            name = next((n for n in _names(row) if n in left), None)
            if name is not None:
                left.discard(name)
                known[name] |= {k: str(v) for k, v in row.items() if k and v}
    return known


def _names(row: Row) -> Iterator[str]:
    """What `data.manifest` may have called this row's clip."""
    stated: Any = first(row, ("path", "file")).replace("\\", "/")
    stem = PurePath(stated).stem
    if row.get("name"):
        yield str(row["name"])
    elif row.get("start"):
        yield f"{stem}_{row['start']}"
    else:
        yield stem
        yield "-".join(PurePath(stated).with_suffix("").parts[-2:])


def _facts(record: ClipRecord, known: Mapping[str, str], wanted: set[str]) -> dict[str, str]:
    all_facts = {"speaker": record.group, "language": record.language, **known}
    return {name: value for name, value in all_facts.items() if name in wanted and value}


def check_columns(by: Sequence[str], known: set[str]) -> None:
    for name in by:
        if name not in known:
            raise InvalidInputError(
                f"no clip has a column {name!r}",
                f"one of {', '.join(sorted(known))}",
                "correct --by",
            )
