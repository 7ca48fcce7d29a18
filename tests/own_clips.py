"""A small collection of one's own: talking clips of three classes, and rows with every fault."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import odd_media

from merkit_training.synth.clips import film, write_mp4
from merkit_training.synth.faces import identity, random_view
from merkit_training.synth.model import FACES, UNITS
from merkit_training.synth.performance import perform

CLASSES = {"calm": "neutral", "bright": "happy", "tense": "angry"}
"""Own classes, and the face that shows each."""
COLUMNS = ("path", "label", "text", "language", "speaker", "split", "start", "end")


def write_clip(path: Path, label: str, number: int, seconds: float = 1.0) -> None:
    """A face that shows `label` and a tone of its pitch, as mp4."""
    rng = np.random.default_rng(number)
    pitch = 200 * (1 + list(CLASSES).index(label))
    time = np.arange(int(16_000 * seconds)) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * rng.standard_normal(time.size)
    apex = np.array(FACES[CLASSES[label]]) + 0.1 * rng.standard_normal(len(UNITS))
    view = random_view(rng, 160, 1.0, 2.0)
    frames = film(
        identity(number % 7, 1), perform(rng, 0), apex, view, wave.astype(np.float32), 8, 160
    )
    write_mp4(path, frames, 8, wave.astype(np.float32))


def write_own_clips(folder: Path, each: int = 6) -> list[dict[str, str]]:
    """`each` clips of every class below `folder`; the rows that name them."""
    (folder / "media").mkdir(parents=True)
    rows = []
    for number in range(each * len(CLASSES)):
        label = list(CLASSES)[number % len(CLASSES)]
        path = folder / "media" / f"clip{number:03d}.mp4"
        write_clip(path, label, number)
        text = f"number {number} feels {label}"
        rows.append(row(f"media/{path.name}", label, text=text, speaker=f"s{number // 3}"))
    return rows


def row(path: str, label: str, **cells: str) -> dict[str, str]:
    """A row of the table."""
    return dict.fromkeys(COLUMNS, "") | {"path": path, "label": label} | cells


def write_faulty(folder: Path) -> list[dict[str, str]]:
    """Files and rows with what goes wrong in collections; the names say what."""
    media = folder / "media"
    silence = np.zeros((1, 16_000), np.float32)
    gray = [odd_media.gray(90)] * 10
    (media / "corrupt.mp4").write_bytes(b"no media at all" * 99)
    (media / "empty.mp4").write_bytes(b"")
    (media / "sound.wav").write_bytes(odd_media.float_wav(odd_media.tone(1.0)))
    (media / "mute.mp4").write_bytes(odd_media.movie(gray))
    (media / "silent.mp4").write_bytes(odd_media.movie(gray, sound=silence))
    words = {"text": "some words", "speaker": "odd", "split": "train"}
    return [
        row("media/corrupt.mp4", "calm", **words),
        row("media/empty.mp4", "calm", **words),
        row("media/gone.mp4", "calm", **words),
        row("media/sound.wav", "calm", **words | {"text": ""}),
        row("media/mute.mp4", "calm", **words),
        row("media/silent.mp4", "calm", **words | {"text": ""}),
        row("media/clip000.mp4", "calm", **words),
        row("media/clip001.mp4", "cakm", **words | {"start": "0.5"}),
        row("media/clip002.mp4", "calm", **words | {"start": "nine"}),
        row("media/clip004.mp4", "calm", **words | {"start": "0.1", "split": "tomorrow"}),
    ]


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """The table as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path
