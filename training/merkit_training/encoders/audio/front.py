"""What the convolutions learn first, where no checkpoint brings them: the log-mel spectrum.

From labels alone a stack of convolutions on raw samples learns next to nothing in minutes. The
spectrum is a target that costs nothing, and what a transformer needs to hear (docs/decisions.md).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.contract import Preprocessing
from merkit_training.encoders.audio.config import AudioConfig
from merkit_training.encoders.audio.encoder import AudioEncoder
from merkit_training.encoders.utterances import Utterances, batched
from merkit_training.fit import FitConfig, fit, step_rng
from merkit_training.preprocess import LogMel, SoundNorm

LOWEST, HIGHEST = 60.0, 7600.0  # Hz, of the waves with which the first layer begins
CROP_SECONDS = 1.0  # of the crops on which the convolutions learn
START_SAMPLES = 64  # sounds on which the first layer is scaled


class Front(nn.Module):
    """The convolutions with a linear reading of the log-mel spectrum."""

    def __init__(self, encoder: AudioEncoder, config: AudioConfig, p: Preprocessing) -> None:
        super().__init__()
        self.encoder = encoder
        self.read = nn.Linear(config.conv_channels[-1], p.mel_bins)
        self.sound = SoundNorm(p)
        self.mel = LogMel(replace(p, joint_window_seconds=CROP_SECONDS))
        self.first, self.step = config.field / 2 / self.mel.hop, config.hop / self.mel.hop

    def loss(self, waveform: Tensor, length: Tensor) -> Tensor:
        """Absolute error of the log-mel spectrum of crops, float32 [batch, crop]."""
        values, mask, _ = self.sound(waveform, length)
        frames = self.encoder.front(values, mask.sum(1, keepdim=True))
        spectrum = self.mel(values, length).transpose(1, 2)
        at = self.first + self.step * torch.arange(frames.shape[1], device=frames.device)
        below = at.long()  # spectrum frame before our centre
        share = (at - below)[:, None]
        target = spectrum[:, below] * (1 - share) + spectrum[:, below + 1] * share
        return F.l1_loss(self.read(frames), target)

    @torch.no_grad()
    def start_as_waves(self, waveform: Tensor, length: Tensor, rate: int) -> None:
        """Makes the first layer windowed waves, evenly spaced on the mel scale, four phases each,
        scaled so that each answers the given sounds with unit power."""
        layer = self.encoder.model.feature_extractor.conv_layers[0].conv
        channels, _, size = layer.weight.shape
        low, high = (2595 * math.log10(1 + f / 700) for f in (LOWEST, HIGHEST))
        pitches = 700 * (10 ** (torch.linspace(low, high, channels // 4) / 2595) - 1)
        angle = 2 * math.pi / rate * pitches[:, None] * (torch.arange(size) - size / 2)
        cos, sin = angle.cos(), angle.sin()
        layer.weight.copy_((torch.cat((cos, -cos, sin, -sin)) * torch.hann_window(size))[:, None])
        if layer.bias is not None:
            layer.bias.zero_()
        power = layer(self.sound(waveform, length)[0][:, None]).square().mean((0, 2))
        layer.weight.div_(power.sqrt().clamp(min=1e-3)[:, None, None])
        if layer.bias is not None:
            layer.bias.normal_(0, 0.3)  # the norm that follows would hide how loud a frame is


def learn_front(
    encoder: AudioEncoder, config: AudioConfig, p: Preprocessing, data: Utterances, folder: Path,
    seed: int,
) -> dict[str, float]:  # fmt: skip
    """Trains the convolutions in place; returns `front_loss`. Resumes as `fit` does."""
    front = Front(encoder, config, p)
    for weight in (*encoder.model.encoder.parameters(),
                   *encoder.model.feature_projection.parameters()):  # fmt: skip
        weight.requires_grad_(False)

    def crops(indices: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        size = round(CROP_SECONDS * p.sample_rate)
        return batched([data.crop(int(i), size, rng) for i in indices])

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        place = front.read.weight.device
        waveform, length = crops(indices, step_rng())
        return front.loss(waveform.to(place), length.to(place))

    if config.fourier_start:
        rng = np.random.default_rng(seed)
        some = rng.integers(len(data), size=START_SAMPLES)
        front.start_as_waves(*crops(some, rng), p.sample_rate)
    schedule = FitConfig(
        config.front_epochs, config.batch_size, config.front_lr, seed=seed, bf16=config.bf16
    )
    scores = fit(front, loss, len(data), schedule, folder, name="front")
    encoder.requires_grad_(True)
    return {"front_loss": scores["loss"]}
