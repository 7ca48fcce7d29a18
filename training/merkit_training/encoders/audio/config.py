"""Sizes and schedules of the audio encoder, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from merkit_training.settings import Amount, Count, Natural, Share, divides


@dataclass(frozen=True)
class AudioConfig:
    """The raw-waveform encoder, HuBERT-large in style (seed 2.2.2).

    Two cheap stages: the convolutions learn to predict the log-mel spectrum; their frames are
    cached, and the transformer learns emotion (and what the generator knows beside it) on them.
    """

    # HuBERT has seven convolutions of 512 channels, kernels 10 3 3 3 3 2 2, strides 5 2 2 2 2 2 2.
    # At this size such a stack does not learn a spectrum in minutes; three layers,
    # the first as wide as a spectrum's window, do (docs/decisions.md).
    conv_channels: tuple[int, ...] = (256, 256, 128)
    conv_kernels: tuple[int, ...] = (400, 2, 1)  # samples, then frames of the layer before
    conv_strides: tuple[int, ...] = (160, 2, 1)  # their product is the hop: a frame each 20 ms
    fourier_start: bool = True  # the first layer begins as windowed waves on the mel scale
    hidden: Count = 128  # width of the features
    layers: Count = 4
    heads: Count = 4
    intermediate: Count = 512
    position_kernel: Count = 32  # frames that the convolutional position embedding spans
    position_groups: Count = 8
    front_epochs: Count = 2  # over random seconds of the utterances, towards the log-mel spectrum
    front_lr: Amount = 2e-3
    epochs: Count = 8  # over the cached frames, of which each sample shows a random stretch
    lr: Amount = 1e-3
    crop_frames: Count = 140  # frames (of 20 ms) in such a stretch
    batch_size: Count = 32
    noisy_copies: Natural = 1  # cached copies with babble beside each clean utterance
    prosody_weight: Amount = 0.5  # of the generator's prosody parameters beside emotion
    class_weight: Amount = 0.5  # of the tone's and the words' own classes beside emotion
    label_smoothing: Share = 0.05
    bf16: bool = False  # bfloat16 autocast: faster where the processor has it
    threads: Count = 2  # of torch, while this stage trains

    def __post_init__(self) -> None:
        divides(self.hidden, self.heads)
        layers = (self.conv_channels, self.conv_kernels, self.conv_strides)
        if len({len(values) for values in layers}) != 1 or min(map(min, layers), default=0) < 1:
            raise ValueError(
                f"conv_channels, _kernels, _strides {layers} must be positive and as many"
            )
        if self.fourier_start and self.conv_channels[0] % 4:
            raise ValueError(f"conv_channels[0] ({self.conv_channels[0]}) must be a multiple of 4")

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return prod(self.conv_strides)

    @property
    def field(self) -> int:
        """Samples that one frame sees."""
        seen, step = 1, 1
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            seen, step = seen + (kernel - 1) * step, step * stride
        return seen
