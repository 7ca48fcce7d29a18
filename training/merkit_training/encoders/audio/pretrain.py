"""Masked prediction as HuBERT is pre-trained: the stage `audio_pretraining`.

Spans of frames are hidden, and the encoder tells from the rest which unit each hidden frame
belongs to. No label is needed, so that every recording helps, and fine-tuning starts from an
encoder that already hears (Hsu et al. 2021). What that gains at the tiny size is measured in
docs/encoders-audio.md; the stage's card tells a linear probe's scores before and after.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.errors import InvalidInputError
from merkit_training import processes
from merkit_training.encoders.audio.config import AudioConfig, AudioPretrainingConfig
from merkit_training.encoders.audio.encoder import AudioEncoder, from_recipe
from merkit_training.encoders.audio.frames import (
    CachedFrames,
    Frames,
    FreshFrames,
    by_length,
    features_by_length,
    random_starts,
)
from merkit_training.encoders.audio.front import learn_front
from merkit_training.encoders.audio.units import (
    Units,
    cepstra,
    cluster,
    hidden_spans,
    keep,
    kept,
    layer_outputs,
)
from merkit_training.encoders.probe import linear_probe
from merkit_training.encoders.utterances import Utterances
from merkit_training.fit import FitConfig, clear_checkpoints, fit
from merkit_training.recipe import Recipe
from merkit_training.runs import save_step, stage_seed

STAGE = "audio_pretraining"


class UnitPredictor(nn.Module):
    """The encoder with what masked prediction needs beside it."""

    def __init__(
        self, encoder: AudioEncoder, hidden: int, clusters: int, config: AudioPretrainingConfig
    ) -> None:
        super().__init__()
        self.encoder = encoder
        own = None if encoder.has_mask_vector else nn.Parameter(torch.rand(hidden))
        self.vector = own  # stands for each hidden frame
        self.project = nn.Linear(hidden, config.width)
        self.units = nn.Parameter(torch.randn(clusters, config.width))
        self.temperature = config.temperature

    def forward(self, frames: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """Logits [batch, frames, clusters]: cosines to the units over the temperature.

        Args:
            frames: convolutional frames [batch, frames, channels].
            mask: bool [batch, frames], the valid ones.
            hidden: bool [batch, frames], those that the encoder must not see.
        """
        seen = self.encoder.project(frames, mask)
        if self.vector is None:
            seen = self.encoder.blank(seen, hidden)
        else:
            seen = torch.where(hidden[..., None], self.vector.to(seen.dtype), seen)
        told = self.project(self.encoder.walk(seen, mask)[-1])
        return F.normalize(told, dim=-1) @ F.normalize(self.units, dim=-1).T / self.temperature


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Writes run/audio_pretraining, which `audio_encoder` then starts from.

    Returns:
        `masked_accuracy` on hidden frames of validation after the last iteration, `chance` (the
        share of the commonest unit), `probe_waf` and `probe_accuracy` of the features for
        emotion, and the same two before any masked prediction (`before_`).
    """
    config, seed = recipe.audio_pretraining, stage_seed(recipe, STAGE)
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))
    torch.manual_seed(seed)
    p, folder = recipe.preprocessing, run / STAGE
    most = round(p.max_audio_seconds * p.sample_rate)
    data, val = (Utterances.read(corpus, split, most) for split in ("train", "val"))
    sizes, encoder = from_recipe(recipe)
    layer = config.layer or (sizes.layers + 1) // 2
    if layer > sizes.layers:
        raise InvalidInputError(
            f"[{STAGE}] layer is {layer}", f"1 to {sizes.layers}, the layers of [audio_encoder]"
        )
    scores = learn_front(encoder, sizes, p, data, folder, seed) if sizes.learns_front else {}
    encoder.model.feature_extractor.requires_grad_(config.train_convolutions)
    frames, val_frames = (_frames(encoder, d, recipe, seed) for d in (data, val))
    before = _probe(encoder.eval(), frames, val_frames, data, val)
    scores |= {f"before_{name}": value for name, value in before.items()}
    for number in range(config.iterations):
        path = folder / f"units{number}.npz"
        units = kept(path)
        if units is None:
            if number == 0:
                rows = [r for d in (data, val) for r in _cepstra(d, sizes, recipe)]
            else:
                rows = [r for f in (frames, val_frames) for r in layer_outputs(encoder, f, layer)]
            units = cluster(rows, len(data), config.clusters[number], config.cluster_frames, seed)
            if processes.is_main():
                keep(path, units)
        scores |= _iteration(encoder, (frames, val_frames), units, recipe, folder, number)
    scores |= _probe(encoder.eval(), frames, val_frames, data, val)
    save_step(run, STAGE, asdict(sizes), encoder.state_dict(), {"scores": scores})
    clear_checkpoints(folder)
    if processes.is_main():
        for path in folder.glob("units*.npz"):
            path.unlink()
    return scores


def _iteration(
    encoder: AudioEncoder,
    frames: tuple[Frames, Frames],
    units: Units,
    recipe: Recipe,
    folder: Path,
    number: int,
) -> dict[str, float]:
    """Trains `encoder` in place towards the units of training and validation, in this order.

    HuBERT begins each iteration at random weights; here the encoder goes on, which at few epochs
    is worth more.
    """
    config, seed = recipe.audio_pretraining, stage_seed(recipe, f"{STAGE}/{number}")
    torch.manual_seed(seed)
    heard, told = frames
    count, clusters = len(heard.counts), int(units.values.max()) + 1
    predictor = UnitPredictor(encoder, encoder.model.config.hidden_size, clusters, config)

    def shown(source: Frames, rows: NDArray[np.int64], first: int, size: int) -> tuple[
        Tensor, Tensor
    ]:  # fmt: skip
        """Logits and units of the hidden frames of a stretch of each utterance."""
        place = predictor.units.device
        start = random_starts(source.counts[rows], size)
        values, mask = source.stretches(rows, np.zeros_like(rows), start, size)
        left = (source.counts[rows] - start).clamp(max=size)
        size = mask.shape[1]
        hidden = hidden_spans(left, size, config.mask_share, config.mask_length)
        logits = predictor(values.to(place), mask.to(place), hidden.to(place))
        return logits[hidden.to(place)], units.stretch(first + rows, start, size)[hidden].to(place)

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        logits, truth = shown(heard, indices, 0, config.crop_frames)
        total = F.cross_entropy(logits, truth, reduction="sum")
        return total / max(1, len(truth))

    def evaluate(_: nn.Module) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the same spans after each epoch
            found = [
                shown(told, rows, count, max(1, int(told.counts[rows].max())))
                for rows in by_length(told.counts)
            ]
        right = sum(int((logits.argmax(1) == truth).sum()) for logits, truth in found)
        return {"masked_accuracy": right / max(1, sum(len(truth) for _, truth in found))}

    schedule = FitConfig(config.epochs, config.batch_size, config.lr, seed=seed, bf16=config.bf16)
    scores = fit(
        predictor, loss, count, schedule, folder, name=f"iteration{number}", evaluate=evaluate
    )
    return scores | {"chance": units.commonest()}


def _cepstra(data: Utterances, sizes: AudioConfig, recipe: Recipe) -> list[NDArray[np.float32]]:
    rate, count = recipe.preprocessing.sample_rate, recipe.audio_pretraining.cepstra
    return cepstra(data, sizes, rate, count)


def _frames(encoder: AudioEncoder, data: Utterances, recipe: Recipe, seed: int) -> Frames:
    p, learns = recipe.preprocessing, recipe.audio_pretraining.train_convolutions
    if recipe.audio_encoder.cache_frames and not learns:
        return CachedFrames.of(encoder, data, p, 0, seed)
    return FreshFrames(encoder, data, p, seed)


def _probe(
    encoder: AudioEncoder, frames: Frames, val_frames: Frames, data: Utterances, val: Utterances
) -> dict[str, float]:
    made = [features_by_length(encoder, f).numpy() for f in (frames, val_frames)]
    return linear_probe(made[0], data.labels.numpy(), made[1], val.labels.numpy())
