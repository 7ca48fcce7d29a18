"""Options of the fusion head and its training; no torch here, so that recipes read fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from merkit_training.settings import Amount, Count, Natural, Share


@dataclass(frozen=True)
class BranchConfig:
    """What sets our branch apart from MERBench's attention; each switch can be ablated."""

    hidden: Count = 64  # width of every layer (MERBench tries 64, 128, 256)
    dropout: Share = 0.3  # of each MLP's input (MERBench tries .2 to .5)
    gate: Literal["softmax", "linear"] = "softmax"  # softmax over present groups, or raw weights
    standardise: bool = True  # features to zero mean and unit variance of the training set
    residual: bool = True  # add the joint representation to the attended one


MERBENCH = BranchConfig(hidden=128, gate="linear", standardise=False, residual=False)
"""The published "attention" baseline: raw attention weights and nothing added."""


@dataclass(frozen=True)
class FusionConfig:
    """The table [fusion] of a recipe."""

    branch: BranchConfig = field(default_factory=BranchConfig)
    epochs: Count = 30  # passes over the training clips; the best by validation loss is kept
    batch_size: Count = 256  # clips a step
    lr: Amount = 2e-3  # peak rate of AdamW, falling to zero by a cosine
    weight_decay: Amount = 1e-2  # of AdamW
    modality_dropout: Share = 0.15  # chance with which each modality of a clip is hidden
    balance: Share = 0.5  # loss weight of a class ~ count ** -balance: 0 none, 1 fully balanced
    label_smoothing: Share = 0.05  # share of the target spread over all classes
    folds: Count = 5  # of the out-of-fold predictions that rank and calibrate the voters
    table_seeds: Natural = 5  # repetitions of the modality table, encoders fixed
    bootstrap: Count = 2000  # resamples of each confidence interval
    batch_clips: Count = 16  # clips an encoder reads at once while features are extracted

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; out-of-fold predictions need at least 2")
