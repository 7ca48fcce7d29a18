"""Fine-tunes HuBERT on the emotion of utterances (seed 2.2.2): the stage `audio_encoder`.

It begins with the best that there is: a finished `audio_pretraining` of this run, else the
recipe's checkpoint, else random weights whose convolutions first learn the spectrum. Whichever
it was, the convolutions then stay as they are, as HuBERT's are when it is fine-tuned.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from merkit_training.checkpoints import open_checkpoint
from merkit_training.encoders.audio.config import AudioConfig
from merkit_training.encoders.audio.encoder import STEP, AudioEncoder, from_recipe
from merkit_training.encoders.audio.frames import (
    CachedFrames,
    Frames,
    FreshFrames,
    features_by_length,
    random_starts,
)
from merkit_training.encoders.audio.front import learn_front
from merkit_training.encoders.audio.official import hearing_note
from merkit_training.encoders.audio.units import hidden_spans
from merkit_training.encoders.probe import head_scores, linear_probe
from merkit_training.encoders.store import load_module
from merkit_training.encoders.utterances import Heads, Utterances
from merkit_training.fit import FitConfig, clear_checkpoints, fit, step_rng
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, CONFIG, read_json, save_step, stage_seed
from merkit_training.settings import from_table

PRETRAINING = "audio_pretraining"
LONGEST_SPAN = 15  # frames set to zero in each training sample, at most
SPAN_SHARE, SPAN_LENGTH = 0.05, 10  # of frames behind the mask vector: HuBERT's own
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")  # the projections that LoRA adapts


class AudioLearner(nn.Module):
    """The encoder with the heads that teach it."""

    def __init__(self, encoder: AudioEncoder, heads: Heads) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains and writes the step; returns `waf`, `accuracy` and the linear probe's of validation.

    Raises:
        InvalidInputError: no audible utterance in a split, or a checkpoint that does not fit.
    """
    seed, p = stage_seed(recipe, STEP), recipe.preprocessing
    # OMP_NUM_THREADS caps it
    torch.set_num_threads(min(recipe.audio_encoder.threads, torch.get_num_threads()))
    torch.manual_seed(seed)
    most = round(p.max_audio_seconds * p.sample_rate)
    data, val = (Utterances.read(corpus, split, most) for split in ("train", "val"))
    folder = run / STEP
    heard = _heard(recipe.audio_encoder, recipe.run.hub)
    config, encoder, scores = _start(recipe, data, run, seed)

    told = data.prosody.shape[1] if config.prosody_weight > 0 else 0
    shown = config.class_weight > 0 and data.tones is not None
    learner = AudioLearner(encoder, Heads(config.hidden, told, len(data.classes), shown))
    _freeze(encoder, config)
    frames: Frames
    val_frames: Frames
    if config.cache_frames:
        frames = CachedFrames.of(encoder, data, p, config.noisy_copies, seed)
        val_frames = CachedFrames.of(encoder, val, p, 0, seed)
    else:
        frames, val_frames = (FreshFrames(encoder, d, p, seed) for d in (data, val))

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        place = learner.heads.emotion.weight.device
        copies = step_rng().integers(1 + config.noisy_copies, size=len(indices))
        start = random_starts(frames.counts[indices], config.crop_frames)
        values, mask = frames.stretches(indices, copies, start, config.crop_frames)
        values, mask = values.to(place), mask.to(place)
        features = encoder.utterance(hide(encoder, values, mask), mask)
        return learner.heads.loss(
            features,
            data,
            torch.from_numpy(indices),
            prosody_weight=config.prosody_weight,
            class_weight=config.class_weight,
            smoothing=config.label_smoothing,
        )

    def evaluate(_: nn.Module) -> dict[str, float]:
        place = learner.heads.emotion.weight.device
        return head_scores(
            learner.heads.emotion(features_by_length(encoder, val_frames).to(place)), val.labels
        )

    if config.epochs:
        schedule = FitConfig(
            config.epochs, config.batch_size, config.lr, seed=seed, bf16=config.bf16
        )
        scores = (
            fit(learner, loss, len(data), schedule, folder, name="emotion", evaluate=evaluate)
            | scores
        )
    if config.tune == "lora":
        from merkit_training.lora import merge_lora

        merge_lora(encoder)
    features = [features_by_length(encoder.eval(), f).numpy() for f in (frames, val_frames)]
    scores |= linear_probe(features[0], data.labels.numpy(), features[1], val.labels.numpy())
    left_out = {"train": list(data.silent), "val": list(val.silent)}
    card = {"scores": scores, "data": "utterances", "silent": left_out} | heard
    save_step(run, STEP, asdict(config), encoder.state_dict(), card)
    clear_checkpoints(folder)
    return scores


def _start(
    recipe: Recipe, data: Utterances, run: Path, seed: int
) -> tuple[AudioConfig, AudioEncoder, dict[str, float]]:
    """The true sizes, the encoder before fine-tuning, and what the convolutions' loss was."""
    if (run / PRETRAINING / CARD).exists():
        pretrained = load_module(run, PRETRAINING, AudioConfig, AudioEncoder)
        table = read_json(run / PRETRAINING / CONFIG)
        sizes = from_table(AudioConfig, table, str(run / PRETRAINING / CONFIG))
        config = recipe.audio_encoder.sized_as(sizes)
        encoder = AudioEncoder(config)  # with this table's dropout
        encoder.load_state_dict(pretrained.state_dict())
        return config, encoder, {}
    config, encoder = from_recipe(recipe)
    if not config.learns_front:
        return config, encoder, {}
    p = recipe.preprocessing
    return config, encoder, learn_front(encoder, config, p, data, run / STEP, seed)


def _freeze(encoder: AudioEncoder, config: AudioConfig) -> None:
    """Leaves to learn what `tune` says; the convolutions never do."""
    encoder.model.feature_extractor.requires_grad_(False)
    if config.tune != "full":
        encoder.requires_grad_(False)
    if config.tune == "lora":
        from merkit_training.lora import LoraSettings, add_lora

        settings = (config.lora_rank, config.lora_alpha, config.lora_dropout, ATTENTION)
        add_lora(encoder, LoraSettings(*settings))


def _heard(config: AudioConfig, hub: bool) -> dict[str, str]:
    """For the card: how the checkpoint's sound differs from the pipeline's."""
    if not config.checkpoint:
        return {}
    note = hearing_note(open_checkpoint(config.checkpoint, hub=hub))
    if note:
        tqdm.write(f"{STEP}: {note}")
    return {"checkpoint": config.checkpoint} | ({"note": note} if note else {})


def hide(encoder: AudioEncoder, frames: Tensor, mask: Tensor) -> Tensor:
    """What enters the transformer, with random spans hidden, as SpecAugment does: by the mask
    vector as HuBERT is fine-tuned, else one span whose frames are zero before projection."""
    if encoder.has_mask_vector:
        counts = mask.sum(1, keepdim=True).cpu()
        hidden = hidden_spans(counts, mask.shape[1], SPAN_SHARE, SPAN_LENGTH).to(mask.device)
        return encoder.blank(encoder.project(frames, mask), hidden)
    batch, time = frames.shape[:2]
    start = (torch.rand(batch, 1) * time).long()
    width = (torch.rand(batch, 1) * LONGEST_SPAN).long()
    at = torch.arange(time)
    shown = (at < start) | (at >= start + width)
    return encoder.project(frames * shown[:, :, None].to(frames.device), mask)
