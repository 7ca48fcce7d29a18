"""Sizes and schedule of the separator, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from merkit_training.settings import Amount, Count, Natural, Share

SIZES = ("sources", "channels", "kernel", "layers", "query_key", "memory", "order")
"""The keys of `SeparatorConfig` that a checkpoint's tensors tell."""


@dataclass(frozen=True)
class SeparatorConfig:
    """MossFormer2 (Zhao et al. 2024; seed 2.4.2): two sources out of one waveform.

    Published, at 8 and at 16 kHz: channels 512, kernel 16, layers 24, group 256, query_key 128,
    memory 256, order 20.
    """

    # A folder with ClearerVoice-Studio's `last_best_checkpoint.pt` (16 kHz), ModelScope's
    # `pytorch_model.bin` (8 kHz), or model.safetensors under their names. Sizes are read off it.
    checkpoint: str = ""
    sample_rate: Literal[16000, 8000] = 16000  # inside; the step itself always takes 16 kHz
    sources: Count = 2
    channels: Count = 64  # of the encoder's frames, and of the mask network
    kernel: Count = 64  # samples of a frame; frames overlap by half
    layers: Count = 3  # pairs of an attention block and a recurrent block
    group: Count = 256  # frames among which attention is quadratic; no checkpoint tells it
    query_key: Count = 32  # width of queries and keys, of which up to 32 are rotated
    memory: Count = 32  # channels of the recurrent (FSMN) block
    order: Count = 20  # frames that a memory reaches to each side, before dilation
    dropout: Share = 0.0  # published: 0.1
    lapped_start: bool = (
        True  # without a checkpoint encoder and decoder begin as each other's inverse
    )
    # Of `mixtures` each. 0: a checkpoint is taken as published; without one there is no separator.
    epochs: Natural = 0
    mixtures: Count = 2000  # made anew in each epoch
    val_mixtures: Count = 200  # of validation's voices and sentences, always the same
    seconds: Amount = 2.0  # of each mixture in training
    snr: tuple[float, float] = (-5.0, 5.0)  # dB, of one voice to the other
    noise_snr: tuple[float, float] = (0.0, 12.0)  # dB, of a voice to noise
    noise_share: Share = 0.25  # of mixtures: a voice and noise instead of two voices
    batch_size: Count = 8
    lr: Amount = 1e-3
    weight_decay: Amount = 0.0
    bf16: bool = False
    threads: Count = 2  # of torch, while this stage trains

    @property
    def asked(self) -> bool:
        """Whether a recipe with this table wants the stage."""
        return self.epochs > 0 or bool(self.checkpoint)

    def __post_init__(self) -> None:
        if self.sources != 2:
            raise ValueError(f"sources is {self.sources}; the seed's rule chooses between 2")
        for name in ("channels", "kernel", "query_key"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name} ({getattr(self, name)}) must be even")
        for name in ("snr", "noise_snr"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} ({low}, {high}) must not fall")
        if self.seconds * self.sample_rate < self.kernel:
            raise ValueError(f"seconds ({self.seconds}) must hold one frame of {self.kernel}")
