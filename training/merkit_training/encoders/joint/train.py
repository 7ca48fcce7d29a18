"""Stage `joint_encoder`: the audio tower alone, then tower, projector and LLM together (seed 2.3).

Sound or words are left out of some samples, so that either alone works. Whether the feature is
read at the last position or over all of them is decided by a linear probe, unless the recipe says.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.steps.prompt import Prompt
from merkit_training.encoders.joint.config import JointConfig, Pool
from merkit_training.encoders.joint.data import NO_SOUND, NO_WORDS, WHOLE, JointData
from merkit_training.encoders.joint.encoder import STEP, JointEncoder
from merkit_training.encoders.joint.objective import JointLearner, answer_tokens
from merkit_training.encoders.joint.start import describe, started
from merkit_training.encoders.joint.tower import AudioTower
from merkit_training.encoders.probe import MOST_SAMPLES, features_of, head_scores, linear_probe
from merkit_training.encoders.text import tokenizer
from merkit_training.encoders.text.vocabularies import check_size
from merkit_training.encoders.utterances import Heads
from merkit_training.fit import FitConfig, clear_checkpoints, fit, step_rng
from merkit_training.lora import LoraSettings, add_lora, merge_lora
from merkit_training.recipe import Recipe
from merkit_training.runs import save_step, stage_seed

POOLS: tuple[Pool, ...] = ("mean", "last")


class TowerLearner(nn.Module):
    """The audio tower with the heads that teach it to listen before it meets words."""

    def __init__(self, tower: AudioTower, width: int, data: JointData) -> None:
        super().__init__()
        spoken = data.spoken
        self.tower = tower
        self.heads = Heads(
            width, spoken.prosody.shape[1], len(spoken.classes), spoken.tones is not None
        )

    def features(self, log_mel: Tensor) -> Tensor:
        """Mean over the frames, [batch, hidden]."""
        frames: Tensor = self.tower(log_mel.to(self.heads.emotion.weight.device))
        return frames.mean(1)


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains and saves the step; returns its scores on validation.

    Raises:
        InvalidInputError: a recipe, prompt, checkpoint or corpus that does not fit; see `started`,
            `answer_tokens` and `Utterances.read`.
    """
    config, seed = recipe.joint_encoder, stage_seed(recipe, STEP)
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    torch.manual_seed(seed)
    words, folder = tokenizer.load(run, joint=True), run / STEP
    prompt = Prompt.of(recipe.preprocessing.prompt, words)
    data, val = (JointData.read(recipe, corpus, run, split, STEP) for split in ("train", "val"))
    sizes, model = started(recipe, run, audio_at=len(prompt.before))
    check_size(words, sizes.llm.vocabulary)
    classes = data.spoken.classes
    answers = answer_tokens(words, config.objective, classes, config.label_words)

    scores = _train_tower(model, config, data, val, folder, seed)
    learner = JointLearner(model, config.objective, answers)
    scores = _train_joint(learner, config, data, val, folder, seed) | scores
    pool = config.pool
    if pool == "choose":
        pool, probed = _choose_pool(model, data, val)
        scores |= probed
    model.cpu()
    card = {
        "scores": scores,
        "data": "utterances",
        "pool": pool,
        "classes": list(classes),
        "began_as": describe(config),
        "prompt": recipe.preprocessing.prompt,
        "left_out": {"silent": [*data.spoken.silent, *val.spoken.silent]},
    }
    save_step(run, STEP, asdict(replace(sizes, pool=pool)), model.state_dict(), card)
    clear_checkpoints(folder)
    return scores


def _train_joint(
    learner: JointLearner,
    config: JointConfig,
    data: JointData,
    val: JointData,
    folder: Path,
    seed: int,
) -> dict[str, float]:
    """All together; the scores of the whole, of words alone and of sound alone."""

    def loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        assert isinstance(model, JointLearner)
        rng = step_rng()
        share = config.modality_dropout
        lacking = rng.choice(3, size=len(indices), p=(1 - 2 * share, share, share))
        copies = (rng.random(len(indices)) < config.noise_share).astype(np.int64)
        inputs = data.batch(indices, copies, lacking)
        return model.loss(inputs, data.spoken.labels[indices], config.label_smoothing)

    def scored(lacking: int) -> dict[str, float]:
        def encode(indices: NDArray[np.int64]) -> Tensor:
            inputs = val.batch(indices, np.zeros_like(indices), np.full_like(indices, lacking))
            return learner.scores(inputs)

        logits = torch.from_numpy(features_of(encode, len(val.spoken)))
        return head_scores(logits, val.spoken.labels)

    scores: dict[str, float] = {}
    if config.epochs:
        _open_for_training(learner.encoder, config)
        schedule = FitConfig(
            config.epochs, config.batch_size, config.lr, seed=seed, bf16=config.bf16
        )
        count = len(data.spoken)
        scores = fit(
            learner, loss, count, schedule, folder, name="joint", evaluate=lambda _: scored(WHOLE)
        )
        if config.tune == "lora":
            merge_lora(learner.encoder.decoder)
    learner.eval().to("cuda" if torch.cuda.is_available() else "cpu")  # fit brings it home
    if not scores and config.objective != "head":
        scores = scored(WHOLE)
    if config.epochs or config.objective != "head":
        scores["words_only_waf"] = scored(NO_SOUND)["waf"]
        scores["sound_only_waf"] = scored(NO_WORDS)["waf"]
    return scores


def _open_for_training(model: JointEncoder, config: JointConfig) -> None:
    """Freezes what the recipe wants to keep, and adds LoRA's factors to the LLM."""
    model.requires_grad_(True)
    if config.freeze_tower:
        model.tower.requires_grad_(False)
    model.tower.model.embed_positions.requires_grad_(False)  # sinusoids, as Whisper keeps them
    if config.tune == "frozen":
        model.decoder.requires_grad_(False)
    if config.tune == "lora":
        settings = LoraSettings(
            config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets
        )
        add_lora(model.decoder, settings)


def _train_tower(
    model: JointEncoder,
    config: JointConfig,
    data: JointData,
    val: JointData,
    folder: Path,
    seed: int,
) -> dict[str, float]:
    """The audio tower alone, on emotion and what else the corpus knows of tone."""
    if not config.tower_epochs:
        return {}
    learner = TowerLearner(model.tower, model.tower.model.config.d_model, data)

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        copies = (step_rng().random(len(indices)) < config.noise_share).astype(np.int64)
        return learner.heads.loss(
            learner.features(data.spectra.batch(indices, copies)),
            data.spoken,
            torch.from_numpy(indices),
            prosody_weight=config.prosody_weight,
            class_weight=config.class_weight,
            smoothing=config.label_smoothing,
        )

    def evaluate(_: nn.Module) -> dict[str, float]:
        def encode(indices: NDArray[np.int64]) -> Tensor:
            features = learner.features(val.spectra.batch(indices, np.zeros_like(indices)))
            logits: Tensor = learner.heads.emotion(features)
            return logits

        logits = torch.from_numpy(features_of(encode, len(val.spoken)))
        return head_scores(logits, val.spoken.labels)

    schedule = FitConfig(
        config.tower_epochs, config.batch_size, config.tower_lr, seed=seed, bf16=config.bf16
    )
    count = len(data.spoken)
    scores = fit(learner, loss, count, schedule, folder, name="tower", evaluate=evaluate)
    return {f"tower_{name}": scores[name] for name in ("waf", "seconds")}


def _choose_pool(
    model: JointEncoder, data: JointData, val: JointData
) -> tuple[Pool, dict[str, float]]:
    """The better of both ways to pool, by a linear probe, and the scores of each."""
    place = next(model.parameters()).device
    found: dict[Pool, dict[str, float]] = {}
    for pool in POOLS:
        model.pool = pool
        features = []
        for part in (data, val):

            def encode(indices: NDArray[np.int64], part: JointData = part) -> Tensor:
                zeros = np.zeros_like(indices)
                inputs = (tensor.to(place) for tensor in part.batch(indices, zeros, zeros))
                features: Tensor = model(*inputs)
                return features

            features.append(features_of(encode, min(len(part.spoken), MOST_SAMPLES)))
        labels = [part.spoken.labels[:MOST_SAMPLES].numpy() for part in (data, val)]
        found[pool] = linear_probe(features[0], labels[0], features[1], labels[1])
    best = max(POOLS, key=lambda pool: found[pool]["probe_waf"])
    other = {f"probe_waf_{pool}": found[pool]["probe_waf"] for pool in POOLS}
    return best, found[best] | other
