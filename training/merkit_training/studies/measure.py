"""What a row is worth: heads on its encoders' features, scored on clips that chose nothing.

Encoders are compared as the system uses them: frozen, under the same fusion head (3.2), trained
on the clips of `train`, its epoch chosen on `val`, its labels compared on the test splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.contract import MODALITIES, Contract
from merkit.pipeline import GROUPS, standard_contract
from merkit.steps import Tokenize
from merkit_training.corpus import CLIP_SPLITS
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.dataset import FeatureSet
from merkit_training.fusion.train import fit_branch, labels_of, majority, predict
from merkit_training.labels import classes_of
from merkit_training.recipe import Recipe
from merkit_training.steps import load_step
from merkit_training.studies.inputs import Inputs, decoded

BATCH = 16
TESTS = tuple(split for split in CLIP_SPLITS if split.startswith("test"))
STEPS = {"a": "audio_encoder", "t": "text_encoder", "v": "face_encoder", "V": "face_encoder_large"}


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
    encode = Features(recipe, corpus, run, letters)
    sets = {
        split: encode(decoded(corpus, split, recipe.preprocessing, cache))
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


class Features:
    """Decoded clips to features of some groups; the others are zeros of width 1."""

    def __init__(self, recipe: Recipe, corpus: Path, run: Path, letters: Sequence[str]) -> None:
        contract = standard_contract(
            classes_of(corpus), dict.fromkeys(GROUPS, 1), recipe.preprocessing
        )
        self.letters = letters
        self.preprocess = load_step(run, "preprocess")
        self.steps: dict[str, nn.Module] = {
            g: load_step(run, STEPS[g]) for g in letters if g in STEPS
        }
        self.joint = load_step(run, "joint_encoder") if "j" in letters else None
        self.tokenize = self._tokenizer(contract, run)

    def __call__(self, clips: Inputs) -> FeatureSet:
        """Features of a split."""
        starts = range(0, len(clips), BATCH)
        parts = [self._batch(clips, slice(i, i + BATCH)) for i in starts]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return FeatureSet(
            names=clips.names,
            identities=clips.identities,
            subsets=("",) * len(clips),
            labels=torch.from_numpy(clips.labels),
            **joined,
        )

    @torch.inference_mode()
    def _batch(self, clips: Inputs, rows: slice) -> dict[str, Tensor]:
        faces, samples = (
            int(clips.arrays[n][rows].max()) if {*self.letters} & {*groups} else 0
            for n, groups in (("face_count", "vV"), ("waveform_length", "aj"))
        )  # what no group reads is not prepared: spectra take longer than a face encoder
        entry = [
            torch.from_numpy(np.array(clips.arrays["crops"][rows, :faces])),
            torch.from_numpy(np.array(clips.arrays["face_count"][rows])).clamp(max=faces),
            torch.from_numpy(np.array(clips.arrays["waveform"][rows, :samples])),
            torch.from_numpy(np.array(clips.arrays["waveform_length"][rows])).clamp(max=samples),
        ]
        count = len(entry[0])
        words, silence = self._ids(clips.texts[rows]), self._ids(("",) * count)
        grid, values, mask, log_mel, presence = self.preprocess(*entry, words["text_length"])
        inputs = {
            "a": (values, mask),
            "t": (words["text_ids"], words["text_length"]),
            "v": (grid,),
            "V": (grid,),
        }
        nothing = torch.zeros(count, 1)
        made = {
            GROUPS[g]: self.steps[g](*inputs[g]) if g in self.steps else nothing for g in inputs
        }
        made["joint_views"] = nothing[:, None].expand(-1, 3, -1)
        if self.joint is not None:
            made["joint_views"] = self._views(log_mel, words, silence, presence)
        return {**{name: value.float() for name, value in made.items()}, "presence": presence}

    def _views(
        self,
        log_mel: Tensor,
        words: Mapping[str, Tensor],
        silence: Mapping[str, Tensor],
        presence: Tensor,
    ) -> Tensor:
        """The joint feature of both, of sound alone and of words alone, as FeatureSet keeps it."""
        hidden = {m: presence.clone() for m in MODALITIES}
        for i, name in enumerate(MODALITIES):
            hidden[name][:, i] = False
        assert self.joint is not None
        views = [
            self.joint(log_mel, ids["joint_ids"], ids["joint_length"], shown)
            for ids, shown in (
                (words, presence),
                (silence, hidden["text"]),
                (words, hidden["audio"]),
            )
        ]
        return torch.stack(views, dim=1)

    def _tokenizer(self, contract: Contract, run: Path) -> Tokenize | None:
        wanted = {"t", "j"} & set(self.letters)
        return Tokenize(contract, run / "tokenizer") if wanted else None

    def _ids(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if self.tokenize is None:  # presence of words is of no interest then
            empty = torch.zeros(len(texts), 1, dtype=torch.int64)
            return {"text_ids": empty, "text_length": empty, "joint_ids": empty}
        column: NDArray[np.object_] = np.array([[text] for text in texts], dtype=np.object_)
        ids = self.tokenize({"text": column})
        return {name: torch.from_numpy(np.asarray(value)) for name, value in ids.items()}
