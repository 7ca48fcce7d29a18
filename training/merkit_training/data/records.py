"""One clip's entry whatever file named it, and every complaint about it in one list.

Collections of clips are never clean: files are missing, labels misspelt, names used twice. A
reader that stops at the first fault costs a day, one that drops faulty clips in silence costs the
result. So readers return what is usable, and beside it a problem for each thing that is not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

UNLABELLED = "unlabelled"
SHOWN = 5
"""Clips that a text report names of each kind of problem; the JSON names all."""
TOLD = 300
"""Characters of a name or detail in a text report."""


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One clip as its collection describes it. Nothing has been decoded yet."""

    name: str  # unique, and fit to be a file's name
    path: Path | None = None  # media file; None: words alone
    label: str | None = None  # the class's canonical spelling; None: unlabelled
    text: str = ""  # the transcript
    language: str = ""  # zh, en, or what the collection says; "" if unknown
    group: str = ""  # speaker or source video, which folds and splits keep together; "" if unknown
    split: str = ""  # train, val, test..., unlabelled; "" if the collection does not say
    valence: float | None = None
    start: float | None = None  # seconds; the part of the file that is the clip
    end: float | None = None
    faces: Path | None = None  # OpenFace crops cut out already, uint8 BGR [n,h,w,3]

    def to_json(self) -> dict[str, Any]:
        """Plain values without those that say nothing."""
        return {
            k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items() if v or v == 0
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ClipRecord:
        """Reads what `to_json` wrote."""
        paths = {k: Path(value[k]) for k in ("path", "faces") if value.get(k)}
        return ClipRecord(**{**value, **paths})


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a clip (or, without a name, about the collection) that a person should know.

    `kind` is a fixed phrase, such as "missing file"; `detail` says what exactly, `lost` whether
    the clip was left out because of it.
    """

    kind: str
    name: str
    detail: str = ""
    lost: bool = True


@dataclass(frozen=True)
class Dataset:
    """What `read_dataset` found: usable clips in the collection's order, classes, problems."""

    source: Path
    records: tuple[ClipRecord, ...]
    classes: tuple[str, ...]
    problems: tuple[Problem, ...] = ()

    def report(self) -> str:
        """Counts, and the problems by kind with the first clips of each, as text."""
        lines = [f"{self.source}: {len(self.records)} usable clips"]
        if self.classes:
            lines.append(f"classes: {', '.join(self.classes)}")
        for split, tally in self.counts().items():
            shares = ", ".join(f"{name} {count}" for name, count in tally.items())
            lines.append(f"{split or 'no split given'}: {sum(tally.values())} ({shares})")
        return "\n".join([*lines, *problem_lines(self.problems)])

    def report_json(self) -> dict[str, Any]:
        """The report as plain values, each problem with its clip."""
        return {
            "source": str(self.source),
            "clips": len(self.records),
            "classes": list(self.classes),
            "counts": self.counts(),
            "problems": [asdict(problem) for problem in self.problems],
        }

    def counts(self) -> dict[str, dict[str, int]]:
        """Clips by split and class."""
        found: dict[str, Counter[str]] = {}
        for record in self.records:
            found.setdefault(record.split, Counter())[record.label or UNLABELLED] += 1
        order = {name: i for i, name in enumerate((*self.classes, UNLABELLED))}
        return {
            split: dict(sorted(tally.items(), key=lambda item: order.get(item[0], 0)))
            for split, tally in sorted(found.items())
        }


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """A line for each kind of problem: how often, and the first clips by name."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        lost = sum(problem.lost for problem in found)
        what = f"{kind}: {len(found)}" + (f", of which {lost} left out" if lost else "")
        named = [_told(problem) for problem in found[:SHOWN]]
        more = "; ..." if len(found) > SHOWN else ""
        lines.append(f"{what}: {'; '.join(named)}{more}")
    return lines


def _told(problem: Problem) -> str:
    return " ".join(
        part
        for part in (_short(problem.name), problem.detail and f"({_short(problem.detail)})")
        if part
    )


def _short(text: str) -> str:
    return text if len(text) <= TOLD else f"{text[:TOLD]}..."


def fit_for_a_file(name: str) -> bool:
    """Whether a clip's name can become a file's name below a folder, and stays there."""
    if not name or name in (".", "..") or len(name.encode("utf-8", "replace")) > 200:
        return False
    return not any(c in "/\\:\0" or ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in name)


def number(text: object) -> float | None:
    """A finite number in text or JSON; None for nothing. ValueError for anything else."""
    if text is None or text == "":
        return None
    value = float(str(text))
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite")
    return value


def in_order(found: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    """Distinct names: as in `order` if all are there, else by the alphabet."""
    names = set(found)
    return tuple(n for n in order if n in names) if names <= set(order) else tuple(sorted(names))
