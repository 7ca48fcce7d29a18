"""Which clip trains, validates, tests: stratified by class, whole speakers at a time, by seed.

Were a speaker's clips on both sides, a score would measure how well voices and faces are known
again. Splits that the data states are kept; what it leaves open is divided here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from merkit.errors import InvalidInputError
from merkit_training.data.config import DataConfig
from merkit_training.data.records import UNLABELLED, ClipRecord, Problem

TAUGHT = "encoders"
"""The part of `train` that teaches encoders and that fusion never sees."""
LEAST_HALVED = 10
"""Training clips of the rarest class below which encoders and fusion share all of them."""


def assign(records: Sequence[ClipRecord], config: DataConfig) -> tuple[list[str], list[Problem]]:
    """The split of each record: train, val, a test split, or unlabelled.

    Raises:
        InvalidInputError: nothing is labelled, or training or validation would be empty.
    """
    splits = [r.split if r.label else UNLABELLED for r in records]
    by_group: dict[str, Counter[str]] = {}
    for record, split in zip(records, splits, strict=True):
        if record.label and split and record.group:
            by_group.setdefault(record.group, Counter())[split] += 1
    for i, record in enumerate(records):
        if record.label and not splits[i] and record.group in by_group:
            splits[i] = by_group[record.group].most_common(1)[0][0]
    has_val = "val" in splits
    has_test = any(split.startswith("test") for split in splits)
    shares = {
        "val": 0.0 if has_val else config.val_share,
        "test": 0.0 if has_test or not any(s == "" for s in splits) else config.test_share,
    }
    shares = {"train": 1 - sum(shares.values())} | {k: v for k, v in shares.items() if v}
    chosen = [i for i, s in enumerate(splits) if s == "" or (s == "train" and not has_val)]
    problems: list[Problem] = []
    if len(shares) > 1 or any(splits[i] == "" for i in chosen):
        divided, problems = divide([records[i] for i in chosen], shares, config.seed)
        for i, split in zip(chosen, divided, strict=True):
            splits[i] = split
    for needed in ("train", "val"):
        if needed not in splits:
            raise InvalidInputError(
                f"no labelled clip is left for {needed}",
                "clips to train with and others to choose by",
                "add clips, or correct the column split",
            )
    return splits, [*problems, *_thin(records, splits)]


def halves(
    records: Sequence[ClipRecord], splits: Sequence[str], config: DataConfig
) -> tuple[list[bool], list[bool], list[Problem]]:
    """Which clips teach encoders and which teach fusion, and what there is to say about it.

    Fusion that trains on clips its encoders know trusts features that are better there than they
    will ever be again. With few clips two halves would teach neither, so they share.
    """
    train = [i for i, split in enumerate(splits) if split == "train"]
    rarest = min(Counter(records[i].label for i in train).values())
    if not 0 < config.encoder_share < 1 or rarest < LEAST_HALVED:
        why = "encoder_share says so" if rarest >= LEAST_HALVED else f"a class has {rarest} clips"
        both = [split == "train" for split in splits]
        detail = f"encoders and fusion learn from the same clips ({why})"
        return both, both, [Problem("shared clips", "", detail, lost=False)]
    shares = {TAUGHT: config.encoder_share, "fusion": 1 - config.encoder_share}
    parts, _ = divide([records[i] for i in train], shares, config.seed + 1)
    taught = {i for i, part in zip(train, parts, strict=True) if part == TAUGHT}
    return (
        [i in taught for i in range(len(records))],
        [split == "train" and i not in taught for i, split in enumerate(splits)],
        [],
    )


def divide(
    records: Sequence[ClipRecord], shares: Mapping[str, float], seed: int
) -> tuple[list[str], list[Problem]]:
    """Divides labelled clips by `shares`, whole groups at a time, each class alike.

    The largest groups are placed first, each where its classes are missed most.
    """
    problems: list[Problem] = []
    keys = [record.group or f"/{i}" for i, record in enumerate(records)]
    if len(set(keys)) < 2 * len(shares):
        if any(record.group for record in records):
            detail = f"{len(set(keys))} speakers are too few to keep {len(shares)} splits apart"
            problems.append(Problem("split speakers", "", detail, lost=False))
        keys = [f"/{i}" for i in range(len(records))]
    classes = sorted({record.label or "" for record in records})
    members: dict[str, list[int]] = {}
    for i in np.random.default_rng(seed).permutation(len(records)).tolist():
        members.setdefault(keys[i], []).append(i)
    numbers = np.array([classes.index(record.label or "") for record in records])
    holds = {k: np.bincount(numbers[rows], minlength=len(classes)) for k, rows in members.items()}
    total = sum(holds.values(), np.zeros(len(classes), np.int64))
    wanted = {name: share * total for name, share in shares.items()}
    missing = {name: counts.astype(np.float64) for name, counts in wanted.items()}
    found = [""] * len(records)
    for key in sorted(members, key=lambda k: -len(members[k])):
        need = {n: float((holds[key] * missing[n] / (wanted[n] + 1e-9)).sum()) for n in shares}
        best = max(need, key=lambda n: need[n])
        missing[best] -= holds[key]
        for i in members[key]:
            found[i] = best
    return found, problems


def _thin(records: Sequence[ClipRecord], splits: Sequence[str]) -> list[Problem]:
    """Classes that a split lacks."""
    classes = {record.label for record in records if record.label}
    found = []
    for split in sorted(set(splits) - {UNLABELLED}):
        here = {r.label for r, s in zip(records, splits, strict=True) if s == split}
        for name in sorted(c for c in classes - here if c):
            detail = f"{split} has no clip of {name!r}"
            found.append(Problem("class missing", "", detail, lost=False))
    return found
