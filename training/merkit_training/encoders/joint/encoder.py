"""The joint audio-text encoder (seed 2.3): sound and words meet inside one LLM, as in Qwen-Audio.

A Whisper encoder turns the log-mel spectrum into audio embeddings; they stand before the prompt
and the transcript in the LLM's sequence (or where the prompt says), and all of it learns together
to name the emotion as the next word. The features are the mean of the LLM's last four layers at
one or all positions.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from merkit.contract import MODALITIES
from merkit_training.encoders.joint.config import JointSizes, Pool
from merkit_training.encoders.joint.tower import (
    STRIDE,
    AudioTower,
    averaged,
    compacted,
    sounding,
)
from merkit_training.encoders.pooling import Layers, combined, length_mask, masked_mean
from merkit_training.encoders.store import load_module
from merkit_training.encoders.text.decoder import make_decoder

STEP = "joint_encoder"
AUDIO = MODALITIES.index("audio")


class JointEncoder(nn.Module):
    """The `joint_encoder` step."""

    def __init__(self, sizes: JointSizes) -> None:
        super().__init__()
        joint, width = sizes.joint, sizes.llm.hidden
        self.width = width
        self.pool: Pool = sizes.pool
        self.layers: Layers = "sum" if joint.layer_sum else "mean"
        self.adapter, self.by = joint.adapter, joint.frames_per_embedding
        self.audio_at, self.mask_padding = sizes.audio_at, joint.mask_padding
        self.tower = AudioTower(joint, sizes.mel_bins, sizes.mel_frames)
        self.projector: nn.Module = nn.Linear(joint.hidden, width)
        if joint.adapter == "mlp":
            self.projector = nn.Sequential(self.projector, nn.GELU(), nn.Linear(width, width))
        self.markers = nn.Embedding(2, width) if joint.markers else None
        self.decoder = make_decoder(sizes.llm)
        embeddings = sizes.mel_frames // STRIDE // self.by
        self.audio_positions = embeddings + (2 if joint.markers else 0)

    def sound(self, log_mel: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
        """Audio embeddings [batch, positions, hidden] and the mask of those that count; `heard`
        (bool [batch, 1]) says which clips have sound."""
        lengths = sounding(log_mel) if self.mask_padding else None
        frames = self.tower.raw(log_mel, lengths)
        if self.adapter == "linear":
            frames = self.tower.norm(averaged(frames, self.by))
        else:
            frames = averaged(self.tower.norm(frames), self.by)
        made = self.projector(frames)
        made = torch.where(heard[:, :, None], made, torch.zeros_like(made))
        visible = heard.expand(-1, made.shape[1])
        if lengths is not None:
            visible = visible & length_mask(lengths // self.by, made.shape[1])
        if self.markers is not None:
            begin, end = (self._marker(which, made.shape[0]) for which in (0, 1))
            made = torch.cat((begin, made, end), dim=1)
            visible = torch.cat((heard, visible, heard), dim=1)
        return made, visible

    def _marker(self, which: int, batch: int) -> Tensor:
        """What stands before (0) or after (1) the sound, [batch, 1, hidden]."""
        assert self.markers is not None
        return self.markers.weight[which].expand(batch, 1, -1)

    def states(
        self, log_mel: Tensor, joint_ids: Tensor, joint_length: Tensor, presence: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Each layer's output over [audio][prompt and transcript], the mask of the positions
        that count, and the mask of the last of them (which predicts the emotion)."""
        words = length_mask(joint_length, joint_ids.shape[1])
        last = words & ~length_mask(joint_length - 1, joint_ids.shape[1])
        embedded, at = self.decoder.embed(joint_ids), self.audio_at
        front, audible = self.sound(log_mel, presence[:, AUDIO, None])
        if at:
            front = torch.cat((embedded[:, :at], front), dim=1)
            audible = torch.cat((words[:, :at], audible), dim=1)
        if at or self.mask_padding:  # else nothing hidden stands between two that are seen
            front, audible = compacted(front, audible)
        embeddings = torch.cat((front, embedded[:, at:]), dim=1)
        mask = torch.cat((audible, words[:, at:]), dim=1)
        at_end = torch.cat((torch.zeros_like(audible), last[:, at:]), dim=1)
        return self.decoder.states(embeddings, mask), mask, at_end

    def after_sound(self, states: Tensor) -> Tensor:
        """Of [batch, positions, ...] what belongs to `joint_ids` from `audio_at` on."""
        return states[:, self.audio_at + self.audio_positions :]

    def frames(
        self, log_mel: Tensor, joint_ids: Tensor, joint_length: Tensor, presence: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The last four layers as one at each position, [batch, positions, hidden], and the mask
        bool [batch, positions] of those that count; arguments as of `forward`."""
        states, mask, _ = self.states(log_mel, joint_ids, joint_length, presence)
        return combined(states, self.layers), mask

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
        positions = at_end if self.pool == "last" else mask
        return masked_mean(combined(states, self.layers), positions)


def load(run: Path) -> JointEncoder:
    """The trained step of a run, in eval mode."""
    return load_module(run, STEP, JointSizes, JointEncoder)
