"""What leaving clean sound unseparated saves and costs, as a section of a hearing study's page.

`clean_from_db` spares the dearest step of the chain where an estimate says that sound is clean
(seed 2.4.2). Off by default, it can only be switched on by who knows how often it would skip, how
far the estimate is to be trusted, and what becomes of the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit_training.speech.hearing.cells import Hearing, chain_name
from merkit_training.speech.hearing.conditions import conditions_of
from merkit_training.speech.hearing.figures import (
    SEED_RULE,
    Cell,
    Values,
    agreed,
    by,
    found_of,
    score,
    spread,
    table,
)
from merkit_training.speech.hearing.plan import TESTS, Row

Estimates = Mapping[tuple[str, str], Sequence[float | None]]
"""By split and condition, of each clip in dB; None: too little sound to tell."""


def skipping(hearing: Hearing, seeds: Sequence[int], classes: int) -> list[str]:
    """Markdown: how well the estimate tells noise, how often it skips, and WAF then."""
    study = hearing.study
    keys = [c.key for c in conditions_of(study.snrs)]
    found = {(s, k): hearing.estimated(s, k) for s in TESTS for k in keys}
    seem = {cell: levels for cell, levels in found.items() if levels is not None}
    if len(seem) < len(found):
        return []
    parts = ["## Skipping separation", (
        "With `clean_from_db` in the recipe's `[hearing]`, sound that is estimated to be as clean "
        "or cleaner is not taken apart: separation is spared on these clips, and two of three "
        "recognitions (`python -m merkit_bench.hearing` says what each takes). The estimate "
        f"(WADA-SNR) on {study.emotion_clips or 'all'} clips of each test split, in dB, mean ± "
        "standard deviation over clips; rank correlation (Spearman) with the level that was mixed, "
        "clean above all."
    ), _tracking(hearing, seem), (
        "Clips in percent that are not separated, by the estimate from which on sound is clean."
    ), _shares(study.clean_from, seem, keys)]  # fmt: skip
    rows = [r for row in study.separators for r in _scores(hearing, row, seem, seeds, classes)]
    if not rows:
        return parts
    return [*parts, (
        "Weighted average F1 in percent with the seed's rule, mean of the three test splits; then "
        "the mean over all conditions, how that differs from never skipping, and `better` or "
        "`worse` where every seed agrees."
    ), table(["", *keys, "all", "against never"], rows)]  # fmt: skip


def _tracking(hearing: Hearing, seem: Estimates) -> str:
    """By kind of noise, the estimate at each level."""
    levels = sorted(hearing.study.snrs, reverse=True)
    rows = []
    for kind in ("ambient", "babble"):
        keys = ["clean", *(f"{kind}:{snr:g}" for snr in levels)]
        known = [np.array(_known(seem, key)) for key in keys]
        ranks = np.repeat(-np.arange(len(keys)), [len(each) for each in known])
        told = [f"{e.mean():.1f} ± {e.std():.1f}" if len(e) else "" for e in known]
        rows.append([kind, *told, f"{correlation(ranks, np.concatenate(known)):.2f}"])
    return table(["", "clean", *(f"{snr:g}" for snr in levels), "rank correlation"], rows)


def _shares(limits: Sequence[float], seem: Estimates, keys: Sequence[str]) -> str:
    rows = []
    for limit in limits:
        each = [
            100 * float(np.mean([skip for s in TESTS for skip in skips(seem[s, key], limit)]))
            for key in keys
        ]
        rows.append([f"from {limit:g} dB", *(f"{share:.0f}" for share in each)])
    return table(["", *keys], rows)


def _scores(
    hearing: Hearing, row: Row, seem: Estimates, seeds: Sequence[int], classes: int
) -> list[list[str]]:
    """The table's rows of a separator; none where it is not measured under all seeds."""
    keys = [c.key for c in conditions_of(hearing.study.snrs)]
    cells = {(s, k): found_of(hearing, chain_name(row, s, k), seeds) for s in TESTS for k in keys}
    if not all(cells.values()):
        return []

    def waf_of(key: str, limit: float) -> Values:
        """By seed."""
        splits = [
            [score(c, spared(c, seem[s, key], limit), classes) for c in cells[s, key]]
            for s in TESTS
        ]
        return list(np.mean(splits, axis=0).tolist())

    rows, never = [], np.zeros(0)
    for limit in (float("inf"), *hearing.study.clean_from):
        each = [waf_of(key, limit) for key in keys]
        whole = np.mean(each, axis=0)
        name = f"{row.name}, never" if limit == float("inf") else f"{row.name}, from {limit:g} dB"
        never = whole if limit == float("inf") else never
        gains = (whole - never).tolist()
        told = f"{spread(gains, 100, '+')} {agreed(gains)}".strip() if any(gains) else ""
        values = [spread(v, 100) for v in (*each, whole.tolist())]
        rows.append([name, *values, told])
    return rows


def spared(cell: Cell, levels: Sequence[float | None], limit: float) -> list[int]:
    """Classes by the seed's rule where sound that seems as clean as `limit` dB is not separated."""
    ruled, original = by(cell, SEED_RULE), by(cell, 1.0)
    pairs = zip(ruled, original, skips(levels, limit), strict=True)
    return [kept if skip else chosen for chosen, kept, skip in pairs]


def skips(levels: Sequence[float | None], limit: float) -> list[bool]:
    """Which sounds seem that clean; `merkit.speech.snr.is_clean`."""
    return [level is not None and level >= limit for level in levels]


def correlation(first: NDArray[np.int64], second: NDArray[np.float64]) -> float:
    """Spearman's: Pearson's of the ranks, equal values sharing their mean; NaN of constants."""
    if len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        return float("nan")
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _known(seem: Estimates, key: str) -> list[float]:
    return [level for split in TESTS for level in seem[split, key] if level is not None]
