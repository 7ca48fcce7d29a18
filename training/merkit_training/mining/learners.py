"""The four learners: what each trains on, how they vote on a pool, and their files.

A learner is a branch of the fusion step, trained by the very function that trains deployed ones.
What is special here is scale: it trains on labelled clips and on its share of the pool, gathered
for its own feature groups alone, and it votes on the pool block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from merkit.contract import Voter
from merkit.errors import BundleCorruptError
from merkit.voting import NOBODY
from merkit_training.fusion.calibration import fit_temperature
from merkit_training.fusion.config import BranchConfig, FusionConfig
from merkit_training.fusion.dataset import JOINT, JOINT_VIEWS, FeatureSet
from merkit_training.fusion.model import Branch, group_presence
from merkit_training.fusion.train import fit_branch, predict
from merkit_training.mining.pool import Pool, Rows
from merkit_training.mining.votes import Votes
from merkit_training.runs import write_bytes

BLOCK_BYTES = 2**26
"""Of features that are scored at once."""


@dataclass(frozen=True)
class Learner:
    """A trained branch with the temperature that validation clips give it."""

    voter: Voter
    branch: Branch
    temperature: float

    def probabilities(self, data: FeatureSet) -> Tensor:
        """float32 [n, classes]; zeros where it has nothing to go by."""
        logits, spoke = predict(self.branch, self.voter.groups, data)
        return self._scores(logits, spoke)

    def of_block(self, features: dict[str, Tensor], here: dict[str, Tensor]) -> Tensor:
        """The same of features by group, with their presence bool [n, 1]."""
        groups = self.voter.groups
        own = torch.cat([here[g] for g in groups], dim=1)
        with torch.no_grad():
            logits = self.branch([features[g] for g in groups], own)[0]
        return self._scores(logits, own.any(dim=1))

    def save(self, path: Path) -> None:
        """Writes weights in float32, and the temperature."""
        tensors = {k: v.detach().clone().contiguous() for k, v in self.branch.state_dict().items()}
        temperature = torch.tensor(self.temperature, dtype=torch.float64)
        write_bytes(path, save(tensors | {"temperature": temperature}))

    def _scores(self, logits: Tensor, spoke: Tensor) -> Tensor:
        scores = (logits / self.temperature).softmax(dim=1)
        return torch.where(spoke[:, None], scores, 0.0)


def load_learner(
    path: Path, voter: Voter, widths: dict[str, int], classes: int, config: BranchConfig
) -> Learner:
    """Reads what `Learner.save` wrote; BundleCorruptError where it is damaged."""
    branch = Branch([widths[g] for g in voter.groups], classes, config)
    try:
        tensors = load_file(path)
        temperature = float(tensors.pop("temperature"))
        branch.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise BundleCorruptError(
            f"{path} is damaged ({error})", "a learner of this run", "remove the file and go on"
        ) from None
    return Learner(voter, branch.eval(), temperature)


def fit_learner(
    voter: Voter,
    data: FeatureSet,
    validation: FeatureSet,
    config: FusionConfig,
    seed: int,
    classes: int,
) -> Learner:
    """Trains a learner from scratch; its epoch and temperature are chosen on `validation`."""
    branch = fit_branch(voter.groups, data, validation, config, seed, classes)
    logits, spoke = predict(branch, voter.groups, validation)
    return Learner(voter, branch, fit_temperature(logits[spoke], validation.labels[spoke]))


def training_set(
    labelled: FeatureSet, pool: Pool, rows: Rows, labels: NDArray[np.int8], groups: Sequence[str]
) -> FeatureSet:
    """The labelled clips followed by the pool's clips `rows` under their pseudo-labels.

    Only the features of `groups` are there (the others are zeros of width 1), in the pool's own
    precision, so that a quarter of a large pool fits in memory.
    """
    count = len(labelled) + len(rows)
    found: dict[str, Tensor] = {}
    for group, own in labelled.groups.items():
        if group not in groups:
            shape = (count, len(JOINT_VIEWS), 1) if group == JOINT else (count, 1)
            found[group] = torch.zeros(1).expand(shape)
            continue
        kind = pool.stored(group) if len(rows) else torch.float32
        found[group] = torch.empty((count, *own.shape[1:]), dtype=kind)
        found[group][: len(labelled)] = own
        step = max(1, BLOCK_BYTES // (4 * own[:1].numel()))
        for start in range(0, len(rows), step):
            piece = torch.from_numpy(pool.read(group, rows[start : start + step]))
            first = len(labelled) + start
            found[group][first : first + len(piece)] = piece
    pseudo = torch.from_numpy(labels.astype(np.int64))
    chosen = torch.from_numpy(rows)
    return FeatureSet(
        names=(*labelled.names, *(pool.names[i] for i in rows.tolist())),
        identities=(*labelled.identities, *(f"/{pool.names[i]}" for i in rows.tolist())),
        subsets=(*labelled.subsets, *("",) * len(rows)),
        labels=torch.cat([labelled.labels, pseudo]),
        presence=torch.cat([labelled.presence, pool.presence[chosen]]),
        groups=found,
    )


def vote_on(pool: Pool, rows: Rows, learners: Sequence[Learner]) -> Votes:
    """The learners' ballots on the clips `rows`."""
    ballots = np.full((len(rows), len(learners)), NOBODY, np.int8)
    chances = np.zeros((len(rows), len(learners)), np.float32)
    step = max(16, BLOCK_BYTES // (4 * sum(pool.widths.values())))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        features = pool.features(block)
        here = group_presence(pool.presence[torch.from_numpy(block)], pool.widths)
        for i, learner in enumerate(learners):
            best, label = learner.of_block(features, here).max(dim=1)
            own = slice(start, start + step)
            chances[own, i] = best.numpy()
            ballots[own, i] = torch.where(best > 0, label, NOBODY).to(torch.int8).numpy()
    return Votes(rows, ballots, chances)
