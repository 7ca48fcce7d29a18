"""What the sections of a hearing study's page have in common: cells, scores, spreads and tables.

A WAF with and one without separation must be one function of one cell, or they could not be
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit_training.metrics import waf
from merkit_training.speech.hearing.cells import Hearing
from merkit_training.speech.hearing.chain import chosen

Values = list[float]
"""One for each seed."""
Cell = dict[str, Any]
"""What `measure.emotion` found of a split under a condition, with one seed's chain."""
SEED_RULE = 0.1  # the seed's threshold
FEWEST = 3  # seeds on which a direction is decided


def found_of(hearing: Hearing, name: str, seeds: Sequence[int]) -> list[Cell]:
    """What was measured under all seeds; nothing if one is missing."""
    found = [hearing.measured(name, seed) for seed in seeds]
    there = [f for f in found if f is not None]
    return there if len(there) == len(found) else []


def by(cell: Cell, threshold: float) -> list[int]:
    """Classes if the rule had this threshold; none is over 1, which leaves the original."""
    pairs = zip(cell["heard"], cell["texts"], strict=True)
    return [classes[chosen(texts, threshold)] for classes, texts in pairs]


def score(cell: Cell, labels: list[int], classes: int) -> float:
    """WAF; a clip without an answer counts as wrong."""
    truth, given = _labels(cell["truth"]), _labels(labels)
    return waf(truth, np.where(given < 0, (truth + 1) % classes, given), classes)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def spread(values: Values, times: float = 1.0, sign: str = "") -> str:
    """Mean ± standard deviation, of one value itself; `sign` "+" shows the mean's."""
    scaled = np.array(values) * times
    mean = f"{scaled.mean():{sign}.1f}"
    return mean if len(scaled) < 2 else f"{mean} ± {scaled.std(ddof=1):.1f}"


def agreed(gains: Values) -> str:
    """`better` or `worse` where every seed says so, else nothing."""
    if len(gains) >= FEWEST and all(g > 0 for g in gains):
        return "better"
    return "worse" if len(gains) >= FEWEST and all(g < 0 for g in gains) else ""


def _labels(values: list[int]) -> NDArray[np.int64]:
    return np.asarray(values, np.int64)
