"""The audio encoder: HuBERT on the raw waveform, features from its last four layers (2.2.2).

Layers are walked here rather than by transformers, for three reasons. It zeroes padding in place
by a boolean index, which cannot be exported; it hands out the large style's last layer un-normed;
and the base style's group norm averages over padding, which changed features by 31-59 %. Here its
statistics are of the valid part alone, so that both styles are the same in any batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from merkit_training.encoders.audio.config import AudioConfig
from merkit_training.encoders.audio.official import fill, sizes_of
from merkit_training.encoders.pooling import attention_bias, combined, length_mask, masked_mean
from merkit_training.encoders.store import load_module
from merkit_training.recipe import Recipe

STEP = "audio_encoder"


class AudioEncoder(nn.Module):
    """The `audio_encoder` step."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.hop, self.field, self.pool_layers = config.hop, config.field, config.pool_layers
        self.by_group, self.stable = config.norm == "group", config.stable
        self.has_mask_vector = config.mask_vector
        self.model = HubertModel(_hubert_config(config))

    def front(self, audio_values: Tensor, samples: Tensor) -> Tensor:
        """Convolutional frames [batch, frames, channels].

        Args:
            audio_values: float32 [batch, samples], right padded, at least one frame's.
            samples: int64 [batch, 1], how many are valid.
        """
        layers = self.model.feature_extractor.conv_layers
        hidden = audio_values[:, None]
        if self.by_group:
            hidden = _group_normed(layers[0], hidden, samples)
        for layer in layers[1:] if self.by_group else layers:
            hidden = layer(hidden)
        return hidden.transpose(1, 2)

    def project(self, frames: Tensor, mask: Tensor) -> Tensor:
        """What enters the transformer [batch, frames, hidden]; zeros where `mask` says padding."""
        hidden = self.model.feature_projection(frames)
        return torch.where(mask.unsqueeze(-1), hidden, torch.zeros_like(hidden))

    def blank(self, projected: Tensor, hidden: Tensor) -> Tensor:
        """What `project` made, with the mask vector in place of the frames that are `hidden`
        (bool [batch, frames]); only of an encoder that has one."""
        vector: Tensor = self.model.masked_spec_embed
        return torch.where(hidden.unsqueeze(-1), vector.to(projected.dtype), projected)

    def walk(self, hidden: Tensor, mask: Tensor) -> list[Tensor]:
        """Each layer's output [batch, frames, hidden] for what `project` made.

        The large style's last layer is the one after the final norm, as published.
        """
        encoder = self.model.encoder
        hidden = hidden + encoder.pos_conv_embed(hidden)
        if not self.stable:
            hidden = encoder.layer_norm(hidden)
        hidden = encoder.dropout(hidden)
        bias = attention_bias(mask[:, None, None, :])
        states = []
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask=bias)
            states.append(hidden)
        if self.stable:
            states[-1] = encoder.layer_norm(hidden)
        return states

    def states(self, frames: Tensor, mask: Tensor) -> list[Tensor]:
        """Each layer's output [batch, frames, hidden].

        Args:
            frames: of `front`.
            mask: bool [batch, frames]; what it leaves out has no influence.
        """
        return self.walk(self.project(frames, mask), mask)

    def count(self, samples: Tensor) -> Tensor:
        """Frames that lie wholly within so many samples (int64, any shape)."""
        whole = torch.div(samples - self.field, self.hop, rounding_mode="floor") + 1
        return whole.clamp(min=0)

    def utterance(self, projected: Tensor, mask: Tensor) -> Tensor:
        """Features [batch, hidden] of what `project` made."""
        return masked_mean(combined(self.walk(projected, mask), self.pool_layers), mask)

    def frames(self, audio_values: Tensor, audio_length: Tensor) -> tuple[Tensor, Tensor]:
        """The last four layers as one, frame by frame: [batch, frames, hidden], and which frames
        are valid, bool [batch, frames]; arguments as of `forward`."""
        front = self.front(audio_values, audio_length)
        mask = length_mask(self.count(audio_length), front.shape[1])
        return combined(self.states(front, mask), self.pool_layers), mask

    def forward(self, audio_values: Tensor, audio_length: Tensor) -> Tensor:
        """Features of a batch of sounds.

        Args:
            audio_values: float32 [batch, samples], z-normed, right padded, at least one frame's.
            audio_length: int64 [batch, 1], how many samples are valid; 0 means no sound.

        Returns:
            audio_features float32 [batch, hidden]; without a whole frame, zeros.
        """
        return masked_mean(*self.frames(audio_values, audio_length))


def from_recipe(recipe: Recipe) -> tuple[AudioConfig, AudioEncoder]:
    """The encoder before training, at random weights or a checkpoint's, and its true sizes.

    Under `torch.device("meta")` a checkpoint gives the sizes alone.

    Raises:
        BundleError, InvalidInputError: the checkpoint is missing, damaged or of another kind.
    """
    config = recipe.audio_encoder
    if not config.checkpoint:
        return config, AudioEncoder(config)
    checkpoint, config = sizes_of(config, hub=recipe.run.hub)
    encoder = AudioEncoder(config)
    if not encoder.model.feature_projection.projection.weight.is_meta:
        fill(encoder, checkpoint)
    return config, encoder


def load(run: Path) -> AudioEncoder:
    """The trained step of a run, in eval mode."""
    return load_module(run, STEP, AudioConfig, AudioEncoder)


def _hubert_config(config: AudioConfig) -> HubertConfig:
    return HubertConfig(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        conv_dim=config.conv_channels,
        conv_kernel=config.conv_kernels,
        conv_stride=config.conv_strides,
        conv_bias=config.conv_bias,
        feat_extract_norm=config.norm,
        feat_proj_layer_norm=config.projection_norm,
        do_stable_layer_norm=config.stable,
        num_conv_pos_embeddings=config.position_kernel,
        num_conv_pos_embedding_groups=config.position_groups,
        hidden_dropout=config.dropout,
        attention_dropout=config.dropout,
        activation_dropout=config.dropout,
        feat_proj_dropout=config.dropout,
        layerdrop=0.0,
        mask_time_prob=0.05 if config.mask_vector else 0.0,  # any share makes it have the vector
        mask_feature_prob=0.0,
        attn_implementation="eager",
    )


def _group_normed(layer: Any, audio: Tensor, samples: Tensor) -> Tensor:
    """The base style's first layer, [batch, 1, samples] -> [batch, channels, frames]: its norm
    takes each channel over time, here over the frames that lie within the valid samples."""
    convolution, norm = layer.conv, layer.layer_norm
    hidden = convolution(audio)
    size, step = convolution.kernel_size[0], convolution.stride[0]
    count = (torch.div(samples - size, step, rounding_mode="floor") + 1).clamp(min=0)
    mask = length_mask(count, hidden.shape[2]).unsqueeze(1)
    # Means over all frames, then set right: a sum over a minute's frames is too large for float16.
    share = mask.to(hidden.dtype).mean(2, keepdim=True).clamp(min=1e-6)
    zeros = torch.zeros_like(hidden)
    centred = hidden - torch.where(mask, hidden, zeros).mean(2, keepdim=True) / share
    variance = torch.where(mask, centred, zeros).square().mean(2, keepdim=True) / share
    normal = centred * torch.rsqrt(variance + norm.eps)
    return F.gelu(normal * norm.weight[:, None] + norm.bias[:, None])
