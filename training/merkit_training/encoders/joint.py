"""The joint audio-text encoder (seed 2.3): sound and words meet inside one LLM, as in Qwen-Audio.

A Whisper encoder turns the log-mel spectrum into audio embeddings; they stand before the prompt
and the transcript in the LLM's sequence, and all of it learns together to name the emotion as
the next word. The features are the mean of the LLM's last four layers at one or all positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from merkit.contract import MODALITIES, Preprocessing
from merkit_training.encoders.decoder import Decoder
from merkit_training.encoders.pooling import length_mask, pooled
from merkit_training.encoders.sound_config import JointConfig, TextConfig
from merkit_training.encoders.store import load_module

STEP = "joint_encoder"
AUDIO = MODALITIES.index("audio")


@dataclass(frozen=True)
class JointSizes:
    """All that the module's shapes follow from; lies beside its weights as `config.json`."""

    joint: JointConfig
    text: TextConfig  # of the LLM
    mel_bins: int
    mel_frames: int
    pool: Literal["mean", "last"] = "last"  # the positions whose states become the feature

    @staticmethod
    def of(joint: JointConfig, text: TextConfig, p: Preprocessing) -> JointSizes:
        """The sizes that a recipe asks for."""
        frames = round(p.joint_window_seconds * 100)
        return JointSizes(joint, text, p.mel_bins, frames)


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
                max_source_positions=mel_frames // 2,
                dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.0,
                attn_implementation="eager",
            )
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """float32 [batch, mels, frames] -> [batch, frames / 2, hidden]."""
        model = self.model
        hidden = nn.functional.gelu(model.conv1(log_mel))
        hidden = nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight
        for layer in model.layers:
            hidden = layer(hidden, None)
        normed: Tensor = model.layer_norm(hidden)
        return normed


class JointEncoder(nn.Module):
    """The `joint_encoder` step."""

    def __init__(self, sizes: JointSizes) -> None:
        super().__init__()
        self.pool = sizes.pool
        self.tower = AudioTower(sizes.joint, sizes.mel_bins, sizes.mel_frames)
        self.frames_per_embedding = sizes.joint.frames_per_embedding
        self.projector = nn.Sequential(
            nn.Linear(sizes.joint.hidden, sizes.text.hidden),
            nn.GELU(),
            nn.Linear(sizes.text.hidden, sizes.text.hidden),
        )
        self.decoder = Decoder(sizes.text)

    def states(
        self, log_mel: Tensor, joint_ids: Tensor, joint_length: Tensor, presence: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Each layer's output over [audio][prompt and transcript], the mask of the positions
        that count, and the mask of the last of them (which predicts the emotion)."""
        frames = self.tower(log_mel)
        frames = frames.unflatten(1, (-1, self.frames_per_embedding)).mean(2)
        sound = self.projector(frames)
        heard = presence[:, AUDIO, None, None]
        sound = torch.where(heard, sound, torch.zeros_like(sound))
        embeddings = torch.cat((sound, self.decoder.embed(joint_ids)), dim=1)
        audible = heard[:, :, 0].expand(-1, sound.shape[1])
        words = length_mask(joint_length, joint_ids.shape[1])
        last = length_mask(joint_length, joint_ids.shape[1]) & ~length_mask(
            joint_length - 1, joint_ids.shape[1]
        )
        mask = torch.cat((audible, words), dim=1)
        at_end = torch.cat((torch.zeros_like(audible), last), dim=1)
        return self.decoder.states(embeddings, mask), mask, at_end

    def forward(
        self, log_mel: Tensor, joint_ids: Tensor, joint_length: Tensor, presence: Tensor
    ) -> Tensor:
        """Features of a batch of clips, of sound and words or of either alone.

        Args:
            log_mel: float32 [batch, mels, frames] of the fixed window.
            joint_ids: int64 [batch, tokens], prompt and transcript, right padded.
            joint_length: int64 [batch, 1], at least 1.
            presence: bool [batch, 3]; without audio, `log_mel` has no influence.

        Returns:
            joint_features float32 [batch, hidden].
        """
        states, mask, at_end = self.states(log_mel, joint_ids, joint_length, presence)
        return pooled(states, at_end if self.pool == "last" else mask)


def load(run: Path) -> JointEncoder:
    """The trained step of a run, in eval mode."""
    return load_module(run, STEP, JointSizes, JointEncoder)
