"""Pseudo-labels against the truth, where somebody knows it: after the run, never during it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError
from merkit.voting import NOBODY
from merkit_training.corpus import read_labels


def read_truth(paths: Sequence[Path], classes: Sequence[str]) -> dict[str, int]:
    """Classes by clip name, from truth.jsonl of a drawn corpus or MER's label files.

    Raises:
        InvalidInputError: a file is missing or malformed, or names a class that is unknown.
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            if path.suffix == ".jsonl":
                rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
                found |= {str(row["name"]): str(row["discrete"]) for row in rows}
            else:
                found |= read_labels(path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(
                f"{path} cannot be read ({type(error).__name__}: {error})",
                "truth.jsonl, or labels in CSV (name,discrete)",
                "correct --truth",
            ) from None
    if unknown := sorted(set(found.values()) - set(classes)):
        raise InvalidInputError(
            f"the truth names the class {unknown[0]!r}", f"among {', '.join(classes)}", "correct it"
        )
    return {name: classes.index(label) for name, label in found.items()}


def known_labels(names: Sequence[str], truth: Mapping[str, int]) -> NDArray[np.int8]:
    """The true class int8 [n] of each clip of the pool; NOBODY where it is unknown."""
    return np.array([truth.get(name, NOBODY) for name in names], np.int8)


def quality(
    labels: NDArray[np.int8],
    new: NDArray[np.bool_],
    truth: NDArray[np.int8],
    asked: NDArray[np.bool_],
    classes: int,
) -> dict[str, Any]:
    """Precision and recall of pseudo-labels, over clips whose truth is known.

    Args:
        labels: [n] what the pool's clips are called after a round.
        new: [n] which of them were adopted in this round.
        truth: [n].
        asked: [n] which clips take part in mining.
        classes: number of classes.

    Returns:
        `precision` of all adopted clips, `precision_new` of the new ones, `recall` (right labels
        among all clips that take part), and precision and recall of each class; None where there
        is nothing to divide by.
    """
    judged = asked & (truth != NOBODY)
    given, right = judged & (labels != NOBODY), judged & (labels == truth)
    each = [
        (
            _share((right & (labels == c)).sum(), (given & (labels == c)).sum()),
            _share((right & (truth == c)).sum(), (judged & (truth == c)).sum()),
        )
        for c in range(classes)
    ]
    return {
        "precision": _share(right.sum(), given.sum()),
        "precision_new": _share((right & new).sum(), (given & new).sum()),
        "recall": _share(right.sum(), judged.sum()),
        "class_precision": [p for p, _ in each],
        "class_recall": [r for _, r in each],
    }


def _share(part: np.integer[Any], whole: np.integer[Any]) -> float | None:
    return float(part / whole) if whole else None
