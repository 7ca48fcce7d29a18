"""What a row is worth: heads on its encoders' features, scored on clips that chose nothing.

Encoders are compared as the system uses them: frozen, under the same fusion head (3.2), trained
on the clips of `train`, its epoch chosen on `val`, its labels compared on the test splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merkit_training.corpus import CLIP_SPLITS
from merkit_training.fusion.config import MERBENCH_FUSION, FusionConfig
from merkit_training.fusion.dataset import FeatureSet, from_stored
from merkit_training.fusion.features import Decoded, Encoder
from merkit_training.fusion.tables import LOGISTIC, MAJORITY, Labels, logistic, voted
from merkit_training.fusion.train import fit_branch, fit_fusion, labels_of, majority, predict
from merkit_training.labels import classes_of
from merkit_training.recipe import Recipe
from merkit_training.studies.inputs import Inputs, decoded
from merkit_training.studies.plan import MERBENCH, Study

BATCH = 16
TESTS = tuple(split for split in CLIP_SPLITS if split.startswith("test"))


def measure(recipe: Recipe, corpus: Path, run: Path, cache: Path, study: Study) -> dict[str, Any]:
    """Labels of each of the study's heads on each test split.

    Args:
        recipe: the row's.
        corpus: whose clips are read.
        run: a run folder with the encoders that the heads need.
        cache: where decoded clips are kept, for all rows.
        study: names the heads.

    Returns:
        {"labels": {head: {split: [...]}}, "truth": {split: [...]}}.
    """
    torch.set_num_threads(1)
    encode = Encoder(run, recipe.preprocessing, study.letters())
    sets = {
        split: features_of(encode, decoded(corpus, split, recipe.preprocessing, cache))
        for split in ("train", "val", *TESTS)
    }
    ours = FusionConfig(epochs=study.epochs)
    heads = [(row, row, ours) for row in study.groups]
    heads += [(f"{row}{MERBENCH}", row, MERBENCH_FUSION) for row in study.merbench]
    fallback, labels = majority(sets["train"]), {}
    for name, row, config in heads:
        letters = row.split("+")
        branch = fit_branch(letters, sets["train"], sets["val"], config, recipe.run.seed)
        labels[name] = {
            split: labels_of(*predict(branch, letters, sets[split]), fallback) for split in TESTS
        }
    if study.systems:
        found = systems(sets, ours, recipe.run.seed, len(classes_of(corpus)))
        labels |= {name: found[name] for name in study.systems}
    return {
        "labels": {n: {s: each[s].tolist() for s in TESTS} for n, each in labels.items()},
        "truth": {s: sets[s].labels.tolist() for s in TESTS},
    }


def systems(
    sets: Mapping[str, FeatureSet], config: FusionConfig, seed: int, classes: int
) -> dict[str, dict[str, Labels]]:
    """Labels of `plan.SYSTEMS`, by system and test split."""
    train, tests = sets["train"], {split: sets[split] for split in TESTS}
    fallback = majority(train)
    found = {
        MAJORITY: {split: np.full(len(test), fallback) for split, test in tests.items()},
        LOGISTIC: logistic(train, tests, seed),
    }
    fusion, _, _ = fit_fusion(train, sets["val"], config, seed, classes)
    for split, test in tests.items():
        for name, each in voted(fusion, test, fallback).items():
            found.setdefault(name, {})[split] = each
    return found


def features_of(encode: Encoder, clips: Inputs) -> FeatureSet:
    """Features of a decoded split; what no group of `encode` reads is not prepared, for spectra
    take longer than a face encoder."""
    sees, hears, reads = ({*encode.steps} & {*groups} for groups in ("vV", "aj", "tj"))

    def decoded_clip(i: int) -> Decoded:
        faces = int(clips.arrays["face_count"][i, 0]) if sees else 0
        wanted = hears or (encode.ears is not None and not clips.texts[i].strip())
        samples = int(clips.arrays["waveform_length"][i, 0]) if wanted else 0
        return Decoded(clips.arrays["crops"][i, :faces], clips.arrays["waveform"][i, :samples])

    parts = []
    for start in range(0, len(clips), BATCH):
        rows = range(start, min(start + BATCH, len(clips)))
        texts = [clips.texts[i] if reads else "" for i in rows]
        parts.append(encode([decoded_clip(i) for i in rows], texts))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return from_stored(
        tensors | {"labels": torch.from_numpy(clips.labels)},
        names=clips.names,
        identities=clips.identities,
        subsets=("",) * len(clips),
    )
