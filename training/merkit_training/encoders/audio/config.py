"""Sizes and schedules of the audio encoder, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from merkit_training.settings import Amount, Count, Natural, Share, divides

SIZES = (
    "conv_channels", "conv_kernels", "conv_strides", "conv_bias", "norm", "stable",
    "projection_norm", "hidden", "layers", "heads", "intermediate", "position_kernel",
    "position_groups", "mask_vector",
)  # fmt: skip
"""The keys of `AudioConfig` that weights are made for; a checkpoint states them."""


@dataclass(frozen=True)
class AudioConfig:
    """The raw-waveform encoder: HuBERT, large or base in style (seed 2.2.2).

    From random weights it learns in two cheap stages: the convolutions learn to predict the
    log-mel spectrum; the transformer learns emotion (and what the generator knows beside it) on
    their frames. A checkpoint, or a finished `audio_pretraining`, brings convolutions that hear.
    """

    # A folder in Hugging Face's layout (or a hub's id with `[run] hub`). Its config.json then
    # states the sizes: the keys down to `mask_vector` are ignored.
    checkpoint: str = ""
    # HuBERT has seven convolutions of 512 channels, kernels 10 3 3 3 3 2 2, strides 5 2 2 2 2 2 2.
    # At the tiny size such a stack does not learn a spectrum in minutes; three layers,
    # the first as wide as a spectrum's window, do (docs/decisions.md).
    conv_channels: tuple[int, ...] = (256, 256, 128)
    conv_kernels: tuple[int, ...] = (400, 2, 1)  # samples, then frames of the layer before
    conv_strides: tuple[int, ...] = (160, 2, 1)  # their product is the hop: a frame each 20 ms
    conv_bias: bool = True  # HuBERT-base has none
    norm: Literal["layer", "group"] = "layer"  # large: after each convolution; base: the first's
    stable: bool = True  # large: norms before attention and MLP, one at the end; base: after them
    projection_norm: bool = True  # before the convolutions' frames are projected to `hidden`
    hidden: Count = 128  # width of the features
    layers: Count = 4
    heads: Count = 4
    intermediate: Count = 512
    position_kernel: Count = 32  # frames that the convolutional position embedding spans
    position_groups: Count = 8
    # A learnt vector for hidden frames, as HuBERT has: fine-tuning hides spans by it. Without,
    # training sets the convolutions' frames to zero.
    mask_vector: bool = False
    pool_layers: Literal["mean", "sum"] = "mean"  # of the last four; MERTools' features are sums
    fourier_start: bool = True  # the first layer begins as windowed waves on the mel scale
    front_epochs: Natural = 2  # over random seconds of the utterances, towards the log-mel spectrum
    front_lr: Amount = 2e-3
    epochs: Natural = 8  # over the utterances, of which each sample shows a random stretch; 0: none
    lr: Amount = 1e-3
    crop_frames: Count = 140  # frames (of 20 ms) in such a stretch
    batch_size: Count = 32
    dropout: Share = 0.0  # in the transformer; hidden frames take its place at the tiny size
    tune: Literal["full", "lora", "head"] = "full"  # of the transformer; convolutions stay frozen
    lora_rank: Count = 16  # the last three keys: of tune = "lora", on the attention's projections
    lora_alpha: Amount = 32.0
    lora_dropout: Share = 0.05
    # Frames of all utterances stay in memory as float16 (50 a second and copy, of as many numbers
    # as the last convolution has channels). Without, each step makes its own.
    cache_frames: bool = True
    noisy_copies: Natural = 1  # copies with babble beside each clean utterance
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
        if self.hidden % self.position_groups:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of position_groups"
                f" ({self.position_groups})"
            )
        if self.learns_front and self.fourier_start and self.conv_channels[0] % 4:
            raise ValueError(f"conv_channels[0] ({self.conv_channels[0]}) must be a multiple of 4")

    def sized_as(self, other: AudioConfig) -> AudioConfig:
        """The same schedule with the sizes of `other`."""
        return replace(self, **{name: getattr(other, name) for name in SIZES})

    @property
    def learns_front(self) -> bool:
        """Whether the convolutions first learn the log-mel spectrum."""
        return not self.checkpoint and self.front_epochs > 0

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


@dataclass(frozen=True)
class AudioPretrainingConfig:
    """Masked prediction of hidden units, as HuBERT is pre-trained; sizes are the encoder's own.

    The first iteration predicts clusters of cepstra, each later one clusters of what a layer of
    the encoder made after the iteration before.
    """

    epochs: Natural = 0  # over the utterances, for each iteration; 0: no pre-training
    iterations: Count = 2
    clusters: tuple[int, ...] = (100, 100)  # of each iteration; HuBERT: 100, then 500
    layer: Natural = 0  # whose output is clustered, from 1; 0: the middle one, as HuBERT's 6 of 12
    cluster_frames: Count = 100_000  # frames, drawn at random, on which k-means is fitted
    cepstra: Count = 13  # of the first iteration, with their first and second differences
    mask_share: Share = 0.65  # of frames that spans would hide if none overlapped
    mask_length: Count = 10  # frames in a span
    width: Count = 128  # of the space in which predictions and clusters meet; HuBERT: 256
    temperature: Amount = 0.1  # of the cosines
    lr: Amount = 1e-3
    batch_size: Count = 32
    crop_frames: Count = 140
    # Off: frames are cached and the convolutions stay as they learnt the spectrum, or as the
    # checkpoint has them. On, as HuBERT does it: they learn too, and each step makes its frames.
    train_convolutions: bool = False
    bf16: bool = False
    threads: Count = 2

    def __post_init__(self) -> None:
        if len(self.clusters) < self.iterations or min(self.clusters, default=0) < 2:
            raise ValueError(
                f"clusters {self.clusters} must name two or more for each of"
                f" {self.iterations} iterations"
            )
        if self.temperature <= 0:
            raise ValueError("temperature must be more than 0")
