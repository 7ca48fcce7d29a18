"""Sizes and schedules of the joint encoder, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from merkit_training.settings import Amount, Count, Share, divides


@dataclass(frozen=True)
class JointConfig:
    """Whisper encoder, projector and LLM over sound, prompt and transcript (seed 2.3).

    The LLM has the text encoder's sizes and starts from its weights.
    """

    hidden: Count = 128  # width of the audio tower
    layers: Count = 2  # of the audio tower
    heads: Count = 4
    intermediate: Count = 384
    frames_per_embedding: Count = 4  # frames of the tower that become one audio embedding
    tower_epochs: Count = 4  # of the audio tower alone
    tower_lr: Amount = 1e-3
    epochs: Count = 3  # of all together
    lr: Amount = 5e-4
    batch_size: Count = 32
    modality_dropout: Share = 0.1  # share of samples without sound, and again without words
    noise_share: Share = 0.5  # share of training sounds mixed with babble
    prosody_weight: Amount = 0.5
    class_weight: Amount = 0.5
    label_smoothing: Share = 0.05
    bf16: bool = False  # bfloat16 autocast: faster where the processor has it
    threads: Count = 2  # of torch, while this stage trains

    def __post_init__(self) -> None:
        divides(self.hidden, self.heads)
