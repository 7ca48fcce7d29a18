"""The parts of MossFormer2, told where a sound ends.

The published modules take statistics over all frames and attend to all of them, so that padding
changes every sample: a batch of two lengths would give other voices than each sound alone. Here
each part takes a mask. A row of a batch then equals the row alone, and the frames that fill the
last attention group are padding like any other. Parameter names and arithmetic are
ClearerVoice-Studio's (`mossformer2_ss`); frames are [batch, frames, channels] throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTATED = 32  # of the queries' and keys' channels, at most
CONV_KERNEL = 17  # frames of the depthwise convolution after each projection
MEMORY_DEPTH = 2  # dilated layers of a memory


@dataclass(frozen=True)
class Extent:
    """Which frames are real: `mask` float [b, frames, 1] of ones and zeros, and `count` [b, 1, 1],
    how many there are (1 where there are none, as it is divided by)."""

    mask: Tensor
    count: Tensor

    @staticmethod
    def of(valid: Tensor, frames: int) -> Extent:
        """From the number of real frames, int64 [b, 1], of `frames`."""
        mask = (torch.arange(frames, device=valid.device) < valid).float()
        return Extent(mask[..., None], valid.float().clamp(min=1)[..., None])


class Pointwise(nn.Conv1d):
    """A convolution of width 1, computed as the product that it is."""

    def __init__(self, channels: int, made: int, bias: bool = True) -> None:
        super().__init__(channels, made, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., channels] to [..., made]."""
        return F.linear(x, self.weight[..., 0], self.bias)


class ScaleNorm(nn.Module):
    """Each frame to a learnt length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.scale
        return x / norm.clamp(min=1e-5) * self.g


class SequenceNorm(nn.Module):
    """Zero mean and unit variance over all real frames and channels: GroupNorm of one group."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        size = extent.count * x.shape[-1]
        mean = (x * extent.mask).sum((1, 2), keepdim=True) / size
        centred = (x - mean) * extent.mask
        variance = centred.square().sum((1, 2), keepdim=True) / size
        # published: rsqrt(variance + 1e-8), of which exporters drop the sum as adding nothing
        return centred * (10 * torch.rsqrt(100 * variance + 1e-6)) * self.weight + self.bias


class InstanceNorm(nn.Module):
    """Zero mean and unit variance of each channel over the real frames, [b, c, frames, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Tensor, count: Tensor) -> Tensor:
        mean = (x * mask).sum(2, keepdim=True) / count
        centred = (x - mean) * mask
        variance = centred.square().sum(2, keepdim=True) / count
        normal = centred * torch.rsqrt(variance + 1e-5)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class Depthwise(nn.Module):
    """A frame's neighbourhood in each channel, added to the frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = CONV_KERNEL // 2
        inner = nn.Module()
        inner.conv = nn.Conv1d(
            channels, channels, CONV_KERNEL, padding=half, groups=channels, bias=False
        )
        self.sequential = nn.Sequential(nn.Identity(), inner)

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        near: Tensor = self.sequential[1].conv((x * extent.mask).transpose(1, 2))  # type: ignore[operator]
        return x + near.transpose(1, 2)


class Projection(nn.Module):
    """Norm, linear layer, SiLU and depthwise convolution (FFConvM)."""

    def __init__(self, width: int, made: int, norm: nn.Module, dropout: float) -> None:
        super().__init__()
        linear, conv = nn.Linear(width, made), Depthwise(made)
        self.mdl = nn.Sequential(norm, linear, nn.SiLU(), conv, nn.Dropout(dropout))

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        norm, linear, activation, conv, dropout = self.mdl
        made: Tensor = dropout(conv(activation(linear(norm(x))), extent))
        return made


class OffsetScale(nn.Module):
    """Four readings of one vector, each with a scale and an offset of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.02 * torch.randn(4, width))
        self.beta = nn.Parameter(torch.zeros(4, width))

    def forward(self, x: Tensor) -> Tensor:
        """[b, frames, width] to [b, frames, 4, width]."""
        return x[..., None, :] * self.gamma + self.beta


class Rotary(nn.Module):
    """Rotary positions of the first channels. Nothing is cached: a cache that an earlier sound
    filled would become a constant of the exported graph, and longer sounds would come out wrong."""

    def __init__(self, width: int) -> None:
        super().__init__()
        step = torch.arange(0, width, 2).float() / width
        self.freqs = nn.Parameter(10_000.0**-step, requires_grad=False)

    def forward(self, frames: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [frames, 1, width / 2]."""
        places = torch.arange(frames, device=self.freqs.device).float()
        angle = places[:, None, None] * self.freqs
        return angle.cos(), angle.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns neighbouring pairs of the first channels of [b, frames, 4, width]."""
    turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    even, odd = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((pairs.flatten(-2), rest), dim=-1)


class Attention(nn.Module):
    """Gated single-head attention: quadratic within groups of frames, linear over all of them."""

    def __init__(
        self, width: int, group: int, query_key: int, rotary: Rotary, dropout: float
    ) -> None:
        super().__init__()
        self.group = group
        self.rotary_pos_emb = rotary
        self.to_hidden = Projection(width, 4 * width, ScaleNorm(width), dropout)
        self.to_qk = Projection(width, query_key, ScaleNorm(width), dropout)
        self.qk_offset_scale = OffsetScale(query_key)
        self.to_out = Projection(2 * width, width, ScaleNorm(2 * width), dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, extent: Extent, turn: tuple[Tensor, Tensor]) -> Tensor:
        """[b, frames, width], frames a multiple of the group's size, `turn` of `Rotary`."""
        late, now = x.chunk(2, dim=-1)
        shifted = torch.cat((F.pad(late, (0, 0, 1, 0))[:, :-1], now), dim=-1)
        hidden = self.to_hidden(shifted, extent)
        readings = rotated(self.qk_offset_scale(self.to_qk(shifted, extent)), *turn)
        near_query, far_query, near_key, far_key = readings.unbind(2)
        near_key, far_key = near_key * extent.mask, far_key * extent.mask

        query, key, value = (
            t.reshape(len(t), -1, self.group, t.shape[2]) for t in (near_query, near_key, hidden)
        )
        weights = self.dropout(F.relu(query @ key.transpose(-1, -2) / self.group).square())
        near = (weights @ value).flatten(1, 2)
        far = far_query @ (far_key.transpose(1, 2) @ hidden / extent.count)

        v, u = hidden.chunk(2, dim=-1)
        seen_v, seen_u = (near + far).chunk(2, dim=-1)
        made: Tensor = self.to_out(seen_u * v * torch.sigmoid(seen_v * u), extent)
        return x + made


class DilatedMemory(nn.Module):
    """Two dilated convolutions over frames, the second over what the first made and saw."""

    def __init__(self, channels: int, order: int) -> None:
        super().__init__()
        for i in range(MEMORY_DEPTH):
            far = 2**i
            conv = nn.Conv2d(
                channels * (i + 1), channels, (2 * order - 1, 1), padding=((order - 1) * far, 0),
                dilation=(far, 1), groups=channels, bias=False,
            )  # fmt: skip
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"norm{i + 1}", InstanceNorm(channels))
            self.add_module(f"prelu{i + 1}", nn.PReLU(channels))

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        mask, count = extent.mask[:, None], extent.count[..., None]
        made = seen = x.transpose(1, 2)[..., None] * mask  # [b, channels, frames, 1]
        for i in range(1, MEMORY_DEPTH + 1):
            conv, norm, prelu = (self.get_submodule(f"{n}{i}") for n in ("conv", "norm", "prelu"))
            made = prelu(norm(conv(seen), mask, count)) * mask
            seen = torch.cat((made, seen), dim=1)
        return made[..., 0].transpose(1, 2)


class Memory(nn.Module):
    """FSMN: a projection whose neighbourhood is remembered (UniDeepFsmn_dilated)."""

    def __init__(self, channels: int, order: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels, bias=False)
        self.conv = DilatedMemory(channels, order)

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        remembered: Tensor = self.conv(self.project(F.relu(self.linear(x))), extent)
        return x + remembered


class GatedMemory(nn.Module):
    """A memory, gated by another projection of the same frames."""

    def __init__(self, channels: int, order: int, dropout: float) -> None:
        super().__init__()
        self.to_u = Projection(channels, channels, nn.LayerNorm(channels), dropout)
        self.to_v = Projection(channels, channels, nn.LayerNorm(channels), dropout)
        self.fsmn = Memory(channels, order)

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        remembered: Tensor = self.fsmn(self.to_u(x, extent), extent)
        gate: Tensor = self.to_v(x, extent)
        return gate * remembered + x


class Recurrence(nn.Module):
    """The recurrent block without recurrence: a gated memory in a bottleneck."""

    def __init__(self, width: int, channels: int, order: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(Pointwise(width, channels), nn.PReLU())
        self.norm1 = nn.LayerNorm(channels)
        self.gated_fsmn = GatedMemory(channels, order, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.conv2 = Pointwise(channels, width)

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        remembered = self.gated_fsmn(self.norm1(self.conv1(x)), extent)
        made: Tensor = self.conv2(self.norm2(remembered))
        return x + made
