"""Sound to the recogniser's inputs, as one tensor graph that equals Kaldi's filterbank.

Kaldi's front end is a loop over frames in C++, FunASR's a Python loop over utterances: neither can
stand in an ONNX file, and a front end written again for each runtime drifts (sherpa-onnx stacked
frames unlike FunASR for years). Removing the mean, pre-emphasis, window and Fourier transform are
all linear, so here they are one matrix and the spectrum is one convolution.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

RATE = 16_000  # Hz
WINDOW, STEP = RATE // 40, RATE // 100  # samples: 25 ms, 10 ms
FFT = 512  # the next power of two after WINDOW
PRE_EMPHASIS = 0.97
FULL_SCALE = 1 << 15  # Kaldi reads samples as 16-bit integers
LOWEST = 20.0  # Hz, where the first mel band begins
LEAST_POWER = float(np.finfo(np.float32).eps)  # below it the logarithm stays where it is


class Frontend(nn.Module):
    """Waveform to normalised stacks of log-mel frames (LFR), as FunASR's `WavFrontend`."""

    def __init__(self, mels: int = 80, stacked: int = 7, hop: int = 6) -> None:
        super().__init__()
        self.mels, self.stacked, self.hop = mels, stacked, hop
        waves = torch.from_numpy(_waves()).float()
        self.register_buffer("waves", waves[:, None], False)  # [2 bins, 1, WINDOW]
        self.register_buffer("filters", torch.from_numpy(_mel_filters(mels)).float(), False)
        self.register_buffer("shift", torch.zeros(mels * stacked))
        self.register_buffer("scale", torch.ones(mels * stacked))
        self.waves: Tensor
        self.filters: Tensor  # [mels, bins]
        self.shift: Tensor  # added to each number of an input ...
        self.scale: Tensor  # ... which is then multiplied: am.mvn's AddShift and Rescale

    def forward(self, waveform: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of a batch of sounds.

        Args:
            waveform: float32 [b, s], 16 kHz mono in -1..1, right padded; s may be 0.
            length: int64 [b], samples.

        Returns:
            float32 [b, t, stacked * mels], zero behind the end of each sound, and their number
            int64 [b]: 0 for sound of less than 25 ms. What padding holds has no influence.
        """
        fbank = self.fbank(waveform)
        frames = frame_count(length)
        stacks, counts = self.stack(fbank, frames)
        normal = (stacks + self.shift) * self.scale
        places = torch.arange(normal.shape[1], device=normal.device)
        inside = (places < counts[:, None])[..., None]
        return torch.where(inside, normal, torch.zeros_like(normal)), counts

    def fbank(self, waveform: Tensor) -> Tensor:
        """Log-mel energies float32 [b, f, mels] of float32 [b, s]; a frame that reaches beyond a
        sound's end is computed and means nothing."""
        samples = torch.sym_max(waveform.shape[1], WINDOW)  # type: ignore[no-untyped-call]
        padded = F.pad(waveform, (0, samples - waveform.shape[1])) * FULL_SCALE
        spectrum = F.conv1d(padded[:, None], self.waves, stride=STEP)
        real, imaginary = spectrum.chunk(2, dim=1)
        energies = self.filters @ (real.square() + imaginary.square())
        return energies.clamp(min=LEAST_POWER).log().transpose(1, 2)

    def stack(self, fbank: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Every `hop` frames a stack of `stacked` of them around it, the first and the last frame
        repeated beyond the ends: float32 [b, t, stacked * mels] and int64 [b]."""
        batch, most = fbank.shape[:2]
        inputs = (most + self.hop - 1) // self.hop
        device = fbank.device
        centres = self.hop * torch.arange(inputs, device=device)[:, None]
        around = torch.arange(self.stacked, device=device) - (self.stacked - 1) // 2
        last = (frames - 1).clamp(min=0)[:, None, None]
        at = torch.minimum((centres + around).clamp(min=0), last)  # [b, t, stacked]
        picked = fbank.gather(1, at.flatten(1)[..., None].expand(-1, -1, self.mels))
        stacks = picked.reshape(batch, inputs, self.stacked * self.mels)
        return stacks, (frames + self.hop - 1) // self.hop


def frame_count(length: Tensor) -> Tensor:
    """Whole windows of 25 ms in sounds of `length` samples, one each 10 ms."""
    return torch.where(
        length >= WINDOW, (length - WINDOW).clamp(min=0) // STEP + 1, torch.zeros_like(length)
    )


def _waves() -> NDArray[np.float64]:
    """[2 * FFT / 2, WINDOW]: what a frame is multiplied with for the real, then the imaginary
    parts of its spectrum (without the highest bin, which no mel band reads)."""
    centred = np.eye(WINDOW) - 1 / WINDOW
    before = np.eye(WINDOW, k=-1)
    before[0, 0] = 1  # the first sample is its own predecessor
    emphasised = np.eye(WINDOW) - PRE_EMPHASIS * before
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))
    angles = 2 * np.pi / FFT * np.outer(np.arange(FFT // 2), np.arange(WINDOW))
    transform = np.concatenate((np.cos(angles), -np.sin(angles)))
    waves: NDArray[np.float64] = (transform * hamming) @ emphasised @ centred
    return waves


def _mel_filters(mels: int) -> NDArray[np.float64]:
    """[mels, FFT / 2]: triangles that are straight on the mel scale, from LOWEST to half the
    rate, each as wide as two of its neighbours' distances."""
    low, high = _mel(LOWEST), _mel(RATE / 2)
    edges = np.linspace(low, high, mels + 2)
    place = np.array([_mel(RATE / FFT * bin_) for bin_ in range(FFT // 2)])
    width = edges[1] - edges[0]
    rise = (place - edges[:-2, None]) / width
    fall = (edges[2:, None] - place) / width
    filters: NDArray[np.float64] = np.maximum(np.minimum(rise, fall), 0)
    return filters


def _mel(frequency: float) -> float:
    return 1127.0 * math.log(1.0 + frequency / 700.0)
