"""What a row is worth: heads on its encoders' features, scored on clips that chose nothing.

Encoders are compared as the system uses them: frozen, under the same fusion head (3.2), trained
on the clips of `train`, its epoch chosen on `val`, its labels compared on the test splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from merkit_training.corpus import CLIP_SPLITS
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.dataset import FeatureSet
from merkit_training.fusion.features import Decoded, Encoder
from merkit_training.fusion.train import fit_branch, labels_of, majority, predict
from merkit_training.recipe import Recipe
from merkit_training.studies.inputs import Inputs, decoded

BATCH = 16
TESTS = tuple(split for split in CLIP_SPLITS if split.startswith("test"))


def measure(
    recipe: Recipe, corpus: Path, run: Path, cache: Path, groups: Sequence[str], epochs: int
) -> dict[str, Any]:
    """Labels of a head for each of `groups` on each test split.

    Args:
        recipe: the row's.
        corpus: whose clips are read.
        run: a run folder with the encoders that `groups` need.
        cache: where decoded clips are kept, for all rows.
        groups: feature groups, such as "v" or "a+t".
        epochs: of each head.

    Returns:
        {"labels": {groups: {split: [...]}}, "truth": {split: [...]}}.
    """
    torch.set_num_threads(1)
    letters = sorted({g for row in groups for g in row.split("+")})
    encode = Encoder(run, recipe.preprocessing, letters)
    sets = {
        split: features_of(encode, decoded(corpus, split, recipe.preprocessing, cache))
        for split in ("train", "val", *TESTS)
    }
    config = FusionConfig(epochs=epochs)
    labels: dict[str, dict[str, list[int]]] = {}
    for row in groups:
        names = row.split("+")
        branch = fit_branch(names, sets["train"], sets["val"], config, recipe.run.seed)
        fallback = majority(sets["train"])
        labels[row] = {
            split: labels_of(*predict(branch, names, sets[split]), fallback).tolist()
            for split in TESTS
        }
    return {"labels": labels, "truth": {s: sets[s].labels.tolist() for s in TESTS}}


def features_of(encode: Encoder, clips: Inputs) -> FeatureSet:
    """Features of a decoded split; what no group of `encode` reads is not prepared, for spectra
    take longer than a face encoder."""
    sees, hears, reads = ({*encode.steps} & {*groups} for groups in ("vV", "aj", "tj"))

    def decoded_clip(i: int) -> Decoded:
        faces = int(clips.arrays["face_count"][i, 0]) if sees else 0
        samples = int(clips.arrays["waveform_length"][i, 0]) if hears else 0
        return Decoded(clips.arrays["crops"][i, :faces], clips.arrays["waveform"][i, :samples])

    parts = []
    for start in range(0, len(clips), BATCH):
        rows = range(start, min(start + BATCH, len(clips)))
        texts = [clips.texts[i] if reads else "" for i in rows]
        parts.append(encode([decoded_clip(i) for i in rows], texts))
    return FeatureSet(
        names=clips.names,
        identities=clips.identities,
        subsets=("",) * len(clips),
        labels=torch.from_numpy(clips.labels),
        **{name: torch.cat([part[name] for part in parts]) for name in parts[0]},
    )
