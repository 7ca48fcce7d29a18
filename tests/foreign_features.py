"""Feature folders without encoders: a problem of which one group carries all that there is."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

LABELS = ("angry", "happy", "sad")
WIDTHS = {"signal": 8, "noise": 5, "static": 6}
SPLITS = {"train": 90, "val": 30, "test": 60}
ABSENT = "test_0001"
"""A clip of which `signal` has nothing."""


def write_folders(root: Path, seed: int = 0) -> tuple[Path, Path]:
    """Writes signal-UTT, noise-UTT, static-FRA and labels.csv; returns the folder and the file."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((len(LABELS), WIDTHS["signal"]))
    rows = []
    for split, count in SPLITS.items():
        for i in range(count):
            name, label = f"{split}_{i:04d}", int(rng.integers(len(LABELS)))
            made = {
                "signal-UTT": centres[label] + rng.standard_normal(WIDTHS["signal"]),
                "noise-UTT": rng.standard_normal(WIDTHS["noise"]),
                "static-FRA": rng.standard_normal((1 + i % 4, WIDTHS["static"])),
            }
            if name == ABSENT:
                made["signal-UTT"] *= 0
            for folder, value in made.items():
                (root / folder).mkdir(parents=True, exist_ok=True)
                np.save(root / folder / f"{name}.npy", value.astype(np.float32))
            speaker, room = f"{split}{i % 9}", "ab"[i % 2]
            valence = f"{label - 1 + rng.normal() / 9:.3f}"
            rows.append([name, LABELS[label], valence, speaker, split, room])
    write_table(root / "labels.csv", rows)
    return root, root / "labels.csv"


def write_table(
    path: Path,
    rows: list[list[str]],
    header: tuple[str, ...] = ("name", "discrete", "valence", "speaker", "split", "room"),
) -> None:
    """A label file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
