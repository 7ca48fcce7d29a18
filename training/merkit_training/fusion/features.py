"""The stage `features`: every labelled clip through decoder, detector and encoders, once.

Fusion trains in seconds on features that take minutes to compute, and it is repeated over folds
and seeds. So they are computed once, from the real files by the very code that serves, and kept.
Finished parts survive a kill.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from merkit.contract import MODALITIES, Preprocessing
from merkit.errors import InvalidInputError
from merkit.pipeline import GROUPS, standard_contract
from merkit.steps import Tokenize
from merkit.steps.base import column, padded
from merkit_training.corpus import Clip, clip_splits, read_clips
from merkit_training.data.evidence import decode_record, faces_in
from merkit_training.data.records import UNLABELLED, ClipRecord
from merkit_training.fusion.dataset import FeatureSet, from_stored, join, read_features
from merkit_training.speech.hearing.ears import Ears
from merkit_training.speech.hearing.parts import RECOGNIZER, holds
from merkit_training.steps import load_step

if TYPE_CHECKING:
    from merkit_training.recipe import Recipe

PART = 128
"""Clips of one part: what a kill loses at most, and what memory holds twice."""
DECODERS = 2
WORDLESS = "wordless"
"""The score of the stage that counts clips without words, which then follow from the chain."""
ENCODERS = {
    "v": "face_encoder",
    "V": "face_encoder_large",
    "a": "audio_encoder",
    "t": "text_encoder",
    "j": "joint_encoder",
}
"""The step that makes each feature group."""


@dataclass(frozen=True)
class Decoded:
    """What a clip's file holds."""

    crops: NDArray[np.uint8]  # [faces, side, side, 3]
    waveform: NDArray[np.float32]  # [samples]


def extract(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Writes run/features/<split>/ for every labelled split; returns shares of what was found, and
    as `wordless` how many clips came without words, if any did.

    Raises:
        InvalidInputError: no such splits; or clips came without words, and what is to write them
            has not been trained.
    """
    torch.set_num_threads(1)  # the decoders keep the other cores busy; more threads halve the pace
    encode = Encoder(run, recipe.preprocessing)
    splits = {split: read_clips(corpus, split) for split in labelled_splits(corpus)}
    found: dict[str, float] = {}
    if wordless := sum(not clip.text.strip() for clips in splits.values() for clip in clips):
        found[WORDLESS] = wordless
        _check_hears(recipe, run, wordless)
    for split, clips in splits.items():
        folder = run / "features" / split
        if not (folder / "clips.json").exists():
            extract_split(clips, encode, folder, recipe.fusion.batch_clips)
        presence = read_features(folder).presence.float().mean(dim=0)
        found |= {f"{split}_{m}": float(p) for m, p in zip(MODALITIES, presence, strict=True)}
    return found


def _check_hears(recipe: Recipe, run: Path, wordless: int) -> None:
    if recipe.recognizer.asked and not holds(run, RECOGNIZER):
        raise InvalidInputError(
            f"{wordless} clips have no words, and {run} holds no {RECOGNIZER} to write them",
            "what the recipe's bundle will hear with, before features are computed",
            f"run: merkit-train run --stage {RECOGNIZER}, and the other stages of hearing",
        )


def labelled_splits(corpus: Path) -> tuple[str, ...]:
    """The splits of clips whose features fusion is trained on, selected by and measured on.

    Raises:
        InvalidInputError: there is none to train on, or none to choose by.
    """
    splits = tuple(split for split in clip_splits(corpus) if split != UNLABELLED)
    if not {"train", "val"} <= set(splits):
        raise InvalidInputError(
            f"the clips of {corpus} have the splits {', '.join(splits) or 'none'}",
            "train and val among them",
            "write the corpus with: merkit-train synth, or merkit-train prepare",
        )
    return splits


class Encoder:
    """Decoded clips to features, with the trained steps of a run in torch.

    Args:
        run: with the steps that `groups` need.
        preprocessing: the run's.
        groups: which features to make; the others are zeros of width 1.
    """

    def __init__(
        self, run: Path, preprocessing: Preprocessing, groups: Collection[str] = tuple(GROUPS)
    ) -> None:
        # labels and widths play no part in tokenising
        contract = standard_contract(("any", "other"), dict.fromkeys(GROUPS, 1), preprocessing)
        self.preprocessing = preprocessing
        self.tokenize = Tokenize(contract, run / "tokenizer") if {"t", "j"} & {*groups} else None
        self.preprocess = load_step(run, "preprocess")
        self.ears = Ears.of(run, preprocessing, writes=self.tokenize is not None)
        self.steps: dict[str, nn.Module] = {g: load_step(run, ENCODERS[g]) for g in groups}

    def decode(self, clip: Clip) -> Decoded:
        """Reads one clip; safe to call from several threads."""
        record = clip.record or ClipRecord(clip.name, clip.path)
        read = decode_record(record, self.preprocessing)
        return Decoded(faces_in(record, read, self.preprocessing).crops, read.waveform)

    @torch.inference_mode()
    def __call__(self, decoded: Sequence[Decoded], texts: Sequence[str]) -> dict[str, Tensor]:
        """Features of a batch as `from_stored` reads them; rows of absent modalities are zeros.

        Where the run has a chain, a clip without words has those that are heard in its sound.
        """
        crops, face_count = _batch([d.crops for d in decoded])
        waveform, waveform_length = _batch([d.waveform for d in decoded])
        cleaned = None
        if self.ears is not None:
            texts, cleaned = self.ears(waveform, waveform_length, texts)
        words, silence = self._tokens(texts), self._tokens([""] * len(texts))
        grid, values, samples, log_mel, presence = self.preprocess(
            crops, face_count, waveform, waveform_length, words["text_length"], cleaned
        )
        video, audio, text = (presence[:, i : i + 1] for i in range(len(MODALITIES)))

        def made(group: str, present: Tensor, *inputs: Tensor) -> Tensor:
            if group not in self.steps:
                return torch.zeros(len(present), 1)
            return _only(self.steps[group](*inputs), present)

        def joint(ids: dict[str, Tensor], shown: Tensor) -> Tensor:
            heard = shown[:, 1:].any(dim=1, keepdim=True)
            return made("j", heard, log_mel, ids["joint_ids"], ids["joint_length"], shown)

        none = torch.zeros_like(audio)
        views = [
            joint(words, presence),
            joint(silence, torch.cat([video, audio, none], dim=1)),
            joint(words, torch.cat([video, none, text], dim=1)),
        ]
        return {
            "presence": presence,
            "audio_features": made("a", audio, values, samples),
            "text_features": made("t", text, words["text_ids"], words["text_length"]),
            "face_features": made("v", video, grid),
            "face_features_large": made("V", video, grid),
            "joint_views": torch.stack(views, dim=1),
        }

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if self.tokenize is None:  # nothing reads words
            nothing = torch.zeros(len(texts), 1, dtype=torch.int64)
            return dict.fromkeys(("text_ids", "text_length", "joint_ids", "joint_length"), nothing)
        column = np.array([[text] for text in texts], dtype=np.object_)
        ids = self.tokenize({"text": column})
        return {name: torch.from_numpy(np.asarray(value)) for name, value in ids.items()}


def extract_split(clips: Sequence[Clip], encode: Encoder, folder: Path, batch: int) -> None:
    """Writes the features of `clips` to `folder`; finished parts of a killed call are kept.

    `batch` is how many clips the encoders read at once. A clip without a label is labelled -1.
    """
    parts = [folder / "parts" / f"{start:06d}" for start in range(0, len(clips), PART)]
    todo = [i for i, part in enumerate(parts) if not (part / "clips.json").exists()]
    left = sum(len(clips[i * PART : (i + 1) * PART]) for i in todo)
    pool = ThreadPoolExecutor(DECODERS)
    try:
        with tqdm(
            total=len(clips), initial=len(clips) - left, desc=folder.name, unit="clip"
        ) as bar:
            for i, decoded in _decoded_ahead(clips, todo, encode, pool):
                own = clips[i * PART : (i + 1) * PART]
                pieces = []
                for start in range(0, len(own), batch):
                    chosen = own[start : start + batch]
                    read = [future.result() for future in decoded[start : start + batch]]
                    pieces.append(_named(chosen, encode(read, [clip.text for clip in chosen])))
                    bar.update(len(chosen))
                join(pieces).save(parts[i])
    finally:
        pool.shutdown(cancel_futures=True)
    join([read_features(part) for part in parts]).save(folder)
    shutil.rmtree(folder / "parts")


def _decoded_ahead(
    clips: Sequence[Clip], todo: Sequence[int], encode: Encoder, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, list[Future[Decoded]]]]:
    """Each part with its files being decoded, the next part's already submitted."""
    ahead: list[tuple[int, list[Future[Decoded]]]] = []
    for i in todo:
        own = clips[i * PART : (i + 1) * PART]
        ahead.append((i, [pool.submit(encode.decode, clip) for clip in own]))
        if len(ahead) > 1:
            yield ahead.pop(0)
    yield from ahead


def _named(clips: Sequence[Clip], tensors: dict[str, Tensor]) -> FeatureSet:
    known = {
        "labels": torch.tensor([-1 if clip.label is None else clip.label for clip in clips]),
        "valence": torch.tensor([_valence(clip) for clip in clips]),
    }
    return from_stored(
        tensors | known,
        names=[clip.name for clip in clips],
        identities=[clip.group or f"/{clip.name}" for clip in clips],
        subsets=[str(clip.truth.get("subset", "")) for clip in clips],
    )


def _valence(clip: Clip) -> float:
    stated = clip.record.valence if clip.record else None
    return float("nan") if stated is None else stated


def _batch(rows: Sequence[NDArray[Any]]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one right-padded tensor, and the lengths [b, 1]."""
    return torch.from_numpy(padded(rows)), torch.from_numpy(column([len(r) for r in rows]))


def _only(features: Tensor, present: Tensor) -> Tensor:
    return torch.where(present, features, 0.0)
