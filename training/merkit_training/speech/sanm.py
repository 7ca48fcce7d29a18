"""SAN-M, the encoder that Paraformer and the CT-Transformer share, under FunASR's parameter names.

Self-attention alone smears the local order that speech and punctuation live on; SAN-M adds an FSMN
memory, a convolution over time for each channel, to what each layer attends to. Names and order
of operations are FunASR's, so that its checkpoints load key by key; the code is our own, and what
padding holds never reaches a valid frame (San-M, Gao et al. 2020, arXiv:2006.01713).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-12  # of every layer norm, as published
MASKED = -1e4  # a score that no softmax sees, and that half precision holds


@dataclass(frozen=True)
class SanmSizes:
    """The sizes of an encoder; keys of FunASR's `encoder_conf` in brackets."""

    inputs: int  # width of a frame [input_size]
    hidden: int  # width between layers [output_size]
    layers: int  # [num_blocks]
    heads: int  # [attention_heads]
    intermediate: int  # [linear_units]
    kernel: int = 11  # frames that a memory spans [kernel_size]
    shift: int = 0  # frames that its window lies further back than centred [sanm_shfit]
    dropout: float = 0.1  # [dropout_rate]
    attention_dropout: float = 0.1  # [attention_dropout_rate]


class LayerNorm(nn.LayerNorm):
    """A layer norm of `NORM_EPS`."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)


class Memory(nn.Module):
    """The FSMN memory: each channel's own filter over time, added to its input."""

    def __init__(self, hidden: int, kernel: int, shift: int, dropout: float) -> None:
        super().__init__()
        self.fsmn_block = nn.Conv1d(hidden, hidden, kernel, groups=hidden, bias=False)
        before = (kernel - 1) // 2 + shift
        self.pads = (before, kernel - 1 - before)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, valid: Tensor) -> Tensor:
        """float32 [b, t, hidden]; `valid` float32 [b, t, 1] is 1 on frames and 0 on padding."""
        kept = values * valid
        heard = self.fsmn_block(F.pad(kept.transpose(1, 2), self.pads)).transpose(1, 2)
        remembered: Tensor = self.dropout(heard + kept) * valid
        return remembered


class SanmAttention(Memory):
    """Self-attention plus the memory of its values (a subclass, since the published parameters
    of both stand side by side)."""

    def __init__(self, inputs: int, sizes: SanmSizes) -> None:
        super().__init__(sizes.hidden, sizes.kernel, sizes.shift, sizes.attention_dropout)
        self.heads = sizes.heads
        self.linear_q_k_v = nn.Linear(inputs, 3 * sizes.hidden)
        self.linear_out = nn.Linear(sizes.hidden, sizes.hidden)

    def forward(self, values: Tensor, valid: Tensor) -> Tensor:
        """float32 [b, t, hidden] of float32 [b, t, inputs] and `valid` float32 [b, t, 1]."""
        query, key, value = self.linear_q_k_v(values).chunk(3, dim=-1)
        memory = super().forward(value, valid)
        heard = attend(query, key, value, valid, self.heads, self.dropout)
        mixed: Tensor = self.linear_out(heard) + memory
        return mixed


def attend(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor, heads: int, dropout: nn.Module
) -> Tensor:
    """Scaled dot-product attention of float32 [b, n, hidden] over [b, t, hidden]; `valid`
    float32 [b, t, 1] says which keys count. Where none does, the result is finite and means
    nothing."""
    scale = (query.shape[-1] // heads) ** -0.5
    q, k, v = (_by_head(x, heads) for x in (query, key, value))
    scores = (q * scale) @ k.transpose(-2, -1)
    scores = scores.masked_fill(valid.transpose(1, 2)[:, None] < 0.5, MASKED)
    heard: Tensor = dropout(scores.softmax(-1)) @ v
    return heard.transpose(1, 2).flatten(-2)


def _by_head(values: Tensor, heads: int) -> Tensor:
    """[b, heads, n, width] of [b, n, hidden]."""
    batch, count, hidden = values.shape
    return values.reshape(batch, count, heads, hidden // heads).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self, hidden: int, intermediate: int, dropout: float) -> None:
        super().__init__()
        self.w_1 = nn.Linear(hidden, intermediate)
        self.w_2 = nn.Linear(intermediate, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Same shape as `values`."""
        changed: Tensor = self.w_2(self.dropout(self.w_1(values).relu()))
        return changed


class SanmLayer(nn.Module):
    """Norm, attention with memory, norm, feed-forward; the first layer changes the width and so
    has no residual around its attention."""

    def __init__(self, inputs: int, sizes: SanmSizes) -> None:
        super().__init__()
        self.self_attn = SanmAttention(inputs, sizes)
        self.feed_forward = FeedForward(sizes.hidden, sizes.intermediate, sizes.dropout)
        self.norm1 = LayerNorm(inputs)
        self.norm2 = LayerNorm(sizes.hidden)
        self.dropout = nn.Dropout(sizes.dropout)
        self.residual = inputs == sizes.hidden

    def forward(self, values: Tensor, valid: Tensor) -> Tensor:
        """float32 [b, t, hidden] of float32 [b, t, inputs]."""
        heard = self.dropout(self.self_attn(self.norm1(values), valid))
        heard = values + heard if self.residual else heard
        changed: Tensor = heard + self.dropout(self.feed_forward(self.norm2(heard)))
        return changed


class SanmEncoder(nn.Module):
    """FunASR's `SANMEncoder` with `input_layer: pe` and norms before each part."""

    def __init__(self, sizes: SanmSizes) -> None:
        super().__init__()
        self.scale = sizes.hidden**0.5
        self.encoders0 = nn.ModuleList([SanmLayer(sizes.inputs, sizes)])
        self.encoders = nn.ModuleList(
            SanmLayer(sizes.hidden, sizes) for _ in range(sizes.layers - 1)
        )
        self.after_norm = LayerNorm(sizes.hidden)

    def forward(self, frames: Tensor, valid: Tensor) -> Tensor:
        """Encodes frames.

        Args:
            frames: float32 [b, t, inputs].
            valid: float32 [b, t, 1], 1 on frames and 0 on padding.

        Returns:
            float32 [b, t, hidden]; on padding it means nothing.
        """
        values = frames * self.scale + positions(frames)
        for layer in (*self.encoders0, *self.encoders):
            values = layer(values, valid)
        normal: Tensor = self.after_norm(values)
        return normal


def positions(frames: Tensor) -> Tensor:
    """Sinusoids float32 [1, t, width] for float32 [b, t, width]: sines, then cosines, of places
    counted from 1, at wavelengths from 2 pi to 20000 pi."""
    time, half = frames.shape[1], frames.shape[2] // 2
    steps = torch.arange(half, device=frames.device, dtype=torch.float32)
    rates = torch.exp(steps * -(math.log(10_000.0) / (half - 1)))
    places = torch.arange(1, time + 1, device=frames.device, dtype=torch.float32)
    angles = places[None, :, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def valid_frames(lengths: Tensor, time: int) -> Tensor:
    """float32 [b, time, 1]: 1 before each of `lengths` (integers [b]), 0 from there on."""
    places = torch.arange(time, device=lengths.device)
    return (places < lengths[:, None]).float()[..., None]
