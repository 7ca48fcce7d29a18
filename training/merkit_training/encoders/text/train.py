"""How the text encoder learns: next tokens first, then emotion, by full fine-tuning or LoRA.

The seed fine-tunes its language model on emotional text and reads a feature from it. The reading
while learning is the simplest one: a linear layer on that feature. A share of next-token
prediction stays beside it, so that the model does not forget what language is.
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
from merkit_training.encoders.pooling import pooled
from merkit_training.encoders.probe import MOST_SAMPLES, features_of, head_scores, linear_probe
from merkit_training.encoders.store import load_module
from merkit_training.encoders.text import tokenizer
from merkit_training.encoders.text.config import TextConfig, TextPretrainingConfig
from merkit_training.encoders.text.encoder import STEP, TextEncoder, from_recipe
from merkit_training.encoders.text.sentences import Sentences
from merkit_training.encoders.text.vocabularies import check_size
from merkit_training.fit import FitConfig, clear_checkpoints, fit
from merkit_training.lora import LoraSettings, add_lora, merge_lora
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, CONFIG, read_json, save_step, stage_seed
from merkit_training.settings import from_table

PRETRAINING = "text_pretraining"


class TextLearner(nn.Module):
    """The encoder with what it learns by: next tokens and a linear reading of the feature."""

    def __init__(self, encoder: TextEncoder, config: TextConfig, classes: int) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.emotion = nn.Linear(config.hidden, classes)

    @property
    def place(self) -> torch.device:
        """Where the weights are."""
        return self.emotion.weight.device

    def language_loss(self, ids: Tensor, length: Tensor) -> Tensor:
        """Cross-entropy of each next token."""
        states, mask = self.encoder.states(ids, length)
        return self._next_token(states[-1], ids, mask)

    def loss(self, ids: Tensor, length: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the emotion, with a share of the next tokens', on masked tokens."""
        config = self.config
        hidden = (torch.rand(ids.shape) < config.token_dropout).to(ids.device)
        seen = torch.where(hidden, torch.zeros_like(ids), ids)
        states, mask = self.encoder.states(seen, length)
        logits = self.emotion(pooled(states, mask, config.pool_layers))
        emotion = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if not config.language_share:
            return emotion
        return emotion + config.language_share * self._next_token(states[-1], ids, mask)

    def _next_token(self, last: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        logits = self.encoder.decoder.logits(last[:, :-1])
        target = torch.where(mask[:, 1:], ids[:, 1:], -100)
        total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
        return total / mask[:, 1:].sum().clamp(min=1)  # a batch of single words has no next one


def pretrain(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """The stage `text_pretraining`: next-token prediction, which `text_encoder` starts from."""
    seed, schedule = stage_seed(recipe, PRETRAINING), recipe.text_pretraining
    _prepare(recipe, seed)
    data, val = (Sentences.read(recipe, corpus, run, split) for split in ("train", "val"))
    config, encoder = from_recipe(recipe)
    check_size(tokenizer.load(run), config.vocabulary)
    learner, folder = TextLearner(encoder, config, len(data.classes)), run / PRETRAINING
    fitting = _fitting(schedule, schedule.epochs, schedule.lr, seed)
    scores = _learn_language(learner, data, fitting, folder)
    scores["val_loss"] = _language_score(learner, val)
    card = {"scores": scores, "data": "sentences", "empty": _empty(data, val)}
    save_step(run, PRETRAINING, asdict(config), encoder.state_dict(), card)
    clear_checkpoints(folder)
    return scores


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """The stage `text_encoder`: next-token prediction over the sentences, then emotion.

    It starts from a finished `text_pretraining`, else from the checkpoint, else from random
    weights. What is saved are plain weights, whatever was tuned.
    """
    seed = stage_seed(recipe, STEP)
    _prepare(recipe, seed)
    data, val = (Sentences.read(recipe, corpus, run, split) for split in ("train", "val"))
    config, encoder = _start(recipe, run)
    check_size(tokenizer.load(run), config.vocabulary)
    learner, folder = TextLearner(encoder, config, len(data.classes)), run / STEP
    scores: dict[str, float] = {}
    if config.pretrain_epochs:
        fitting = _fitting(config, config.pretrain_epochs, config.lr, seed)
        first = _learn_language(learner, data, fitting, folder)
        scores["pretrain_loss"] = first["loss"]
    if config.epochs:
        scores = _learn_emotion(learner, data, val, folder, seed) | scores
    few = data.labelled()[:MOST_SAMPLES]
    if len(few) and len(val.labelled()):
        features = [_features(learner, d, rows).numpy() for d, rows in _labelled(data, val)]
        labels = [d.labels[rows].numpy() for d, rows in _labelled(data, val)]
        scores |= linear_probe(features[0], labels[0], features[1], labels[1])
    card = {"scores": scores, "data": "sentences", "classes": list(data.classes)}
    card |= {"tune": config.tune, "empty": _empty(data, val)}
    save_step(run, STEP, asdict(config), encoder.state_dict(), card)
    clear_checkpoints(folder)
    return scores


def _prepare(recipe: Recipe, seed: int) -> None:
    threads = recipe.text_encoder.threads
    torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    torch.manual_seed(seed)


def _fitting(
    config: TextConfig | TextPretrainingConfig, epochs: int, lr: float, seed: int
) -> FitConfig:
    size, accumulate = config.batch_size, config.accumulate
    return FitConfig(epochs, size, lr, seed=seed, bf16=config.bf16, accumulate=accumulate)


def _start(recipe: Recipe, run: Path) -> tuple[TextConfig, TextEncoder]:
    """The true sizes, and the encoder before this stage."""
    if not (run / PRETRAINING / CARD).exists():
        return from_recipe(recipe)
    path = run / PRETRAINING / CONFIG
    sizes = from_table(TextConfig, read_json(path), str(path)).sizes
    encoder = load_module(run, PRETRAINING, TextConfig, TextEncoder).train()
    encoder.pool_layers = recipe.text_encoder.pool_layers
    return recipe.text_encoder.sized_as(sizes), encoder


def _learn_language(
    learner: TextLearner, data: Sentences, fitting: FitConfig, folder: Path
) -> dict[str, float]:
    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        return learner.language_loss(*data.batch(indices, learner.place))

    return fit(learner, loss, len(data), fitting, folder, name="pretrain")


def _learn_emotion(
    learner: TextLearner, data: Sentences, val: Sentences, folder: Path, seed: int
) -> dict[str, float]:
    config, encoder, rows = learner.config, learner.encoder, data.labelled()
    seen = val.labelled()
    if not len(rows) or not len(seen):
        raise InvalidInputError(
            f"{len(rows)} sentences to train on and {len(seen)} to validate on have a label",
            "labels in both splits",
            "label some, or set epochs = 0 in [text_encoder]",
        )
    if config.tune == "lora":
        settings = (config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
        add_lora(encoder.decoder, LoraSettings(*settings))
    elif config.tune == "head":
        encoder.requires_grad_(False)

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        chosen = rows[indices]
        labels = data.labels[chosen].to(learner.place)
        return learner.loss(*data.batch(chosen, learner.place), labels)

    def evaluate(_: nn.Module) -> dict[str, float]:
        features = _features(learner, val, seen).to(learner.place)
        return head_scores(learner.emotion(features), val.labels[seen])

    fitting = _fitting(config, config.epochs, config.finetune_lr, seed)
    scores = fit(learner, loss, len(rows), fitting, folder, name="emotion", evaluate=evaluate)
    if config.tune == "lora":
        merge_lora(encoder.decoder)
    return scores


def _labelled(data: Sentences, val: Sentences) -> list[tuple[Sentences, NDArray[np.int64]]]:
    return [(data, data.labelled()[:MOST_SAMPLES]), (val, val.labelled())]


def _features(learner: TextLearner, data: Sentences, rows: NDArray[np.int64]) -> Tensor:
    def encode(indices: NDArray[np.int64]) -> Tensor:
        features: Tensor = learner.encoder(*data.batch(rows[indices], learner.place))
        return features

    return torch.from_numpy(features_of(encode, len(rows)))


def _language_score(learner: TextLearner, data: Sentences) -> float:
    """Mean cross-entropy of a next token, of at most MOST_SAMPLES texts."""
    total = tokens = 0.0
    with torch.no_grad():
        for start in range(0, min(len(data), MOST_SAMPLES), learner.config.batch_size):
            rows = np.arange(start, min(start + learner.config.batch_size, len(data)))
            ids, lengths = data.batch(rows, learner.place)
            count = float((lengths - 1).sum())
            total += float(learner.language_loss(ids, lengths)) * count
            tokens += count
    return total / max(tokens, 1.0)


def _empty(data: Sentences, val: Sentences) -> dict[str, list[int]]:
    return {"train": list(data.empty), "val": list(val.empty)}
