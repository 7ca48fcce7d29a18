"""Sizes and schedules of the tokeniser and the text encoder, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from merkit_training.settings import Amount, Count, Natural, Share, divides

Architecture = Literal["qwen3", "qwen2", "llama", "baichuan", "qwen", "auto"]


@dataclass(frozen=True)
class DecoderSizes:
    """The shape of a decoder-only language model; the defaults are the tiny profile's."""

    architecture: Architecture = "qwen3"  # "auto" is any other of transformers, see `published`
    vocabulary: Count = 1200  # tokens, the special ones included
    hidden: Count = 128  # width of the features
    layers: Count = 4
    heads: Count = 4  # of attention
    kv_heads: Natural = 0  # heads of keys and values; 0 = as many as of queries
    head_dim: Natural = 0  # width of a head; 0 = hidden / heads
    intermediate: Count = 384  # width inside the gated MLP
    positions: Count = 2048  # the longest sequence that the model states to know
    rope_theta: Amount = 10_000.0  # base of the rotary positions; ALiBi has none
    norm_eps: Amount = 1e-6
    tied: bool = True  # the output layer is the embedding
    normed_head: bool = False  # Baichuan 2: rows of the output layer have length 1
    published: str = ""  # config.json of the checkpoint, as text; a stage writes it, no recipe

    def __post_init__(self) -> None:
        if not self.head_dim:
            divides(self.hidden, self.heads)
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads")
        if self.architecture == "auto" and not self.published:
            raise ValueError('architecture "auto" must come with a checkpoint')


@dataclass(frozen=True)
class TextConfig(DecoderSizes):
    """The tokeniser and the decoder-only text encoder (seed 2.2.3)."""

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

    @property
    def sizes(self) -> DecoderSizes:
        """The language model's shape alone."""
        return DecoderSizes(**{f.name: getattr(self, f.name) for f in fields(DecoderSizes)})
