"""Sound without text, and the corpus of a round: labelled speech and what was adopted of it.

The stage `recognizer` reads a corpus. So a round writes one, with the adopted sounds beside the
labelled ones of training; validation stays what it was. Sounds are decoded one at a time.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError, MerkitError
from merkit_training.corpus import SET_SPLITS, open_set, read_clips, read_table
from merkit_training.data.evidence import decode_record
from merkit_training.data.records import ClipRecord
from merkit_training.speech.noise.folders import SoundFolder
from merkit_training.speech.noise.levels import Wave

TAKEN = ("waveforms", "lengths", "labels")


@dataclass(frozen=True)
class Pool:
    """Sounds without text, by name."""

    records: Mapping[str, ClipRecord]
    texts: Mapping[str, str]  # where they are known; for the journal, never for training
    preprocessing: Preprocessing

    @staticmethod
    def of_corpus(corpus: Path, preprocessing: Preprocessing, split: str = "unlabelled") -> Pool:
        """The sound of a split of the corpus' clips; InvalidInputError if it has none."""
        clips = [c for c in read_clips(corpus, split) if c.path is not None]
        records = {c.name: c.record or ClipRecord(c.name, c.path) for c in clips}
        return Pool(records, {c.name: c.text for c in clips if c.text}, preprocessing)

    @staticmethod
    def of_folder(folder: Path, preprocessing: Preprocessing) -> Pool:
        """All sound files below a folder; InvalidInputError if there are none."""
        paths = {str(p.relative_to(folder)): p for p in SoundFolder(folder).paths}
        records = {name: ClipRecord(name, path) for name, path in paths.items()}
        return Pool(records, {}, preprocessing)

    def wave(self, name: str) -> Wave:
        """One sound, float32 [samples]; of a long one the middle. What cannot be decoded is of no
        samples: a pool of a hundred thousand files holds damaged ones."""
        try:
            return decode_record(self.records[name], self.preprocessing).waveform
        except MerkitError:
            return np.zeros(0, np.float32)


def round_corpus(corpus: Path, pool: Pool, adopted: Mapping[str, str], place: Path) -> Path:
    """Writes the corpus of a round to `place`, unless it is there; returns `place`.

    Raises:
        InvalidInputError: the labelled corpus is incomplete.
    """
    if (place / "utterances" / "table.csv").exists():
        return place
    labelled, rows = open_set(corpus, "utterances"), read_table(corpus / "utterances" / "table.csv")
    if missing := [name for name in TAKEN if name not in labelled.arrays]:
        raise InvalidInputError(f"{corpus}/utterances holds no {missing[0]}.npy", "a complete set")
    p, before = pool.preprocessing, labelled["waveforms"]
    widest = round(p.max_audio_seconds * p.sample_rate) if adopted else 0
    count, width = len(before) + len(adopted), max(before.shape[1], widest)
    target = place / "utterances"
    target.mkdir(parents=True, exist_ok=True)
    waves = np.lib.format.open_memmap(target / "waveforms.npy", "w+", np.int16, (count, width))
    waves[: len(before), : before.shape[1]] = before
    lengths = np.concatenate([labelled["lengths"], np.zeros(len(adopted), np.int64)])
    for i, name in enumerate(adopted, len(before)):
        wave = pool.wave(name)[:width]
        waves[i, : len(wave)] = np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16)
        lengths[i] = len(wave)
    waves.flush()
    zeros = np.zeros(len(adopted), np.int64)
    np.save(target / "lengths.npy", lengths)
    np.save(target / "labels.npy", np.concatenate([labelled["labels"], zeros]))
    np.save(target / "split.npy", np.concatenate([labelled.split, zeros.astype(np.int8)]))
    for name in ("card.json", "sentences"):
        source = corpus / name
        if source.is_dir():
            shutil.copytree(source, place / name, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy2(source, place / name)
    texts = [(r.get("name", ""), r.get("text", ""), r["split"]) for r in rows]
    texts += [(name, text, SET_SPLITS[0]) for name, text in adopted.items()]
    _write_table(target / "table.csv", texts)
    return place


def _write_table(path: Path, rows: list[tuple[str, str, str]]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("name", "text", "split"), *rows])
    temporary.replace(path)
