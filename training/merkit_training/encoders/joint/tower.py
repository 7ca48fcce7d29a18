"""The audio tower: Whisper's encoder over a fixed window, and what of the window holds sound.

Whisper hears windows of one length only, padded with silence. Qwen-Audio does not let its LLM see
that padding; how far the sound reaches is read off the spectrogram itself, so that the step needs
no further input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from merkit_training.encoders.joint.config import JointConfig
from merkit_training.encoders.pooling import attention_bias, length_mask

STRIDE = 2  # frames of the spectrogram (10 ms) for one of the tower (20 ms)


class AudioTower(nn.Module):
    """Whisper's encoder over a fixed window."""

    def __init__(self, config: JointConfig, mel_bins: int, mel_frames: int) -> None:
        super().__init__()
        self.model = WhisperEncoder(
            WhisperConfig(
                d_model=config.hidden,
                encoder_layers=config.layers,
                encoder_attention_heads=config.heads,
                encoder_ffn_dim=config.intermediate,
                num_mel_bins=mel_bins,
                max_source_positions=mel_frames // STRIDE,
                dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.0,
                attn_implementation="eager",
            )
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """float32 [batch, mels, frames] -> [batch, frames / 2, hidden]."""
        return self.norm(self.raw(log_mel))

    def raw(self, log_mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As `forward`, without the final norm; attends to the first `lengths` (int64 [batch, 1])
        frames of the result only, where given."""
        model = self.model
        hidden = nn.functional.gelu(model.conv1(log_mel))
        hidden = nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight
        bias = None
        if lengths is not None:
            bias = attention_bias(length_mask(lengths, hidden.shape[1]))[:, None, None]
        for layer in model.layers:
            hidden = layer(hidden, bias)
        raw: Tensor = hidden
        return raw

    def norm(self, hidden: Tensor) -> Tensor:
        """Whisper's final norm, which the adapters apply at different places."""
        normed: Tensor = self.model.layer_norm(hidden)
        return normed


def sounding(log_mel: Tensor) -> Tensor:
    """int64 [batch, 1]: frames of the tower up to the end of the sound.

    Padding has exactly the floor of the clip's spectrogram (8 below its peak, in powers of ten),
    so what follows the last value above it is padding, or silence that deep. Against counting
    samples this errs by up to two frames of the spectrogram, the width of its window.
    """
    above = (log_mel > log_mel.amin((1, 2), keepdim=True)).any(1)
    counts = torch.arange(1, log_mel.shape[2] + 1, device=log_mel.device)
    frames = torch.where(above, counts, torch.zeros_like(counts)).amax(1, keepdim=True)
    return (frames + STRIDE - 1) // STRIDE


def averaged(frames: Tensor, by: int) -> Tensor:
    """[batch, time, width] -> [batch, time / by, width]; frames that fill no group are left out."""
    whole = frames.shape[1] // by * by
    groups = frames[:, :whole].reshape(frames.shape[0], -1, by, frames.shape[2])
    return groups.mean(2)


def compacted(embeddings: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """The visible of [batch, time, width] moved to the end in their order, so that what follows
    stands beside them, and the mask bool [batch, time] of their new places."""
    time = embeddings.shape[1]
    places = torch.arange(time, device=embeddings.device)
    ranks = places - (time - visible.sum(1, keepdim=True))  # [batch, time]; below 0: nothing
    passed = visible.long().cumsum(1)[:, None] <= ranks[:, :, None]
    source = passed.sum(2).clamp(max=time - 1)
    moved = embeddings.gather(1, source[:, :, None].expand(-1, -1, embeddings.shape[2]))
    return moved, ranks >= 0
