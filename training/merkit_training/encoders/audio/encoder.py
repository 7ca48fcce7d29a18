"""The audio encoder: HuBERT on the raw waveform, features from its last four layers (2.2.2).

HuBERT-base normalises over time, so that padding changes every feature; the large style used
here does not (docs/decisions.md). Layers are walked here because transformers zeroes padding in
place by a boolean index, which cannot be exported, and hands out the last layer un-normed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import HubertConfig, HubertModel

from merkit.contract import Preprocessing
from merkit_training.encoders.audio.config import AudioConfig
from merkit_training.encoders.pooling import attention_bias, length_mask, pooled
from merkit_training.encoders.probe import features_of, head_scores, linear_probe
from merkit_training.encoders.store import load_module
from merkit_training.encoders.utterances import Heads, Utterances, batched
from merkit_training.fit import FitConfig, clear_checkpoints, fit, step_rng
from merkit_training.preprocess import LogMel, SoundNorm
from merkit_training.recipe import Recipe
from merkit_training.runs import save_step, stage_seed

STEP = "audio_encoder"
LOWEST, HIGHEST = 60.0, 7600.0  # Hz, of the waves with which the first layer begins
CROP_SECONDS = 1.0  # of the crops on which the convolutions learn
CACHE_BATCH = 32
START_SAMPLES = 64  # sounds on which the first layer is scaled
HIDDEN_SPANS, LONGEST_SPAN = 1, 15  # of frames hidden in each training sample


class AudioEncoder(nn.Module):
    """The `audio_encoder` step."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.hop, self.field = config.hop, config.field
        self.model = HubertModel(
            HubertConfig(
                hidden_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.intermediate,
                conv_dim=config.conv_channels,
                conv_kernel=config.conv_kernels,
                conv_stride=config.conv_strides,
                conv_bias=True,
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
                num_conv_pos_embeddings=config.position_kernel,
                num_conv_pos_embedding_groups=config.position_groups,
                # dropout costs half of a step on a CPU; cached frames are masked instead
                hidden_dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.0,
                feat_proj_dropout=0.0,
                layerdrop=0.0,
                mask_time_prob=0.0,
                mask_feature_prob=0.0,
                attn_implementation="eager",
            )
        )

    def front(self, audio_values: Tensor) -> Tensor:
        """Convolutional frames: float32 [batch, samples] -> [batch, frames, channels]."""
        frames: Tensor = self.model.feature_extractor(audio_values)
        return frames.transpose(1, 2)

    def states(self, frames: Tensor, mask: Tensor) -> list[Tensor]:
        """Each layer's output [batch, frames, hidden], the last one normed.

        Args:
            frames: of `front`.
            mask: bool [batch, frames]; what it leaves out has no influence.
        """
        encoder = self.model.encoder
        hidden = self.model.feature_projection(frames)
        hidden = torch.where(mask.unsqueeze(-1), hidden, torch.zeros_like(hidden))
        hidden = hidden + encoder.pos_conv_embed(hidden)
        bias = attention_bias(mask[:, None, None, :])
        states = []
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask=bias)
            states.append(hidden)
        states[-1] = encoder.layer_norm(hidden)
        return states

    def count(self, samples: Tensor) -> Tensor:
        """Frames that lie wholly within so many samples (int64, any shape)."""
        whole = torch.div(samples - self.field, self.hop, rounding_mode="floor") + 1
        return whole.clamp(min=0)

    def forward(self, audio_values: Tensor, audio_mask: Tensor) -> Tensor:
        """Features of a batch of sounds.

        Args:
            audio_values: float32 [batch, samples], z-normed, right padded, at least one frame's.
            audio_mask: int64 [batch, samples], 1 on the valid part.

        Returns:
            audio_features float32 [batch, hidden]; without a whole frame, zeros.
        """
        frames = self.front(audio_values)
        mask = length_mask(self.count(audio_mask.sum(1, keepdim=True)), frames.shape[1])
        return pooled(self.states(frames, mask), mask)


def load(run: Path) -> AudioEncoder:
    """The trained step of a run, in eval mode."""
    return load_module(run, STEP, AudioConfig, AudioEncoder)


class Front(nn.Module):
    """The convolutions with a linear reading of the log-mel spectrum: what they first learn."""

    def __init__(self, encoder: AudioEncoder, config: AudioConfig, p: Preprocessing) -> None:
        super().__init__()
        self.convolutions = encoder.model.feature_extractor
        self.read = nn.Linear(config.conv_channels[-1], p.mel_bins)
        self.sound = SoundNorm(p)
        self.mel = LogMel(replace(p, joint_window_seconds=CROP_SECONDS))
        self.first, self.step = config.field / 2 / self.mel.hop, config.hop / self.mel.hop

    def loss(self, waveform: Tensor, length: Tensor) -> Tensor:
        """Absolute error of the log-mel spectrum of crops, float32 [batch, crop]."""
        values, _, _ = self.sound(waveform, length)
        frames = self.convolutions(values).transpose(1, 2)
        spectrum = self.mel(values, length).transpose(1, 2)
        at = self.first + self.step * torch.arange(frames.shape[1])  # spectrum frame at our centre
        below = at.long()
        share = (at - below)[:, None]
        target = spectrum[:, below] * (1 - share) + spectrum[:, below + 1] * share
        return F.l1_loss(self.read(frames), target)

    @torch.no_grad()
    def start_as_waves(self, waveform: Tensor, length: Tensor, rate: int) -> None:
        """Makes the first layer windowed waves, evenly spaced on the mel scale, four phases each,
        scaled so that each answers the given sounds with unit power."""
        layer = self.convolutions.conv_layers[0].conv
        channels, _, size = layer.weight.shape
        low, high = (2595 * math.log10(1 + f / 700) for f in (LOWEST, HIGHEST))
        pitches = 700 * (10 ** (torch.linspace(low, high, channels // 4) / 2595) - 1)
        angle = 2 * math.pi / rate * pitches[:, None] * (torch.arange(size) - size / 2)
        cos, sin = angle.cos(), angle.sin()
        layer.weight.copy_((torch.cat((cos, -cos, sin, -sin)) * torch.hann_window(size))[:, None])
        layer.bias.zero_()
        power = layer(self.sound(waveform, length)[0][:, None]).square().mean((0, 2))
        layer.weight.div_(power.sqrt().clamp(min=1e-3)[:, None, None])
        layer.bias.normal_(0, 0.3)  # the norm that follows would hide how loud a frame is


class AudioLearner(nn.Module):
    """The encoder with the heads that teach it."""

    def __init__(self, encoder: AudioEncoder, width: int, prosody: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = Heads(width, prosody)


@dataclass(frozen=True)
class Frames:
    """Cached output of the convolutions: `copies` of each utterance, the first one clean."""

    values: Tensor  # float16 [copies, n, frames, channels]
    counts: Tensor  # int64 [n, 1]

    @staticmethod
    def of(
        encoder: AudioEncoder, data: Utterances, p: Preprocessing, noisy: int, seed: int
    ) -> Frames:
        """Runs the convolutions once over all utterances and `noisy` copies of them."""
        norm = SoundNorm(p)
        counts = encoder.count(torch.from_numpy(data.lengths)[:, None])
        width = encoder.model.config.conv_dim[-1]
        shape = (1 + noisy, len(data), int(counts.max()), width)
        values = torch.zeros(shape, dtype=torch.float16)
        starts = range(0, len(data), CACHE_BATCH)
        total = (1 + noisy) * len(starts)
        with torch.no_grad(), tqdm(total=total, desc="frames", unit="batch", mininterval=1) as bar:
            for copy in range(1 + noisy):
                for start in starts:
                    rows = range(start, min(start + CACHE_BATCH, len(data)))
                    waves = [data.take(i, copy, seed) for i in rows]
                    made = encoder.front(norm(*batched(waves))[0])
                    values[copy, rows.start : rows.stop, : made.shape[1]] = made.half()
                    bar.update()
        return Frames(values, counts)

    def batch(self, indices: NDArray[np.int64], copies: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Frames float32 [batch, frames, channels] (cut to the longest) and their mask."""
        counts = self.counts[indices]
        size = max(1, int(counts.max()))
        return self.values[copies, indices, :size].float(), length_mask(counts, size)

    def stretches(
        self, indices: NDArray[np.int64], copies: NDArray[np.int64], size: int
    ) -> tuple[Tensor, Tensor]:
        """The same of a random stretch of `size` frames from each (all of a shorter one)."""
        values, mask = self.batch(indices, copies)
        spare = (self.counts[indices] - size).clamp(min=0)
        at = (torch.rand(spare.shape) * (spare + 1)).long() + torch.arange(size)
        at = at.clamp(max=values.shape[1] - 1)
        values = values.gather(1, at[:, :, None].expand(-1, -1, values.shape[2]))
        return values, mask.gather(1, at) & length_mask(self.counts[indices], size)


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Convolutions towards the log-mel spectrum, then the transformer on their cached frames:
    emotion, tone, words and prosody side by side."""
    config, seed = recipe.audio_encoder, stage_seed(recipe, STEP)
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    torch.manual_seed(seed)
    p = recipe.preprocessing
    data, val = (Utterances.read(corpus, split) for split in ("train", "val"))
    encoder = AudioEncoder(config)
    folder = run / STEP

    front = Front(encoder, config, p)

    def crops(indices: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        size = round(CROP_SECONDS * p.sample_rate)
        return batched([data.crop(int(i), size, rng) for i in indices])

    def spectrum(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        return front.loss(*crops(indices, step_rng()))

    if config.fourier_start:
        rng = np.random.default_rng(seed)
        some = rng.integers(len(data), size=START_SAMPLES)
        front.start_as_waves(*crops(some, rng), p.sample_rate)

    schedule = FitConfig(
        config.front_epochs, config.batch_size, config.front_lr, seed=seed, bf16=config.bf16
    )
    first = fit(front, spectrum, len(data), schedule, folder, name="front")

    learner = AudioLearner(encoder, config.hidden, data.prosody.shape[1])
    frames = Frames.of(encoder, data, p, config.noisy_copies, seed)
    val_frames = Frames.of(encoder, val, p, 0, seed)
    for weight in encoder.model.feature_extractor.parameters():
        weight.requires_grad_(False)  # HuBERT too is fine-tuned with its convolutions frozen

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        copies = step_rng().integers(1 + config.noisy_copies, size=len(indices))
        values, mask = frames.stretches(indices, copies, config.crop_frames)
        features = pooled(encoder.states(_hide(values), mask), mask)
        return learner.heads.loss(
            features,
            data,
            torch.from_numpy(indices),
            prosody_weight=config.prosody_weight,
            class_weight=config.class_weight,
            smoothing=config.label_smoothing,
        )

    def evaluate(_: nn.Module) -> dict[str, float]:
        return head_scores(learner.heads.emotion(_features(encoder, val_frames)), val.labels)

    schedule = replace(schedule, epochs=config.epochs, lr=config.lr)
    scores = fit(learner, loss, len(data), schedule, folder, name="emotion", evaluate=evaluate)
    features = [_features(encoder, f).numpy() for f in (frames, val_frames)]
    scores |= linear_probe(features[0], data.labels.numpy(), features[1], val.labels.numpy())
    scores["front_loss"] = first["loss"]
    save_step(
        run, STEP, asdict(config), encoder.state_dict(), {"scores": scores, "data": "utterances"}
    )
    clear_checkpoints(folder)
    return scores


def _hide(values: Tensor) -> Tensor:
    """Sets two random spans of frames to zero in each sample, as SpecAugment does."""
    batch, time = values.shape[:2]
    at = torch.arange(time)
    for _ in range(HIDDEN_SPANS):
        start = (torch.rand(batch, 1) * time).long()
        width = (torch.rand(batch, 1) * LONGEST_SPAN).long()
        hidden = (at >= start) & (at < start + width)
        values = values * (~hidden)[:, :, None]
    return values


def _features(encoder: AudioEncoder, frames: Frames) -> Tensor:
    def encode(indices: NDArray[np.int64]) -> Tensor:
        values, mask = frames.batch(indices, np.zeros_like(indices))
        return pooled(encoder.states(values, mask), mask)

    return torch.from_numpy(features_of(encode, len(frames.counts)))
