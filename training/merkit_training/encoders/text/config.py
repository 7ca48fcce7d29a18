"""Sizes and schedules of the tokeniser and the text encoder, readable without importing torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from merkit_training.settings import Amount, Count, Natural, Share, divides

Layers = Literal["mean", "sum"]  # as in encoders.pooling, which imports torch
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
    """The tokeniser and the decoder-only text encoder (seed 2.2.3).

    A checkpoint's config.json states the sizes: the keys from `architecture` to `published` are
    then ignored.
    """

    checkpoint: str = ""  # a folder in Hugging Face's layout, or a hub's id with `[run] hub`
    # tokenizer.json, tokenizer.model or *.tiktoken, or a folder with one; empty: the checkpoint's,
    # else one is trained on the corpus
    tokenizer: str = ""
    pool_layers: Layers = "mean"  # of the last four; MERTools' features are sums
    tune: Literal["full", "lora", "head"] = "full"  # what learns emotion; head: no weight here
    lora_rank: Count = 16  # this and the next three: of tune = "lora"
    lora_alpha: Amount = 32.0  # the factors' product counts alpha / rank times
    lora_dropout: Share = 0.05
    lora_targets: tuple[str, ...] = ()  # last parts of the names of linear layers; none: all
    pretrain_epochs: Natural = 1  # of next-token prediction over the sentences; 0: none
    epochs: Natural = 2  # of emotion classification over the sentences; 0: none
    batch_size: Count = 128
    lr: Amount = 2e-3  # peak rate while pre-training
    finetune_lr: Amount = 1e-3  # peak rate on emotion
    language_share: Share = 0.1  # weight of next-token prediction beside emotion
    token_dropout: Share = 0.05  # share of input tokens hidden while learning emotion
    label_smoothing: Share = 0.05
    accumulate: Count = 1  # batches summed up to one step of the optimizer
    bf16: bool = False  # bfloat16 autocast: faster where the processor has it
    threads: Count = 2  # of torch, while this stage trains

    @property
    def sizes(self) -> DecoderSizes:
        """The language model's shape alone."""
        return DecoderSizes(**{f.name: getattr(self, f.name) for f in fields(DecoderSizes)})

    def sized_as(self, sizes: DecoderSizes) -> TextConfig:
        """The same schedule for another language model."""
        return replace(self, **asdict(sizes))


@dataclass(frozen=True)
class TextPretrainingConfig:
    """Next-token prediction alone, so that many fine-tunings share it; sizes, checkpoint and
    threads are `[text_encoder]`'s. Text without a label is read too."""

    epochs: Natural = 0  # over the sentences; 0: no pre-training
    batch_size: Count = 128
    accumulate: Count = 1  # batches summed up to one step of the optimizer
    lr: Amount = 2e-3
    bf16: bool = False
