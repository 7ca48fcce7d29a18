"""MossFormer2: one waveform to its sources (Zhao et al. 2024; seed 2.4.2).

The step always takes and gives 16 kHz. A model that works at 8 kHz, as the seed's did, resamples
within its graph, so that no caller can feed it the wrong rate.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merkit.contract import Preprocessing
from merkit_training.encoders.store import load_module
from merkit_training.speech.separation.config import SeparatorConfig
from merkit_training.speech.separation.layers import (
    ROTATED,
    Attention,
    Extent,
    Pointwise,
    Recurrence,
    Rotary,
    SequenceNorm,
)

STEP = "separator"
RATE = Preprocessing.sample_rate  # Hz, of what comes in and goes out
HALF_TAPS = 48  # of the half-band filter between 16 and 8 kHz, to each side


class Blocks(nn.Module):
    """Attention and recurrence in turn."""

    def __init__(self, config: SeparatorConfig) -> None:
        super().__init__()
        c = config
        rotary = Rotary(min(ROTATED, c.query_key))  # one for all layers, as published
        self.fsmn = nn.ModuleList(
            Recurrence(c.channels, c.memory, c.order, c.dropout) for _ in range(c.layers)
        )
        self.layers = nn.ModuleList(
            Attention(c.channels, c.group, c.query_key, rotary, c.dropout) for _ in range(c.layers)
        )

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        turn = self.layers[0].rotary_pos_emb(x.shape[1])  # type: ignore[operator]
        for attention, recurrence in zip(self.layers, self.fsmn, strict=True):
            x = recurrence(attention(x, extent, turn), extent)
        return x


class Positions(nn.Module):
    """Sinusoids of a learnt size, [frames, channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        step = torch.arange(0, channels, 2).float() / channels
        self.register_buffer("inv_freq", 10_000.0**-step)
        self.inv_freq: Tensor

    def forward(self, frames: int) -> Tensor:
        places = torch.arange(frames, device=self.inv_freq.device).float()
        angle = places[:, None] * self.inv_freq
        return torch.cat((angle.sin(), angle.cos()), dim=-1) * self.scale


class MaskNet(nn.Module):
    """Frames to one mask for each source."""

    def __init__(self, config: SeparatorConfig) -> None:
        super().__init__()
        width = config.channels
        self.sources = config.sources
        self.norm = SequenceNorm(width)
        self.conv1d_encoder = Pointwise(width, width, bias=False)
        self.pos_enc = Positions(width)
        intra = nn.Module()
        intra.mossformerM = Blocks(config)
        intra.norm = nn.LayerNorm(width, eps=1e-6)
        self.mdl = nn.Module()
        self.mdl.intra_mdl, self.mdl.intra_norm = intra, SequenceNorm(width)
        self.conv1d_out = Pointwise(width, width * config.sources)
        self.conv1_decoder = Pointwise(width, width, bias=False)
        self.prelu = nn.PReLU()
        self.output = nn.Sequential(Pointwise(width, width), nn.Tanh())
        self.output_gate = nn.Sequential(Pointwise(width, width), nn.Sigmoid())

    def forward(self, frames: Tensor, extent: Extent) -> Tensor:
        """[b, frames, channels] to [b, frames, sources, channels], 0 or more."""
        x = self.conv1d_encoder(self.norm(frames, extent)) + self.pos_enc(frames.shape[1])
        intra = self.mdl.intra_mdl
        seen = intra.norm(intra.mossformerM(x, extent))  # type: ignore[operator,union-attr]
        x = self.prelu(self.mdl.intra_norm(seen, extent) + x)  # type: ignore[operator]
        each = self.conv1d_out(x).reshape(*x.shape[:2], self.sources, -1)
        return F.relu(self.conv1_decoder(self.output(each) * self.output_gate(each)))


class MossFormer2(nn.Module):
    """The published model at its own sample rate: `enc`, `mask_net`, `dec`."""

    def __init__(self, config: SeparatorConfig) -> None:
        super().__init__()
        self.kernel, self.stride, self.group = config.kernel, config.kernel // 2, config.group
        self.enc = nn.Module()
        self.enc.conv1d = nn.Conv1d(1, config.channels, config.kernel, self.stride, bias=False)
        self.mask_net = MaskNet(config)
        self.dec = nn.ConvTranspose1d(config.channels, 1, config.kernel, self.stride, bias=False)

    def forward(self, waveform: Tensor, length: Tensor) -> Tensor:
        """float32 [b, s] and int64 [b, 1] to [b, sources, s]; see `Separator`."""
        samples = waveform.shape[1]
        room = torch.sym_max(samples, self.kernel)  # type: ignore[no-untyped-call]
        seen = F.relu(self.enc.conv1d(F.pad(waveform, (0, room - samples))[:, None]))  # type: ignore[operator]
        groups = (seen.shape[-1] + self.group - 1) // self.group
        whole = F.pad(seen.transpose(1, 2), (0, 0, 0, self.group))[:, : groups * self.group]
        valid = (length - self.kernel + self.stride).clamp(min=0) // self.stride
        extent = Extent.of(valid, whole.shape[1])
        # frames beyond a row's end would be decoded into it
        shown = whole[:, :, None] * self.mask_net(whole, extent) * extent.mask[..., None]
        rows = shown.permute(0, 2, 3, 1).flatten(0, 1)  # [b * sources, channels, frames]
        made = F.pad(self.dec(rows)[:, 0], (0, self.stride))[:, :samples]
        return made.reshape(len(waveform), self.mask_net.sources, -1)


class Separator(nn.Module):
    """The step: 16 kHz in, 16 kHz out, whatever rate the model works at."""

    def __init__(self, config: SeparatorConfig) -> None:
        super().__init__()
        self.halves = config.sample_rate * 2 == RATE
        self.model = MossFormer2(config)
        if self.halves:
            self.register_buffer("taps", half_band(), False)
            self.taps: Tensor

    def forward(self, waveform: Tensor, length: Tensor) -> Tensor:
        """Sources float32 [b, sources, s] of `waveform` float32 [b, s], 16 kHz in -1..1, right
        padded, of which `length` int64 [b, 1] samples are real.

        Neither padding nor the other rows have any influence. Sources come in no order and at no
        level: `merkit.speech.separate` restores both. A sound shorter than a frame is silence.
        """
        samples = waveform.shape[1]
        real = torch.arange(samples, device=waveform.device) < length
        heard = torch.where(real, waveform, torch.zeros_like(waveform))
        if not self.halves:
            made: Tensor = self.model(heard, length)
            return made * real[:, None]
        # one zero more, so that there is something to filter in no sound at all
        padded = F.pad(heard, (0, 1))[:, None]
        low = F.conv1d(padded, self.taps, stride=2, padding=HALF_TAPS)[:, 0]
        made = self.model(low, (length + 1) // 2)
        rows = made.flatten(0, 1)[:, None]
        high = F.conv_transpose1d(rows, 2 * self.taps, stride=2, padding=HALF_TAPS)
        return high[:, 0, :samples].reshape(len(made), made.shape[1], -1) * real[:, None]


@torch.no_grad()
def begin_lapped(model: MossFormer2) -> None:
    """Makes the encoder an MDCT and the decoder its inverse, so that training begins with a sound
    that comes back, not with noise.

    Each wave stands there twice, with both signs, as the encoder keeps what is positive alone. Of
    channels fewer than a frame's samples the lowest frequencies are taken; more stay random.
    """
    waves = lapped_waves(model.stride)
    signed = torch.stack((waves, -waves), dim=1).flatten(0, 1)[: model.dec.weight.shape[0]]
    for weight in (model.enc.get_parameter("conv1d.weight"), model.dec.weight):
        weight[: len(signed), 0] = signed


def lapped_waves(hop: int) -> Tensor:
    """The MDCT's orthonormal waves under a sine window, [hop, 2 hop] (Princen and Bradley 1986)."""
    place, tone = torch.arange(2 * hop).double() + 0.5, torch.arange(hop).double() + 0.5
    window = torch.sin(math.pi * place / (2 * hop)) * math.sqrt(2 / hop)
    return (window * torch.cos(math.pi / hop * tone[:, None] * (place + hop / 2))).float()


def half_band() -> Tensor:
    """A low-pass filter at a quarter of the sample rate, [1, 1, taps], of gain 1 (a sinc under a
    Kaiser window; 6 dB down at 3.84 kHz, 60 dB from about 4.2 kHz)."""
    place = torch.arange(-HALF_TAPS, HALF_TAPS + 1).double()
    window = torch.kaiser_window(2 * HALF_TAPS + 1, periodic=False, beta=6.0, dtype=torch.double)
    taps = torch.sinc(place * 0.48) * window
    return (taps / taps.sum()).float().view(1, 1, -1)


def frames_of(samples: int, config: SeparatorConfig) -> int:
    """How many frames the model makes of a sound at 16 kHz."""
    own = math.ceil(samples * config.sample_rate / RATE)
    return max(0, (own - config.kernel) // (config.kernel // 2) + 1)


def load(run: Path) -> Separator:
    """The separator of a finished run, in eval mode; errors as `encoders.store.load_module`."""
    return load_module(run, STEP, SeparatorConfig, Separator)
