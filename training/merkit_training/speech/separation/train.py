"""Trains the separator on mixtures of the corpus' utterances (seed 2.4.2): the stage `separator`.

The seed takes MossFormer2 as published. So does this, where the recipe names a checkpoint, and
goes on from there; without one it learns from random weights, as the tiny profile does.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit_training.fit import FitConfig, clear_checkpoints, fit, step_rng
from merkit_training.recipe import Recipe
from merkit_training.runs import save_step, stage_seed
from merkit_training.speech.noise.augment import Augment
from merkit_training.speech.separation.config import SeparatorConfig
from merkit_training.speech.separation.mixtures import Mixer, Mixture, batch
from merkit_training.speech.separation.model import RATE, STEP, Separator, begin_lapped
from merkit_training.speech.separation.objective import improvement, in_best_order
from merkit_training.speech.separation.official import from_checkpoint

CLIP = 5.0  # of the gradient, as published


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains and writes the step; returns the scores of `measure` on validation.

    Raises:
        InvalidInputError: no audible utterance, or fewer than two voices, in a split.
        BundleNotFoundError, BundleCorruptError: the recipe's checkpoint cannot be loaded.
    """
    seed = stage_seed(recipe, STEP)
    torch.set_num_threads(min(recipe.separator.threads, torch.get_num_threads()))
    torch.manual_seed(seed)
    config, separator = from_recipe(recipe)
    noise = Augment(recipe.noise).ambient
    data, val = (Mixer.read(corpus, split, config, noise) for split in ("train", "val"))
    kept = [val.draw(np.random.default_rng([seed, i])) for i in range(config.val_mixtures)]
    samples = round(config.seconds * RATE)

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        rng = step_rng()
        drawn = [data.draw(rng, samples) for _ in indices]
        waveform, length, sources, mask = batch(drawn)
        made = separator(waveform.to(_place(separator)), length)
        return -in_best_order(made, sources, mask)[0].mean()

    def evaluate(_: nn.Module) -> dict[str, float]:
        return measure(separator, kept, config.batch_size)

    if config.epochs:
        schedule = FitConfig(
            config.epochs, config.batch_size, config.lr, weight_decay=config.weight_decay,
            clip=CLIP, seed=seed, bf16=config.bf16,
        )  # fmt: skip
        scores = fit(
            separator, loss, config.mixtures, schedule, run / STEP, name="separation",
            evaluate=evaluate,
        )  # fmt: skip
    else:
        scores = evaluate(separator.eval())
    card = {"scores": scores, "data": "mixtures of utterances", "checkpoint": config.checkpoint}
    save_step(run, STEP, asdict(config), separator.state_dict(), card)
    clear_checkpoints(run / STEP)
    return scores


def from_recipe(recipe: Recipe) -> tuple[SeparatorConfig, Separator]:
    """The true sizes, and the separator before training; errors as `official.from_checkpoint`."""
    if recipe.separator.checkpoint:
        return from_checkpoint(recipe.separator, hub=recipe.run.hub)
    separator = Separator(recipe.separator)
    if recipe.separator.lapped_start:
        begin_lapped(separator.model)
    return recipe.separator, separator


@torch.no_grad()
def measure(separator: Separator, mixtures: list[Mixture], size: int = 8) -> dict[str, float]:
    """What separation gains over the mixture, mean SI-SDRi in dB.

    Returns:
        `si_sdri` over all sources of mixtures of two voices, or of all mixtures if there are none
        of those; `si_sdri_noise` of the voice alone in the noisy ones; and `si_sdr`, the mean over
        all sources, not relative to anything.
    """
    ordered = sorted(mixtures, key=lambda m: len(m.waveform))
    gains, ratios = [], []
    for start in range(0, len(ordered), size):
        waveform, length, sources, mask = batch(ordered[start : start + size])
        made = separator(waveform.to(_place(separator)), length)
        gains.append(improvement(made, sources, waveform, mask).numpy())
        ratios.append(in_best_order(made, sources, mask)[0].numpy())
    gain, noisy = np.concatenate(gains), np.array([m.noisy for m in ordered])
    scores = {"si_sdri": float((gain if noisy.all() else gain[~noisy]).mean())}
    if noisy.any():
        scores["si_sdri_noise"] = float(gain[noisy, 0].mean())
    return scores | {"si_sdr": float(np.concatenate(ratios).mean())}


def _place(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
