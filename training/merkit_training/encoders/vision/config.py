"""Sizes and schedules of the two face encoders, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from merkit_training.settings import Amount, Count, Natural, Share, divides


@dataclass(frozen=True)
class FaceEncoderConfig:
    """A face encoder: first taught on single faces, then on clips (seed 2.2.1, Table 2).

    `checkpoint` fixes the keys from `architecture`'s sizes to `qkv_bias`: they are then read from
    its config.json and ignored here.
    """

    architecture: Literal["vit", "internvit"] = "vit"  # ViT-Base's, or InternViT-6B's
    checkpoint: str = ""  # weights to start from: a folder, or a hub's id when [run] hub = true
    hidden: Count = 128  # width of the features
    layers: Count = 4
    heads: Count = 4
    patch: Count = 16  # pixels; must divide the side of a face
    intermediate: Natural = 0  # width inside the feed-forward blocks; 0: four times hidden
    norm_eps: Amount = 0.0  # of the norms; 0: the architecture's own, 1e-12 of vit, 1e-6
    rms_norm: bool = True  # internvit: RMS norms, as the 6B has; false: layer norms, as the 300M
    qk_norm: bool = True  # internvit: norms on queries and keys, as the 6B has
    qkv_bias: bool = False  # internvit: as the 300M has
    projector: bool = False  # a two-layer head whose output is the feature (InternVL's mlp1)
    tune: Literal["full", "parts"] = "full"  # parts: `blocks` and `train_projector`, rest frozen
    blocks: tuple[int, int] | None = None  # first and last block to train, from 0; Table 2: 25, 47
    train_projector: bool = False  # Table 2's CLIP_proj, where no block is trained
    sources: tuple[str, ...] = ()  # labelled faces of `merkit-train gather`, beside the corpus'
    classes: Literal[8, 6, 3] = 8  # of faces: all, those that clips have, or sentiments of both
    frames: Literal["single", "multi"] = "multi"  # clips as frames, or as grids of four (Fig. 2)
    single_epochs: Natural = 4  # over single faces
    grid_epochs: Natural = 3  # over clips, with the classes of clips
    grid_singles: Natural = 2_000  # single faces, repeated in all tiles, beside the clips
    batch_size: Count = 32
    accumulate: Count = 1  # batches summed up to one step of the optimizer
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Share = 0.9  # of sgd; the seed's "attenuation parameter" is read as this
    lr: Amount = 1e-3  # peak rate on single faces
    grid_lr: Amount = 4e-4  # peak rate on clips
    weight_decay: Amount = 0.05
    unit_weight: Amount = 4.0  # of the action units beside the classes, where they are known
    label_smoothing: Share = 0.05
    recompute: bool = False  # activations in the backward pass: less memory, a third more time
    bf16: bool = False  # train under bfloat16 autocast
    threads: Count = 2  # of torch, while this stage trains

    def __post_init__(self) -> None:
        divides(self.hidden, self.heads)
        if self.tune == "full" and (self.blocks is not None or self.train_projector):
            raise ValueError("blocks and train_projector choose parts: they need tune = 'parts'")
        if self.train_projector and not self.projector:
            raise ValueError("train_projector needs projector = true")
        if self.blocks is not None and not 0 <= self.blocks[0] <= self.blocks[1]:
            raise ValueError(f"blocks are {list(self.blocks)}, not a first and a last from 0")


@dataclass(frozen=True)
class ContrastiveConfig:
    """Image-text contrastive pre-training (CLIP) of [face_encoder_large], a small text tower
    beside it: the start that Table 2's comparison of parts presupposes."""

    epochs: Natural = 0  # 0: no pre-training
    captions: Literal["units", "labels", "both"] = "both"  # what they tell, where none are written
    wordings: bool = True  # vary the words of a caption from epoch to epoch
    width: Count = 64  # of the space in which images and captions meet
    text_hidden: Count = 64
    text_layers: Count = 2
    text_heads: Count = 4
    max_words: Count = 32  # of a longer caption, the first
    temperature: Amount = 0.07  # to begin with; learnt
    batch_size: Count = 32  # each image's rivals; over all processes
    lr: Amount = 1e-3  # peak rate
    weight_decay: Amount = 0.05
    recompute: bool = False  # activations in the backward pass: less memory, a third more time
    bf16: bool = False  # train under bfloat16 autocast
    threads: Count = 2  # of torch, while this stage trains

    def __post_init__(self) -> None:
        divides(self.text_hidden, self.text_heads)
        if not self.temperature:
            raise ValueError("temperature must be above 0")
