"""Features of a corpus's unlabelled clips, with the encoders of the run that mines them.

A pool's features must come from the very encoders that the learners' labelled features came
from. They are written in parts of a few thousand clips, so that a pool larger than memory can be
extracted, and a killed extraction goes on within its part.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from merkit.errors import InvalidInputError
from merkit_training.corpus import clip_splits, read_clips
from merkit_training.data.records import UNLABELLED
from merkit_training.evaluation.stored import StoredBackend, read_for, records_in
from merkit_training.fusion.dataset import FeatureSet, read_features
from merkit_training.fusion.features import Encoder, extract_split
from merkit_training.fusion.groups import stored_name
from merkit_training.mining.pool import Part
from merkit_training.recipe import recipe_from
from merkit_training.runs import read_json

CLIPS_A_PART = 4096


def extract_pool(run: Path, corpus: Path, folder: Path, *, half: bool = False) -> list[Path]:
    """Writes folder/<part>/ with the features of the corpus's unlabelled clips.

    Args:
        run: whose encoders read them.
        corpus: what `merkit-train synth` or `prepare` wrote.
        folder: for the parts; finished ones are not written again.
        half: store features in half precision, which halves the disk that a pool takes.

    Returns:
        The parts in order.

    Raises:
        InvalidInputError: no unlabelled clips, or a feature too large for half precision.
    """
    if UNLABELLED not in clip_splits(corpus):
        raise InvalidInputError(
            f"{corpus} holds neither features nor clips/{UNLABELLED}",
            "features (clips.json, features.safetensors) or a corpus with unlabelled clips",
            "check --pool",
        )
    recipe = recipe_from(read_json(run / "recipe.json"))
    clips = read_clips(corpus, UNLABELLED)
    starts = range(0, len(clips), CLIPS_A_PART)
    parts = [folder / f"{start:08d}" for start in starts]
    if all((part / "clips.json").exists() for part in parts):
        return parts
    torch.set_num_threads(1)
    encode = Encoder(run, recipe.preprocessing)
    for start, part in zip(starts, parts, strict=True):
        if (part / "clips.json").exists():
            continue
        whole = part.with_name(f"{part.name}.part")
        own = [replace(clip, label=None) for clip in clips[start : start + CLIPS_A_PART]]
        if not (whole / "clips.json").exists():
            extract_split(own, encode, whole, recipe.fusion.batch_clips)
        if half:
            halved(read_features(whole)).save(whole)
        whole.rename(part)
    return parts


def read_pool(run: Path, root: Path, folder: Path, *, half: bool = False) -> list[Path]:
    """Writes folder/<part>/ with the features of all clips below `root`, in MERTools' layout, for
    a run that was fused from such folders; arguments and result as of `extract_pool`.

    Raises:
        InvalidInputError: the run reads groups of its own encoders too, `folder` holds the features
            of other clips, or see `folders`.
    """
    backend = StoredBackend(run)
    records = records_in(backend, root)
    parts = []
    for start in range(0, len(records), CLIPS_A_PART):
        part, own = folder / f"{start:08d}", records[start : start + CLIPS_A_PART]
        parts.append(part)
        if not (part / "clips.json").exists():
            data = read_for(backend, own, root)
            (halved(data) if half else data).save(part)
        elif Part(part).names != tuple(record.name for record in own):
            raise InvalidInputError(
                f"{part} holds the features of other clips than {root} does now",
                "the clips that the mining was begun with",
                f"choose another --out, or remove {folder}",
            )
    return parts


def halved(data: FeatureSet) -> FeatureSet:
    """The same features in half precision; InvalidInputError where one is too large for it."""
    groups = {group: values.half() for group, values in data.groups.items()}
    if wrong := [group for group, t in groups.items() if not torch.isfinite(t).all()]:
        raise InvalidInputError(
            f"{stored_name(wrong[0])} holds values beyond {torch.finfo(torch.float16).max:g}",
            "features that half precision can hold",
            "extract without --half",
        )
    return replace(data, groups=groups)
