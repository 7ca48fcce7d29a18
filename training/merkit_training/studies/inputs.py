"""The clips of a corpus, decoded once for all rows of all studies.

Decoding and finding faces take most of a feature's time and are the same for every encoder. Were
each row to repeat them, a study of ten rows and three seeds would spend hours on what it does not
compare.

    DIR/<split>/{crops.npy uint8 [n, f, s, s, 3], face_count.npy, waveform.npy float32 [n, samples],
                 waveform_length.npy, clips.json}; crops and waveforms are right padded
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from merkit.bundle import sha256_file
from merkit.contract import Preprocessing
from merkit_training.corpus import Clip, read_clips
from merkit_training.data.evidence import decode_record, faces_in
from merkit_training.data.records import ClipRecord
from merkit_training.runs import read_json, write_json

DECODERS = 2
ARRAYS = ("crops", "face_count", "waveform", "waveform_length")


@dataclass(frozen=True)
class Inputs:
    """A split, decoded."""

    arrays: Mapping[str, NDArray[Any]]  # by ARRAYS, memory maps
    names: tuple[str, ...]
    texts: tuple[str, ...]
    identities: tuple[str, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)


def corpus_mark(corpus: Path) -> str:
    """Which corpus it is: the hash of its card, which holds those of its data."""
    card = corpus / "card.json"
    return sha256_file(card) if card.is_file() else str(corpus.resolve())


def decoded(corpus: Path, split: str, preprocessing: Preprocessing, cache: Path) -> Inputs:
    """Reads a split from `cache`, or decodes it there first.

    Another corpus, or other preprocessing, makes another folder. Raises InvalidInputError as
    `read_clips`.
    """
    clips = read_clips(corpus, split)
    origin = {"preprocessing": asdict(preprocessing), "corpus": corpus_mark(corpus)}
    mark = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:12]
    folder = cache / f"{split}-{mark}"
    if not (folder / "clips.json").exists():
        _decode(clips, preprocessing, folder)
    facts = read_json(folder / "clips.json")
    texts = {key: tuple(facts[key]) for key in ("names", "texts", "identities")}
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return Inputs(arrays, **texts, labels=np.array(facts["labels"], np.int64))


def _decode(clips: Sequence[Clip], p: Preprocessing, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        "crops": ((p.frames_per_clip, p.face_size, p.face_size, 3), np.uint8),
        "face_count": ((1,), np.int64),
        "waveform": ((round(p.max_audio_seconds * p.sample_rate),), np.float32),
        "waveform_length": ((1,), np.int64),
    }
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, (len(clips), *shape))
        for name, (shape, kind) in shapes.items()
    }

    def one(i: int) -> None:
        record = clips[i].record or ClipRecord(clips[i].name, clips[i].path)
        clip = decode_record(record, p)
        crops = faces_in(record, clip, p).crops
        arrays["crops"][i, : len(crops)], arrays["face_count"][i] = crops, len(crops)
        length = len(clip.waveform)
        arrays["waveform"][i, :length], arrays["waveform_length"][i] = clip.waveform, length

    with ThreadPoolExecutor(DECODERS) as pool:
        done = pool.map(one, range(len(clips)))
        list(tqdm(done, total=len(clips), desc=folder.name, unit="clip", mininterval=1))
    for array in arrays.values():
        array.flush()
    facts = {
        "names": [clip.name for clip in clips],
        "texts": [clip.text for clip in clips],
        "identities": [clip.group or clip.name for clip in clips],
        "labels": [clip.label for clip in clips],
    }
    write_json(folder / "clips.json", facts)
