"""Convolutional frames of utterances, kept in memory or made anew, for training and evaluation.

The convolutions take more than half of a HuBERT's time, and are frozen while it is fine-tuned:
running them once saves most of an epoch. But their frames of a large corpus do not fit into
memory. Both ways give the same batches, so that a recipe can choose (`cache_frames`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from merkit.contract import Preprocessing
from merkit_training.encoders.audio.encoder import AudioEncoder
from merkit_training.encoders.pooling import length_mask
from merkit_training.encoders.utterances import Utterances, Wave, batched
from merkit_training.preprocess import SoundNorm

MOST_TOGETHER = 64  # utterances in a batch without gradients
MOST_PAIRS = MOST_TOGETHER * 200**2  # pairs of frames in its attention: 64 of 4 s, 2 of 22 s

Indices = NDArray[np.int64]


class Frames(Protocol):
    """Frames of `1 + copies` versions of each utterance, the first one clean."""

    @property
    def counts(self) -> Tensor:
        """int64 [n, 1], frames of each utterance."""
        ...

    def batch(self, indices: Indices, copies: Indices) -> tuple[Tensor, Tensor]:
        """Frames float32 [batch, frames, channels] (right padded) and their mask."""
        ...

    def stretches(
        self, indices: Indices, copies: Indices, start: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """The same of at most `size` frames of each from `start` (int64 [batch, 1]) on."""
        ...


@dataclass(frozen=True)
class CachedFrames:
    """Frames made once, float16."""

    values: Tensor  # float16 [all frames, channels], utterance after utterance, copy after copy
    starts: Tensor  # int64 [copies, n], row of each one's first frame
    counts: Tensor

    @staticmethod
    def of(
        encoder: AudioEncoder, data: Utterances, p: Preprocessing, noisy: int, seed: int
    ) -> CachedFrames:
        """Runs the convolutions once over all utterances and `noisy` copies of them."""
        fresh = FreshFrames(encoder, data, p, seed)
        counts = fresh.counts.flatten()
        ends = counts.repeat(1 + noisy).cumsum(0)
        starts = (ends - counts.repeat(1 + noisy)).view(1 + noisy, -1)
        width = encoder.model.config.conv_dim[-1]
        values = torch.zeros(int(ends[-1]) + 1, width, dtype=torch.float16)  # one of padding
        with torch.no_grad(), tqdm(desc="frames", unit="utterance", mininterval=1) as bar:
            for copy in range(1 + noisy):
                for rows in by_length(fresh.counts):
                    made, _ = fresh.batch(rows, np.full_like(rows, copy))
                    for row, frames in zip(rows, made, strict=True):
                        start, count = int(starts[copy, row]), int(counts[row])
                        values[start : start + count] = frames[:count].half()
                    bar.update(len(rows))
        return CachedFrames(values, starts, fresh.counts)

    def batch(self, indices: Indices, copies: Indices) -> tuple[Tensor, Tensor]:
        counts = self.counts[indices]
        return self.stretches(indices, copies, torch.zeros_like(counts), int(counts.max()))

    def stretches(
        self, indices: Indices, copies: Indices, start: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        left = (self.counts[indices] - start).clamp(max=size)
        size = max(1, int(left.max()))
        at = self.starts[copies, indices][:, None] + start + torch.arange(size)
        mask = length_mask(left, size)
        values = self.values[at.clamp(max=len(self.values) - 1)].float()
        return values * mask[:, :, None], mask


class FreshFrames:
    """Frames made from the samples at each call, on the encoder's device; with gradients towards
    the convolutions where these learn."""

    def __init__(
        self, encoder: AudioEncoder, data: Utterances, p: Preprocessing, seed: int
    ) -> None:
        self.encoder, self.data, self.seed = encoder, data, seed
        self.norm = SoundNorm(p)
        self.counts = encoder.count(torch.from_numpy(data.lengths)[:, None])

    def batch(self, indices: Indices, copies: Indices) -> tuple[Tensor, Tensor]:
        values, length = self._sound(indices, copies)
        return self._made(values, length)

    def stretches(
        self, indices: Indices, copies: Indices, start: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        values, length = self._sound(indices, copies)  # z-normed over all of each, as deployed
        hop, field = self.encoder.hop, self.encoder.field
        left = (length - hop * start).clamp(max=(size - 1) * hop + field)
        samples = max(field, int(left.max()))
        at = (hop * start + torch.arange(samples)).clamp(max=values.shape[1] - 1)
        return self._made(values.gather(1, at) * length_mask(left, samples), left)

    def _sound(self, indices: Indices, copies: Indices) -> tuple[Tensor, Tensor]:
        pairs = zip(indices, copies, strict=True)
        waves: list[Wave] = [self.data.take(int(i), int(c), self.seed) for i, c in pairs]
        waveform, length = batched(waves)
        return self.norm(waveform, length)[0], length

    def _made(self, values: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        place = next(self.encoder.parameters()).device
        frames = self.encoder.front(values.to(place), length.to(place))
        mask = length_mask(self.encoder.count(length), frames.shape[1]).to(place)
        return frames, mask


def random_starts(counts: Tensor, size: int) -> Tensor:
    """int64 [batch, 1]: where a stretch of `size` begins among so many frames [batch, 1]."""
    spare = (counts - size).clamp(min=0)
    return (torch.rand(spare.shape) * (spare + 1)).long().clamp(max=spare)


def by_length(counts: Tensor) -> Iterator[Indices]:
    """All utterances in batches of like length, so that little is padded and memory is bounded:
    one long recording comes alone."""
    lengths = counts.flatten().numpy()
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, min(MOST_TOGETHER, MOST_PAIRS // longest**2))
        yield order[start : start + size]
        start += size


def features_by_length(encoder: AudioEncoder, frames: Frames) -> Tensor:
    """Features float32 [n, hidden] of all utterances without noise, on the CPU, in their order."""
    place = next(encoder.parameters()).device
    made: list[tuple[Indices, Tensor]] = []
    with torch.no_grad():
        for rows in by_length(frames.counts):
            values, mask = frames.batch(rows, np.zeros_like(rows))
            values, mask = values.to(place), mask.to(place)
            features = encoder.utterance(encoder.project(values, mask), mask)
            made.append((rows, features.float().cpu()))
    return in_order(made)


def in_order(made: Sequence[tuple[Indices, Tensor]]) -> Tensor:
    """Rows of batches, put back where their indices say."""
    rows = np.concatenate([indices for indices, _ in made])
    joined = torch.cat([tensor for _, tensor in made])
    return joined[torch.from_numpy(np.argsort(rows, kind="stable"))]
