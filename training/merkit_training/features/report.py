"""What became of each clip: nothing is dropped without a line that says why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from merkit_training.runs import write_json

SHOWN = 10
"""Clips with problems that are printed; the file lists all."""


@dataclass(frozen=True)
class ClipOutcome:
    """A clip's feature is `computed`, `zeros` (it lacks what the encoder reads) or `none`."""

    feature: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """An extraction, as `<name>.json` beside the feature folders."""

    name: str
    encoder: str  # as the user named it
    identity: str
    width: int
    preprocessing: Mapping[str, Any]
    clips: Mapping[str, ClipOutcome]
    other: Mapping[str, tuple[str, ...]]  # what of the source is no clip
    measured: Mapping[str, float] = field(default_factory=dict)

    def counts(self) -> Counter[str]:
        """Clips by what became of their feature."""
        return Counter(outcome.feature for outcome in self.clips.values())

    def write(self, path: Path) -> None:
        """Writes the report; clips without a problem are counted only."""
        plain = asdict(self)
        told = {name: o for name, o in plain["clips"].items() if o["problems"]}
        write_json(path, {**plain, "counts": dict(self.counts()), "clips": told})

    def lines(self) -> list[str]:
        """The report for a reader: counts, then the first clips with problems."""
        counts = self.counts()
        kinds = ("computed", "zeros", "none")
        told = [f"{self.name}: {len(self.clips)} clips, {self.width} wide; "]
        told[0] += ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])
        bad = {name: o.problems for name, o in self.clips.items() if o.problems} | dict(self.other)
        for clip, problems in list(bad.items())[:SHOWN]:
            outcome = self.clips.get(clip)
            left = f" (feature: {outcome.feature})" if outcome else ""
            told.append(f"  {clip}: {', '.join(problems)}{left}")
        if len(bad) > SHOWN:
            told.append(f"  and {len(bad) - SHOWN} more, all in {self.name}.json")
        return told


def recorded_identity(path: Path) -> str | None:
    """Which encoder's features a report speaks of; None if there is no readable report."""
    try:
        return str(json.loads(path.read_text("utf-8"))["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
