"""The text encoder: a decoder-only LLM, features from its last four layers (seed 2.2.3)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from merkit_training.checkpoints import open_checkpoint
from merkit_training.encoders.pooling import combined, length_mask, masked_mean
from merkit_training.encoders.store import load_module
from merkit_training.encoders.text.config import TextConfig
from merkit_training.encoders.text.decoder import make_decoder
from merkit_training.recipe import Recipe

STEP = "text_encoder"


class TextEncoder(nn.Module):
    """The `text_encoder` step."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.decoder = make_decoder(config.sizes)
        self.pool_layers = config.pool_layers

    def states(self, text_ids: Tensor, text_length: Tensor) -> tuple[list[Tensor], Tensor]:
        """Each layer's output [batch, tokens, hidden], and the mask of valid tokens."""
        mask = length_mask(text_length, text_ids.shape[1])
        return self.decoder.states(self.decoder.embed(text_ids), mask), mask

    def frames(self, text_ids: Tensor, text_length: Tensor) -> tuple[Tensor, Tensor]:
        """The last four layers as one, token by token: [batch, tokens, hidden], and which tokens
        are valid, bool [batch, tokens]; arguments as of `forward`."""
        states, mask = self.states(text_ids, text_length)
        return combined(states, self.pool_layers), mask

    def forward(self, text_ids: Tensor, text_length: Tensor) -> Tensor:
        """Features of a batch of texts.

        Args:
            text_ids: int64 [batch, tokens], right padded.
            text_length: int64 [batch, 1]; 0 means no words.

        Returns:
            text_features float32 [batch, hidden]; without words, zeros.
        """
        return masked_mean(*self.frames(text_ids, text_length))


def from_recipe(recipe: Recipe) -> tuple[TextConfig, TextEncoder]:
    """The encoder before training, at random weights or a checkpoint's, and its true sizes.

    Under `torch.device("meta")` a checkpoint gives the sizes alone.

    Raises:
        BundleError, InvalidInputError: the checkpoint is missing, damaged or of another kind.
    """
    config = recipe.text_encoder
    if not config.checkpoint:
        return config, TextEncoder(config)
    from merkit_training.encoders.text.weights import decoder_sizes, fill_decoder

    checkpoint = open_checkpoint(config.checkpoint, hub=recipe.run.hub)
    config = config.sized_as(decoder_sizes(checkpoint))
    encoder = TextEncoder(config)
    if not next(encoder.parameters()).is_meta:
        fill_decoder(encoder.decoder, checkpoint)
    return config, encoder


def load(run: Path) -> TextEncoder:
    """The trained step of a run, in eval mode."""
    return load_module(run, STEP, TextConfig, TextEncoder)
