"""Hidden units: what masked prediction predicts (HuBERT, 2.2.2's pre-training).

Sound has no words to predict. HuBERT clusters its frames instead: first by their cepstra, then by
what a layer of the encoder made of them, which hears more than a spectrum does. The clusters of an
iteration are written to the run folder, so that a killed stage goes on with the same ones.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from tqdm import tqdm
from transformers.audio_utils import mel_filter_bank

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.encoders.audio.config import AudioConfig
from merkit_training.encoders.audio.encoder import AudioEncoder
from merkit_training.encoders.audio.frames import Frames, by_length
from merkit_training.encoders.pooling import length_mask
from merkit_training.encoders.utterances import Utterances
from merkit_training.runs import write_bytes

MELS = 40  # bands from which cepstra are made
MEL_FLOOR = 1e-6
KMEANS_BATCH = 10_000  # frames
SPREAD_FLOOR = 1e-4


@dataclass(frozen=True)
class Units:
    """The cluster of each frame of each utterance."""

    values: NDArray[np.int16]  # [all frames], utterance after utterance
    starts: NDArray[np.int64]  # [n], place of each one's first frame
    counts: NDArray[np.int64]  # [n]

    def stretch(self, indices: NDArray[np.int64], offset: Tensor, size: int) -> Tensor:
        """int64 [batch, size] from `offset` (int64 [batch, 1]) on; padding holds any cluster."""
        at = torch.from_numpy(self.starts[indices])[:, None] + offset + torch.arange(size)
        chosen = self.values[at.clamp(max=len(self.values) - 1).numpy()]
        return torch.from_numpy(chosen.astype(np.int64))

    def commonest(self) -> float:
        """The share of the largest cluster: how often a constant guess is right."""
        return float(np.bincount(self.values).max() / len(self.values))


def cluster(
    rows: list[NDArray[np.float32]], fitted: int, clusters: int, frames: int, seed: int
) -> Units:
    """K-means over the frames of all utterances.

    Args:
        rows: [frames, width] of each utterance.
        fitted: of how many utterances, from the first, k-means may see frames.
        clusters: how many; fewer where there are fewer frames.
        frames: how many, drawn at random, k-means is fitted on.
        seed: of the draw and of k-means.
    """
    counts = np.array([len(row) for row in rows], np.int64)
    joined = np.concatenate(rows)
    seen = joined[: counts[:fitted].sum()]
    if not len(seen):
        raise InvalidInputError(
            f"none of {fitted} utterances is as long as one frame", "sound to learn from"
        )
    some = seen[np.random.default_rng(seed).permutation(len(seen))[:frames]]
    centre, spread = some.mean(0), np.maximum(some.std(0), SPREAD_FLOOR)
    means = MiniBatchKMeans(
        min(clusters, len(some)), batch_size=KMEANS_BATCH, n_init=3, random_state=seed % 2**31
    ).fit((some - centre) / spread)
    values = means.predict((joined - centre) / spread)
    return Units(values.astype(np.int16), np.cumsum(counts) - counts, counts)


def cepstra(
    data: Utterances, sizes: AudioConfig, rate: int, kept: int
) -> list[NDArray[np.float32]]:
    """Mel cepstra with first and second differences, [frames, 3 kept] of each utterance; each
    frame is of exactly the samples that the encoder's frame sees."""
    size, hop = sizes.field, sizes.hop
    filters = mel_filter_bank(
        size // 2 + 1, MELS, 20.0, rate / 2, rate, norm="slaney", mel_scale="slaney"
    )
    angle = math.pi / MELS * (np.arange(MELS) + 0.5)[:, None] * np.arange(kept)
    cosines = np.cos(angle).astype(np.float32)
    window = np.hanning(size).astype(np.float32)
    made = []
    for i in tqdm(range(len(data)), desc="cepstra", unit="utterance", mininterval=1):
        wave = data.wave(i)
        wave = (wave - wave.mean()) / (wave.std() + SPREAD_FLOOR)
        if len(wave) < size:
            made.append(np.zeros((0, 3 * kept), np.float32))
            continue
        seen = np.lib.stride_tricks.sliding_window_view(wave, size)[::hop]
        power = np.square(np.abs(np.fft.rfft(seen * window, axis=1)))
        still = np.log(np.maximum(power @ filters, MEL_FLOOR)) @ cosines
        first = np.gradient(still, axis=0) if len(still) > 1 else np.zeros_like(still)
        second = np.gradient(first, axis=0) if len(still) > 1 else first
        made.append(np.concatenate((still, first, second), axis=1).astype(np.float32))
    return made


@torch.no_grad()
def layer_outputs(encoder: AudioEncoder, frames: Frames, layer: int) -> list[NDArray[np.float32]]:
    """What a layer (from 1) makes of each utterance: float32 [frames, hidden]."""
    place = next(encoder.parameters()).device
    made: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(frames.counts)
    for rows in by_length(frames.counts):
        values, mask = frames.batch(rows, np.zeros_like(rows))
        state = encoder.states(values.to(place), mask.to(place))[layer - 1].float().cpu().numpy()
        for row, output in zip(rows, state, strict=True):
            made[row] = output[: int(frames.counts[row])]
    return made


def hidden_spans(counts: Tensor, size: int, share: float, length: int) -> Tensor:
    """bool [batch, size]: random spans of `length` frames, as many as would cover `share` of the
    valid frames (int64 [batch, 1]) if none overlapped, at least one; none begins in padding."""
    spans = (share * counts / length + torch.rand(counts.shape)).long().clamp(min=1)
    most = int(spans.max())
    room = (counts - length).clamp(min=0) + 1
    start = (torch.rand(len(counts), most) * room).long()
    at = torch.arange(size)
    inside = (at >= start[..., None]) & (at < start[..., None] + length)
    drawn = torch.arange(most) < spans
    return (inside & drawn[..., None]).any(1) & length_mask(counts, size)


def keep(path: Path, units: Units) -> None:
    """Writes the units, whole or not at all."""
    file = io.BytesIO()
    np.savez(file, values=units.values, starts=units.starts, counts=units.counts)
    write_bytes(path, file.getvalue())


def kept(path: Path) -> Units | None:
    """What `keep` wrote, if anything; BundleCorruptError if it is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            return Units(found["values"], found["starts"], found["counts"])
    except (OSError, ValueError, KeyError) as error:
        raise BundleCorruptError(
            f"{path} cannot be read ({error})",
            "what this stage wrote",
            f"remove {path.parent} and run the stage again",
        ) from None
