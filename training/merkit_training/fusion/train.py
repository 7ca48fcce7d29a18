"""Training of the fusion branches: out of fold to judge them, on everything to deploy them.

The seed ranks its voters on the test set; a deployed ensemble has none. Here speakers are split
into folds, each branch predicts the clips of speakers that it has not heard, and those
predictions rank the voters and fit their temperatures (design 4). Then all are refitted on all
training clips.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from merkit.contract import Voter
from merkit.errors import InvalidInputError
from merkit_training.fusion.calibration import fit_temperature
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.dataset import FeatureSet
from merkit_training.fusion.model import Branch, Fusion, group_presence
from merkit_training.metrics import waf

STATISTICS = 8192
"""Clips that tell a feature's mean and spread: of the paper's widths, more take gigabytes."""


def fit_branch(
    groups: Sequence[str],
    data: FeatureSet,
    validation: FeatureSet,
    config: FusionConfig,
    seed: int,
    classes: int = 0,
) -> Branch:
    """Trains one branch on `data`; keeps the epoch that `config.select` finds best on `validation`.

    `classes` is their number; 0: as many as the labels show.
    """
    classes = classes or 1 + int(max(data.labels.max(), validation.labels.max()))
    torch.manual_seed(seed)
    widths = data.widths()
    branch = Branch([widths[g] for g in groups], classes, config.branch)
    rows = evenly(len(data), STATISTICS)
    branch.standardise_by(*_view(groups, data, rows, data.presence[rows]))
    weights = class_weights(data.labels, config.balance, classes)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(
        branch.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    size = min(config.batch_size, len(data))
    starts = range(0, len(data) - size + 1 if config.drop_last else len(data), size)
    steps = config.epochs * len(starts)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept = float("inf"), copy.deepcopy(branch.state_dict())
    for _ in range(config.epochs):
        branch.train()
        order = torch.randperm(len(data))
        for start in starts:
            rows = order[start : start + size]
            shown = hide_modalities(data.presence[rows], config.modality_dropout)
            features, here = _view(groups, data, rows, shown)
            attended, _ = branch.attend(features, here)
            logits = branch.head(attended)
            loss = _loss(logits, here, data.labels[rows], weights, config.label_smoothing)
            if config.branch.valence:
                loss = loss + _valence_loss(branch.valence(attended), here, data.valence[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if config.schedule == "cosine":
                schedule.step()
        logits, voted = predict(branch, groups, validation)
        if config.select == "waf":
            guessed = labels_of(logits, voted, majority(data))
            score = -waf(validation.labels.numpy(), guessed, classes)
        else:
            score = float(_loss(logits, voted.unsqueeze(1), validation.labels, weights, 0.0))
        if score < best:
            best, kept = score, copy.deepcopy(branch.state_dict())
    branch.load_state_dict(kept)
    return branch.eval()


def predict(branch: Branch, groups: Sequence[str], data: FeatureSet) -> tuple[Tensor, Tensor]:
    """Logits [n, classes] of a branch, and bool [n]: whether it has anything to go by."""
    branch.eval()
    with torch.no_grad():
        features, here = _view(groups, data, torch.arange(len(data)), data.presence)
        return branch(features, here)[0], here.any(dim=1)


def evenly(count: int, most: int) -> Tensor:
    """Row numbers int64 [min(count, most)] spread evenly over `count` rows."""
    chosen = min(count, most)
    return torch.arange(chosen) * count // max(1, chosen)


def hide_modalities(presence: Tensor, chance: float) -> Tensor:
    """Hides each modality with `chance`; a clip never loses all that it has."""
    shown = presence & (torch.rand(presence.shape) >= chance)
    return torch.where(shown.any(dim=1, keepdim=True), shown, presence)


def class_weights(labels: Tensor, balance: float, classes: int) -> Tensor:
    """Weights ~ count ** -balance, [classes], with a mean of 1 over the clips."""
    counts = torch.bincount(labels, minlength=classes).float()
    weights = counts.clamp(min=1) ** -balance
    return weights * counts.sum() / (weights * counts).sum()


def speaker_folds(data: FeatureSet, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold [n] of each clip: stratified by label, no speaker in two folds.

    Fewer folds where there are fewer speakers, or fewer clips of the largest class; with one
    speaker alone, clips count as speakers.

    Raises:
        InvalidInputError: no two folds can be made.
    """
    labels = data.labels.numpy()
    speakers = np.array(data.identities)
    if len(set(data.identities)) < 2:
        speakers = np.arange(len(data)).astype(str)
    number = min(folds, len(set(speakers.tolist())), int(np.bincount(labels).max()))
    if number < 2:
        raise InvalidInputError(
            f"{len(data)} training clips make no two folds",
            "several clips of a class",
            "add labelled clips to train",
        )
    splitter = StratifiedGroupKFold(n_splits=number, shuffle=True, random_state=seed)
    fold = np.zeros(len(data), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer clips than folds
        for i, (_, held_out) in enumerate(splitter.split(labels, labels, speakers)):
            fold[held_out] = i
    return fold


def out_of_fold(
    groups: Sequence[str],
    data: FeatureSet,
    validation: FeatureSet,
    config: FusionConfig,
    seed: int,
    classes: int,
) -> tuple[Tensor, Tensor]:
    """Logits and votes of a branch for each training clip, from a fit without its speaker."""
    fold = torch.from_numpy(speaker_folds(data, config.folds, seed))
    logits, voted = torch.zeros(len(data), classes), torch.zeros(len(data), dtype=torch.bool)
    for number in range(int(fold.max()) + 1):
        rows, rest = (fold == number).nonzero()[:, 0], (fold != number).nonzero()[:, 0]
        branch = fit_branch(groups, data.select(rest), validation, config, seed, classes)
        logits[rows], voted[rows] = predict(branch, groups, data.select(rows))
    return logits, voted


def labels_of(logits: Tensor, voted: Tensor, fallback: int) -> NDArray[np.int64]:
    """Predicted labels [n]; `fallback` (the majority class) where nothing could be read."""
    found: NDArray[np.int64] = torch.where(voted, logits.argmax(dim=1), fallback).numpy()
    return found


def majority(data: FeatureSet) -> int:
    """The most frequent class."""
    return int(torch.bincount(data.labels).argmax())


def fit_fusion(
    data: FeatureSet,
    validation: FeatureSet,
    config: FusionConfig,
    seed: int,
    classes: int,
    voters: Sequence[Voter] | None = None,
    ranking: FeatureSet | None = None,
) -> tuple[Fusion, dict[str, Tensor], list[float]]:
    """Ranks, calibrates and refits all branches.

    Args:
        data: trained on.
        validation: each fit's epoch is chosen on it.
        config: of the branches and their training.
        seed: of weights, batches and folds.
        classes: their number.
        voters: the branches; None: those of `config`.
        ranking: clips whose WAF ranks the voters; None: out-of-fold predictions on `data`.

    Returns:
        The fusion with voters in rank order; out-of-fold `logits` [n, voters, classes], `voted`
        [n, voters] and `fold` [n], in the same order; the WAF that ranks each voter.
    """
    judged = []
    truth, fallback = data.labels.numpy(), majority(data)
    voters = config.branches() if voters is None else voters
    for voter in tqdm(voters, desc=f"fusion, seed {seed}", unit="branch"):
        logits, voted = out_of_fold(voter.groups, data, validation, config, seed, classes)
        branch = fit_branch(voter.groups, data, validation, config, seed, classes)
        if ranking is None:
            score = waf(truth, labels_of(logits, voted, fallback), classes)
        else:
            found = labels_of(*predict(branch, voter.groups, ranking), fallback)
            score = waf(ranking.labels.numpy(), found, classes)
        judged.append((score, voter, logits, voted, branch))
    judged.sort(key=lambda row: -row[0])
    model = Fusion([row[1] for row in judged], data.widths(), classes, config.branch)
    for i, (_, _, logits, voted, branch) in enumerate(judged):
        model.branches[i].load_state_dict(branch.state_dict())
        model.temperatures[i] = fit_temperature(logits[voted], data.labels[voted])
    held_out = {
        "logits": torch.stack([row[2] for row in judged], dim=1),
        "voted": torch.stack([row[3] for row in judged], dim=1),
        "fold": torch.from_numpy(speaker_folds(data, config.folds, seed)),
        "labels": data.labels,
    }
    return model.eval(), held_out, [row[0] for row in judged]


def _view(
    groups: Sequence[str], data: FeatureSet, rows: Tensor, presence: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Features [rows, width] and presence [rows, groups] of a branch's groups."""
    features = data.features(rows, presence, groups)
    here = group_presence(presence, data.groups)
    return [features[g] for g in groups], torch.cat([here[g] for g in groups], dim=1)


def _loss(
    logits: Tensor, here: Tensor, labels: Tensor, weights: Tensor, smoothing: float
) -> Tensor:
    """Weighted cross-entropy over the clips of which anything is present."""
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    share = weights[labels] * here.any(dim=1)
    return (each * share).sum() / share.sum().clamp(min=1e-6)


def _valence_loss(found: Tensor, here: Tensor, valence: Tensor) -> Tensor:
    """Mean squared error over the clips that are labelled and of which anything is present."""
    known = here.any(dim=1) & ~valence.isnan()
    each = (found[:, 0] - torch.where(known, valence, 0.0)).square() * known
    return each.sum() / known.sum().clamp(min=1)
