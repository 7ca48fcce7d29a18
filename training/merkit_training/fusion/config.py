"""Options of the fusion head and its training; no torch here, so that recipes read fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from merkit.contract import Voter
from merkit.pipeline import GROUPS, SEED_VOTERS
from merkit_training.fusion.groups import check_names, check_voter
from merkit_training.settings import Amount, Count, Natural, Share

SEED_BRANCHES = tuple(voter.name for voter in SEED_VOTERS)
"""The seed's three (eq. 1-3) and, since it leaves its fourth open (eq. 7), `t+V+j`."""


@dataclass(frozen=True)
class BranchConfig:
    """What sets our branch apart from MERBench's attention; each switch can be ablated."""

    hidden: Count = 64  # width of every layer (MERBench tries 64, 128, 256)
    dropout: Share = 0.3  # of each MLP's input (MERBench tries .2 to .5)
    gate: Literal["softmax", "linear"] = "softmax"  # weights that sum to 1, or raw weights
    masked: bool = True  # absent groups have no share; else they are zeros like any other value
    standardise: bool = True  # features to zero mean and unit variance of the training set
    residual: bool = True  # add the joint representation to the attended one
    valence: bool = False  # a second head for valence, for clips that are labelled with it


MERBENCH = BranchConfig(hidden=128, gate="linear", masked=False, standardise=False, residual=False)
"""The published "attention" baseline: raw attention weights and nothing added."""


@dataclass(frozen=True)
class FusionConfig:
    """The table [fusion] of a recipe."""

    branch: BranchConfig = field(default_factory=BranchConfig)
    voters: tuple[str, ...] = SEED_BRANCHES  # feature groups of each branch, as "a+t+v"
    # of other encoders, beside the pipeline's (merkit-train fuse); unknown to searches of old
    groups: tuple[str, ...] = field(default=(), repr=False)
    rank_on: Literal["out_of_fold", "validation", "test"] = "out_of_fold"  # clips that rank them
    epochs: Count = 30  # passes over the training clips; the best on validation is kept
    select: Literal["loss", "waf"] = "loss"  # by which the best is found
    batch_size: Count = 256  # clips a step
    drop_last: bool = True  # leave out the clips that do not fill a batch, others each epoch
    optimizer: Literal["adamw", "adam"] = "adamw"  # adam: weight decay as part of the gradient
    schedule: Literal["cosine", "constant"] = "cosine"  # of the rate: to zero, or as it is
    lr: Amount = 2e-3  # peak rate
    weight_decay: Amount = 1e-2
    modality_dropout: Share = 0.15  # chance with which each modality of a clip is hidden
    balance: Share = 0.5  # loss weight of a class ~ count ** -balance: 0 none, 1 fully balanced
    label_smoothing: Share = 0.05  # share of the target spread over all classes
    coverage: Share = 0.9  # of clips on which the bundle calls its answer confident; 1: on all
    folds: Count = 5  # of the out-of-fold predictions that rank and calibrate the voters
    table_seeds: Natural = 5  # repetitions of the modality table, encoders fixed
    bootstrap: Count = 2000  # resamples of each confidence interval
    batch_clips: Count = 16  # clips an encoder reads at once while features are extracted

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; out-of-fold predictions need at least 2")
        if not self.voters or len(set(self.voters)) < len(self.voters):
            raise ValueError(f"voters are {list(self.voters)}; expected some, and none twice")
        check_names(self.groups)
        for name in self.voters:
            check_voter(name, (*GROUPS, *self.groups))

    def branches(self) -> tuple[Voter, ...]:
        """The voters as the contract states them, in the recipe's order."""
        return tuple(Voter(name, tuple(name.split("+"))) for name in self.voters)


MERBENCH_FUSION = FusionConfig(
    branch=MERBENCH,
    epochs=100,
    select="waf",
    batch_size=32,
    drop_last=False,
    optimizer="adam",
    schedule="constant",
    lr=1e-3,
    weight_decay=1e-5,
    modality_dropout=0.0,
    balance=0.0,
    label_smoothing=0.0,
)
"""How MERBench trains it; hidden, dropout and lr are drawn from its grid (`fusion.search`)."""
