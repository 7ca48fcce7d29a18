"""The clips that precisions are judged on: decoded once, kept with the search until it is done.

Calibration takes clips of the training split, judgement those of the validation split; the test
splits choose nothing, or their figures would no longer be tests. A run without data (random
weights) has no task: there, made-up clips show how far a precision bends the features.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from merkit.bundle import sha256_file
from merkit.contract import Contract, canonical
from merkit.errors import InvalidInputError
from merkit.pipeline import DECODED_IN
from merkit_export import samples
from merkit_training.corpus import Clip, clip_splits, read_clips
from merkit_training.data.records import ClipRecord
from merkit_training.evaluation.material import look
from merkit_training.labels import classes_of

CALIBRATION, JUDGEMENT = "train", "val"
CARD = "card.json"
MADE_UP = 12

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Material:
    """Clips by number, as `pipeline.DECODED_IN`.

    Attributes:
        names: what they are called; part of what makes a judgement the same again.
        read: the tensors of a clip.
        truth: int64 [clips], numbers of the contract's labels; None where there is no task.
    """

    names: tuple[str, ...]
    read: Callable[[int], Tensors]
    truth: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Tensors]:
        return (self.read(number) for number in range(len(self)))


def corpus_material(
    corpus: Path, split: str, limit: int, contract: Contract, cache: Path
) -> Material:
    """Clips of a split, spread evenly over it by name; decoded into `cache` when first needed.

    Raises:
        InvalidInputError: no such split, or labels that the contract does not have.
    """
    if split not in clip_splits(corpus):
        raise InvalidInputError(
            f"{corpus} has no clips of the split {split!r}",
            "a corpus with train and val, as merkit-train made the run from",
            "give the run's corpus with --corpus",
        )
    clips = _spread([c for c in read_clips(corpus, split) if c.label is not None], limit)
    classes = classes_of(corpus)
    if unknown := sorted(set(classes) - set(contract.labels)):
        raise InvalidInputError(
            f"{corpus} has the label {unknown[0]!r}",
            f"labels of the run: {', '.join(contract.labels)}",
            "give the corpus that the run was trained on",
        )
    number = [contract.labels.index(name) for name in classes]
    paths = [_kept(cache / split, corpus, clip, contract) for clip in clips]
    waiting = [(c, p) for c, p in zip(clips, paths, strict=True) if not p.exists()]
    for clip, path in tqdm(waiting, desc=f"decode {split}", unit="clip", disable=None):
        _keep(clip, path, contract)
    return Material(
        tuple(clip.name for clip in clips),
        lambda i: _found(paths[i]),
        np.array([number[clip.label or 0] for clip in clips], np.int64),
    )


def made_up_material(contract: Contract, seed: int, count: int = MADE_UP) -> Material:
    """Noise with structure, of everyday sizes and all modalities (`samples`)."""
    p = contract.preprocessing
    rng = np.random.default_rng(seed)
    sizes = [
        (int(rng.integers(1, p.frames_per_clip + 1)),
         float(rng.uniform(0.2, 0.5) * min(p.max_audio_seconds, 10.0)),
         int(rng.integers(2, 9)))
        for _ in range(count)
    ]  # fmt: skip
    clips = [samples.clip(p, *size, seed=seed + i) for i, size in enumerate(sizes)]
    return Material(tuple(f"made-up {seed}.{i}" for i in range(count)), clips.__getitem__)


def same_corpus(corpus: Path, card: str | None) -> None:
    """Refuses another corpus than the run's, whose card the run knows by its hash."""
    path = corpus / CARD
    if not path.is_file():
        raise InvalidInputError(
            f"{corpus} holds no card.json", "a corpus of merkit-train", "correct --corpus"
        )
    if card is not None and sha256_file(path) != card:
        raise InvalidInputError(
            f"the run was not trained on {corpus}",
            f"a corpus whose card.json has the sha256 {card[:12]}…",
            "give the run's own corpus: others would judge it by clips it may have learnt",
        )


def _spread(clips: Sequence[Clip], limit: int) -> list[Clip]:
    if not limit or len(clips) <= limit:
        return list(clips)
    return [clips[i] for i in np.linspace(0, len(clips) - 1, limit).round().astype(int)]


def _kept(folder: Path, corpus: Path, clip: Clip, contract: Contract) -> Path:
    """Where a decoded clip lies: under all that decides what is in it, since a search that goes on
    may be asked for other clips, or for the same of another corpus."""
    facts = [sha256_file(corpus / CARD), clip.name, clip.text, asdict(contract.preprocessing)]
    return folder / f"{hashlib.sha256(canonical(facts)).hexdigest()[:24]}.npz"


def _keep(clip: Clip, path: Path, contract: Contract) -> None:
    tensors = look(
        clip.record or ClipRecord(clip.name, clip.path, text=clip.text), contract.preprocessing
    ).tensors
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    arrays = {name: tensors[name] for name in DECODED_IN if name != "text"}
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, words=np.array(clip.text), **arrays)
    temporary.replace(path)


def _found(path: Path) -> Tensors:
    with np.load(path, allow_pickle=False) as held:
        tensors = {name: held[name] for name in held.files if name != "words"}
        return {**tensors, "text": np.array([[str(held["words"])]], np.object_)}
