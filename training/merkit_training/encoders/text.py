"""The text encoder: a small decoder-only LLM, features from its last four layers (2.2.3)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from merkit_training.encoders.decoder import Decoder
from merkit_training.encoders.pooling import length_mask, pooled
from merkit_training.encoders.sound_config import TextConfig
from merkit_training.encoders.store import load_module

STEP = "text_encoder"


class TextEncoder(nn.Module):
    """The `text_encoder` step."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)

    def states(self, text_ids: Tensor, text_length: Tensor) -> tuple[list[Tensor], Tensor]:
        """Each layer's output [batch, tokens, hidden], and the mask of valid tokens."""
        mask = length_mask(text_length, text_ids.shape[1])
        return self.decoder.states(self.decoder.embed(text_ids), mask), mask

    def forward(self, text_ids: Tensor, text_length: Tensor) -> Tensor:
        """Features of a batch of texts.

        Args:
            text_ids: int64 [batch, tokens], right padded.
            text_length: int64 [batch, 1]; 0 means no words.

        Returns:
            text_features float32 [batch, hidden]; without words, zeros.
        """
        return pooled(*self.states(text_ids, text_length))


def load(run: Path) -> TextEncoder:
    """The trained step of a run, in eval mode."""
    return load_module(run, STEP, TextConfig, TextEncoder)
