"""Sizes and schedule of the punctuator, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from merkit_training.settings import Amount, Count, Natural, Share, divides


@dataclass(frozen=True)
class PunctuatorConfig:
    """CT-Transformer (seed 2.3); FunASR's keys in brackets. The defaults are the tiny shape."""

    # A FunASR folder: config.yaml, tokens.json, model.pt. It then states vocabulary, marks and
    # sizes: the keys from `embedded` down to `shift` are ignored.
    checkpoint: str = ""
    embedded: Count = 64  # width of a word [embed_unit]
    hidden: Count = 64  # [att_unit, output_size]
    layers: Count = 2  # [num_blocks]
    heads: Count = 4  # [attention_heads]
    intermediate: Count = 256  # [linear_units]
    kernel: Count = 11  # words that a memory spans [kernel_size]
    shift: Natural = 0  # [sanm_shfit]
    vocabulary: Count = 4000  # words and characters known at most, the most frequent ones
    text: tuple[str, ...] = ()  # further files to learn from: punctuated text, a line at a time
    epochs: Natural = 0  # over the sentences; 0: the recipe has no punctuator
    joined: Count = 6  # sentences in a sample, at most
    lr: Amount = 2e-3
    batch_size: Count = 64
    dropout: Share = 0.1
    attention_dropout: Share = 0.0
    word_dropout: Share = 0.02  # of words shown as unknown, since recognisers err
    bf16: bool = False
    threads: Count = 2

    def __post_init__(self) -> None:
        divides(self.hidden, self.heads)
        if self.embedded % 2:
            raise ValueError(f"embedded ({self.embedded}) must be even")
        if self.shift > self.kernel // 2:
            raise ValueError(f"shift ({self.shift}) is beyond its kernel")

    @property
    def asked(self) -> bool:
        """Whether a run has the stage."""
        return self.epochs > 0 or bool(self.checkpoint)


COMMON = {
    "embedded": 256,
    "hidden": 256,
    "layers": 4,
    "heads": 8,
    "intermediate": 1024,
}
"""`punc_ct-transformer_zh-cn-common-vocab272727`, as published: 272,727 words, six marks."""
