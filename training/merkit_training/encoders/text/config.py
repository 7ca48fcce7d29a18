"""Sizes and schedules of the tokeniser and the text encoder, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from merkit_training.settings import Amount, Count, Share, divides


@dataclass(frozen=True)
class TextConfig:
    """The tokeniser and the decoder-only text encoder (seed 2.2.3)."""

    vocabulary: Count = 1200  # tokens, the special ones included
    hidden: Count = 128  # width of the features
    layers: Count = 4
    heads: Count = 4
    intermediate: Count = 384  # width inside the gated MLP
    pretrain_epochs: Count = 1  # of next-token prediction over the sentences
    epochs: Count = 2  # of emotion classification over the sentences
    batch_size: Count = 128
    lr: Amount = 2e-3  # peak rate while pre-training
    finetune_lr: Amount = 1e-3  # peak rate on emotion
    language_share: Share = 0.1  # weight of next-token prediction beside emotion
    token_dropout: Share = 0.05  # share of input tokens hidden while learning emotion
    label_smoothing: Share = 0.05
    bf16: bool = False  # bfloat16 autocast: faster where the processor has it
    threads: Count = 2  # of torch, while this stage trains

    def __post_init__(self) -> None:
        divides(self.hidden, self.heads)
