"""The audio encoder: HuBERT on the raw waveform, features from its last four layers (2.2.2).

HuBERT-base normalises over time, so that padding changes every feature; the large style used
here does not (docs/decisions.md). Layers are walked here because transformers zeroes padding in
place by a boolean index, which cannot be exported, and hands out the last layer un-normed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from merkit_training.encoders.pooling import attention_bias, length_mask, pooled
from merkit_training.encoders.sound_config import AudioConfig
from merkit_training.encoders.store import load_module

STEP = "audio_encoder"
KERNELS = (10, 3, 3, 3, 3, 2, 2)  # HuBERT's, as are the strides: a frame each 20 ms
STRIDES = (5, 2, 2, 2, 2, 2, 2)
HOP = 320  # samples from frame to frame: the product of the strides
FIELD = 400  # samples that one frame sees


class AudioEncoder(nn.Module):
    """The `audio_encoder` step."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.model = HubertModel(
            HubertConfig(
                hidden_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.intermediate,
                conv_dim=config.conv_channels,
                conv_kernel=KERNELS,
                conv_stride=STRIDES,
                conv_bias=True,
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
                num_conv_pos_embeddings=config.position_kernel,
                num_conv_pos_embedding_groups=config.position_groups,
                # dropout costs half of a step on a CPU; cached frames are masked instead
                hidden_dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.0,
                feat_proj_dropout=0.0,
                layerdrop=0.0,
                mask_time_prob=0.0,
                mask_feature_prob=0.0,
                attn_implementation="eager",
            )
        )

    def front(self, audio_values: Tensor) -> Tensor:
        """Convolutional frames: float32 [batch, samples] -> [batch, frames, channels]."""
        frames: Tensor = self.model.feature_extractor(audio_values)
        return frames.transpose(1, 2)

    def states(self, frames: Tensor, mask: Tensor) -> list[Tensor]:
        """Each layer's output [batch, frames, hidden], the last one normed.

        Args:
            frames: of `front`.
            mask: bool [batch, frames]; what it leaves out has no influence.
        """
        encoder = self.model.encoder
        hidden = self.model.feature_projection(frames)
        hidden = torch.where(mask.unsqueeze(-1), hidden, torch.zeros_like(hidden))
        hidden = hidden + encoder.pos_conv_embed(hidden)
        bias = attention_bias(mask[:, None, None, :])
        states = []
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask=bias)
            states.append(hidden)
        states[-1] = encoder.layer_norm(hidden)
        return states

    def forward(self, audio_values: Tensor, audio_mask: Tensor) -> Tensor:
        """Features of a batch of sounds.

        Args:
            audio_values: float32 [batch, samples], z-normed, right padded; samples >= 400.
            audio_mask: int64 [batch, samples], 1 on the valid part.

        Returns:
            audio_features float32 [batch, hidden]; of fewer than 400 valid samples, zeros.
        """
        frames = self.front(audio_values)
        mask = length_mask(frame_count(audio_mask.sum(1, keepdim=True)), frames.shape[1])
        return pooled(self.states(frames, mask), mask)


def frame_count(samples: Tensor) -> Tensor:
    """Frames that lie wholly within so many samples (int64, any shape)."""
    return (torch.div(samples - FIELD, HOP, rounding_mode="floor") + 1).clamp(min=0)


def load(run: Path) -> AudioEncoder:
    """The trained step of a run, in eval mode."""
    return load_module(run, STEP, AudioConfig, AudioEncoder)
