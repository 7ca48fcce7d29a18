"""A user's own labelled clips: a CSV file, and what the bundle says of each clip in it."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merkit.client import Client
from merkit.contract import Contract
from merkit.entry import Clip
from merkit.errors import InputError, InvalidInputError, MerkitError
from merkit.results import Prediction

PATHS, LABELS, TEXTS = (
    ("path", "clip", "name"),
    ("label", "discrete"),
    ("text", "english", "chinese"),
)
"""Names that a column may have, the first found counts."""
FEWEST = 20
"""Labelled clips below which nothing is fitted."""
TOLD = 5


@dataclass(frozen=True)
class Labelled:
    """What the branches said of n labelled clips, and which clips said nothing."""

    scores: NDArray[np.float64]  # branch_scores [n, voters, classes], zeros where one abstained
    labels: NDArray[np.int64]  # [n]
    places: NDArray[np.int64]  # [n], which of the clips asked about each is
    failed: tuple[tuple[str, MerkitError], ...]  # name and error of each clip without an answer

    @property
    def voted(self) -> NDArray[np.bool_]:
        """Which branches voted, [n, voters]."""
        return np.asarray((self.scores != 0).any(axis=2))


def read_labels(path: Path, contract: Contract) -> tuple[list[Clip], NDArray[np.int64]]:
    """Clips and their labels; paths in the file are relative to it.

    Raises:
        InvalidInputError: no such file, no column of clips or labels, an unknown label, fewer
            than FEWEST clips, or one class only.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [
                {(k or "").strip().lower(): v for k, v in r.items()} for r in csv.DictReader(file)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or str(error)
        found = f"{path} cannot be read ({why})"
        raise InvalidInputError(found, "a CSV file in UTF-8", "check the path") from None
    header = set(rows[0]) if rows else set()
    at, named, said = (
        next((name for name in names if name in header), None) for names in (PATHS, LABELS, TEXTS)
    )
    if named is None or (at is None and said is None):
        raise InvalidInputError(
            f"{path} has the columns {', '.join(sorted(header)) or 'none'}",
            f"one of {', '.join(PATHS)} (or words alone) and one of {', '.join(LABELS)}",
            "add a header",
        )
    numbers = {label.lower(): i for i, label in enumerate(contract.labels)}
    given = [(row.get(named) or "").strip() for row in rows]
    if unknown := sorted({label for label in given if label.lower() not in numbers}):
        raise InvalidInputError(
            f"{path} has the labels {', '.join(map(repr, unknown[:TOLD]))}",
            f"the bundle's own: {', '.join(contract.labels)}",
            "correct them, or leave those clips out",
        )
    clips = []
    for row in rows:
        media = (row.get(at) or "").strip() if at else ""
        clips.append(Clip(path.parent / media if media else None, row.get(said or "") or None))
    labels = np.array([numbers[label.lower()] for label in given], np.int64)
    _enough(labels, str(path), contract)
    return clips, labels


def ask(client: Client, clips: Sequence[Clip], labels: NDArray[np.int64]) -> Labelled:
    """What each branch says of the clips; a clip that cannot be judged is told, not counted.

    Raises:
        MerkitError: of the bundle or the backend, which no other clip would escape.
        InvalidInputError: too few clips are left.
    """
    contract = client.backend.contract
    scores, kept, failed = [], [], []
    answers = client.predict_many(clips)
    with closing(answers):
        for i, (clip, answer) in enumerate(zip(clips, answers, strict=True)):
            if isinstance(answer, InputError):
                failed.append((os.path.basename(clip.name), answer))  # noqa: PTH119  (may be words)
                continue
            if isinstance(answer, MerkitError):
                raise answer
            scores.append(branch_scores(answer, contract))
            kept.append(i)
    found = labels[kept]
    _enough(found, "what could be read", contract)
    places = np.array(kept, np.int64)
    return Labelled(np.array(scores, np.float64), found, places, tuple(failed))


def branch_scores(answer: Prediction, contract: Contract) -> list[list[float]]:
    """[voters, classes], zeros where a branch abstained."""
    votes = (answer.votes[voter.name] for voter in contract.voters)
    nothing = dict.fromkeys(contract.labels, 0.0)
    return [list((vote.scores if vote else nothing).values()) for vote in votes]


def _enough(labels: NDArray[np.int64], where: str, contract: Contract) -> None:
    if len(labels) < FEWEST or len(set(labels.tolist())) < 2:
        seen = ", ".join(contract.labels[i] for i in sorted(set(labels.tolist()))) or "none"
        raise InvalidInputError(
            f"{where} holds {len(labels)} labelled clips of the classes: {seen}",
            f"at least {FEWEST} clips, of two classes or more",
            "label more clips",
        )
