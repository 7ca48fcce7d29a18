"""Sizes and schedules of the two face encoders, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from merkit_training.settings import Amount, Count, Natural, Share, divides


@dataclass(frozen=True)
class FaceEncoderConfig:
    """A face encoder: first taught on single faces, then on grids of four (seed Fig. 2)."""

    architecture: Literal["vit", "internvit"] = "vit"  # ViT-Base's, or InternViT-6B's
    hidden: Count = 128  # width of the features
    layers: Count = 4
    heads: Count = 4
    patch: Count = 16  # pixels; must divide the side of a face
    single_epochs: Count = 4  # over single faces, with the eight classes of FACE8
    grid_epochs: Count = 3  # over grids, with the six classes of MER6
    grid_singles: Natural = 2_000  # single faces, repeated in all tiles, beside the sequences
    batch_size: Count = 32
    lr: Amount = 1e-3  # peak rate on single faces
    grid_lr: Amount = 4e-4  # peak rate on grids
    weight_decay: Amount = 0.05
    unit_weight: Amount = 4.0  # of the action units beside the classes
    label_smoothing: Share = 0.05
    bf16: bool = False  # train under bfloat16 autocast
    threads: Count = 2  # of torch, while this stage trains

    def __post_init__(self) -> None:
        divides(self.hidden, self.heads)
