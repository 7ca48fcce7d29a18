"""Label files of clips whose features are there already: MERTools' `.npz`, or a table.

Readers of own clips want a media file or words for each row. Whoever shares features often may not
share clips, so here a name and a label are enough, and every other column is kept for reports.

Columns of a table (the first spelling found of each is read):
    name       the clip's, as its feature files are called (also: path, file, without ending)
    discrete   its class (also: label, emotion); empty: unlabelled
    group      speaker or source video (also: speaker), kept together in folds and splits
    split      train, val, a name that begins with test, or unlabelled
    fold       of a training clip: clips of one fold are predicted by branches that saw the others
    valence    a number; MERTools' -10 stands for none
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from merkit.errors import InvalidInputError
from merkit_training.corpus import read_mer_npz
from merkit_training.data.manifest import GROUPS, LABELS, PATHS, first, split_of
from merkit_training.data.mer import NO_VALENCE, SPLIT_MARKS
from merkit_training.data.reading import settle
from merkit_training.data.records import ClipRecord, Problem, fit_for_a_file, number
from merkit_training.data.tables import LINES, TABLES, Row, header_of, rows_of

NPZ = ".npz"


@dataclass(frozen=True)
class LabelFile:
    """What a label file says.

    Attributes:
        records: the usable clips, in the file's order; none has media.
        classes: in order.
        facts: all that is said of a clip, by name and column.
        problems: clips that were left out, each with its reason.
    """

    records: tuple[ClipRecord, ...]
    classes: tuple[str, ...]
    facts: Mapping[str, Mapping[str, str]]
    problems: tuple[Problem, ...]

    def folds(self) -> dict[str, str]:
        """The fold of each clip that has one, by name."""
        return {name: said["fold"] for name, said in self.facts.items() if said.get("fold")}


def read_label_file(path: Path, classes: Sequence[str] = ()) -> LabelFile:
    """Reads MERTools' label file (nothing in it is executed) or a CSV or JSON-lines table.

    Args:
        path: the file.
        classes: in order; none: as `data.read_dataset` finds them.

    Raises:
        InvalidInputError: no such file, no column that names clips or labels, or no usable clip.
    """
    is_mer = path.suffix.lower() == NPZ
    if is_mer:
        rows: Iterable[Row | Problem] = _of_npz(path)
    elif path.suffix.lower() in TABLES:
        if path.suffix.lower() not in LINES:
            _check_columns(path)
        rows = rows_of(path)
    else:
        raise InvalidInputError(
            f"{path} is no label file" if path.exists() else f"there is no {path}",
            f"MERTools' {NPZ}, or a table ({', '.join(TABLES)})",
            "check --labels",
        )
    records: list[ClipRecord] = []
    facts: dict[str, dict[str, str]] = {}
    problems: list[Problem] = []
    for row in rows:
        found = row if isinstance(row, Problem) else _record(row, facts)
        if isinstance(found, Problem):
            problems.append(found)
            continue
        records.append(found)
        facts[found.name] = {str(k): str(v) for k, v in row.items() if k and v}  # type: ignore[union-attr]
    kept, known, lost = settle(records, classes, is_mer=is_mer)
    if not any(record.label for record in kept):
        raise InvalidInputError(
            f"{path} labels no clip" + (f" with {', '.join(classes)}" if classes else ""),
            "a name and a class of several clips",
            "check --labels",
        )
    told = {record.name: facts[record.name] for record in kept}
    return LabelFile(tuple(kept), known, told, (*problems, *lost))


def _record(row: Row, known: Mapping[str, object]) -> ClipRecord | Problem:
    name = str(row.get("name") or PurePath(first(row, PATHS).replace("\\", "/")).stem)
    if not fit_for_a_file(name):
        return Problem("bad name", name, "no name for a file")
    if name in known:
        return Problem("duplicate name", name, "the first is used")
    split = split_of(str(row.get("split", "")))
    if split is None:
        detail = f"{row['split']!r}; known: train, val, test..., unlabelled"
        return Problem("unknown split", name, detail)
    try:
        valence = number(row.get("valence"))
    except ValueError as error:
        return Problem("bad value", name, f"valence: {error}")
    label, group = first(row, LABELS) or None, first(row, GROUPS)
    valence = None if valence == NO_VALENCE else valence
    return ClipRecord(name, label=label, group=group, split=split, valence=valence)


def _of_npz(path: Path) -> Iterable[Row]:
    """MERTools' dictionaries as rows; the split is told by the corpus' name."""
    for corpus, entries in read_mer_npz(path).items():
        split = next((s for mark, s in SPLIT_MARKS if mark in corpus.lower()), "")
        for name, entry in entries.items():
            row = {"name": str(name), "discrete": str(entry.get("emo", "")), "split": split}
            yield row | {"valence": str(entry.get("val", ""))}


def _check_columns(path: Path) -> None:
    columns = set(header_of(path))
    if columns and not (columns & {"name", *PATHS} and columns & set(LABELS)):
        raise InvalidInputError(
            f"{path} has the columns {', '.join(map(ascii, sorted(columns)[:9]))}",
            "a column name, and discrete (or label, or emotion)",
            "write a header such as name,discrete,group,split",
        )
