"""A corpus of a few samples in the synthetic corpus's layout, made in milliseconds.

The label is a face's colour and a sound's pitch: enough to see that a stage learns and resumes,
whatever becomes of the real generator.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit_training.labels import FACE8, MER6
from merkit_training.runs import write_json

SIDE, TILES, SECONDS, PROSODY = 64, 4, 1.0, 8


def write_tiny_corpus(
    root: Path, train: int = 96, val: int = 24, seed: int = 0, units: bool = True
) -> Path:
    """Writes the single-modality sets below `root`, each with `train` + `val` samples; the faces'
    action units (here their colour) on request."""
    rng = np.random.default_rng(seed)
    split = np.repeat(np.array([0, 1], np.int8), (train, val))
    count = len(split)
    faces = rng.integers(0, len(FACE8), count)
    arrays = {"images": _coloured(rng, faces, ()), "labels": faces, "split": split}
    known = {"units": _bits(faces).astype(np.float32)} if units else {}
    _save(root / "faces", arrays | known)
    labels = rng.integers(0, len(MER6), count)
    order = np.array([FACE8.index(name) for name in MER6])
    images = _coloured(rng, order[labels], (TILES,))
    known = {k: np.repeat(_bits(order[labels])[:, None], TILES, 1) for k in known}
    _save(root / "sequences", {"images": images, "labels": labels, "split": split} | known)
    _save(root / "utterances", {**_sounds(rng, labels), "labels": labels, "split": split})
    rows = [_row(i, int(label), i < train) for i, label in enumerate(labels)]
    for name in ("utterances", "sentences"):
        _write_csv(root / name / "table.csv", rows)
    write_json(root / "card.json", {"seed": seed, "train": train, "val": val})
    return root


def _coloured(
    rng: np.random.Generator, labels: NDArray[np.int64], frames: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Noise around a colour of the label's own: red, green and blue are its three bits."""
    colours = 60 + 130 * _bits(labels)
    noise = rng.integers(-40, 41, (len(labels), *frames, SIDE, SIDE, 3))
    shape = (len(labels), *(1 for _ in frames), 1, 1, 3)
    return (colours.reshape(shape) + noise).astype(np.uint8)


def _bits(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    return (labels[:, None] >> np.arange(3)) & 1


def _sounds(rng: np.random.Generator, labels: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
    samples = round(16_000 * SECONDS)
    lengths = rng.integers(samples // 2, samples + 1, len(labels))
    time = np.arange(samples) / 16_000
    waves = 8_000 * np.sin(2 * np.pi * (150 + 100 * labels[:, None]) * time)
    waves[time[None] * 16_000 >= lengths[:, None]] = 0
    prosody = np.zeros((len(labels), PROSODY), np.float32)
    prosody[:, 0] = labels - labels.mean()
    return {"waveforms": waves.astype(np.int16), "lengths": lengths, "prosody": prosody}


def _row(number: int, label: int, train: bool) -> dict[str, str]:
    name = MER6[label]
    return {
        "name": f"u{number:05d}",
        "discrete": name,
        "language": "en",
        "voice": "m1",
        "sentence": str(number),
        "text": f"number {number} is {name}",
        "category": name,
        "tone_class": name,
        "word_class": name,
        "split": "train" if train else "val",
    }


def _save(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def _write_csv(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
