"""The text encoder: a small decoder-only LLM, features from its last four layers (2.2.3)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit_training.corpus import read_sentences
from merkit_training.encoders.pooling import length_mask, pooled
from merkit_training.encoders.probe import MOST_SAMPLES, features_of, head_scores, linear_probe
from merkit_training.encoders.store import load_module
from merkit_training.encoders.text import tokenizer
from merkit_training.encoders.text.config import TextConfig
from merkit_training.encoders.text.decoder import make_decoder
from merkit_training.fit import FitConfig, clear_checkpoints, fit
from merkit_training.labels import MER6
from merkit_training.recipe import Recipe
from merkit_training.runs import save_step, stage_seed

STEP = "text_encoder"


class TextEncoder(nn.Module):
    """The `text_encoder` step."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.decoder = make_decoder(config)

    def states(self, text_ids: Tensor, text_length: Tensor) -> tuple[list[Tensor], Tensor]:
        """Each layer's output [batch, tokens, hidden], and the mask of valid tokens."""
        mask = length_mask(text_length, text_ids.shape[1])
        return self.decoder.states(self.decoder.embed(text_ids), mask), mask

    def forward(self, text_ids: Tensor, text_length: Tensor) -> Tensor:
        """Features of a batch of texts.

        Args:
            text_ids: int64 [batch, tokens], right padded.
            text_length: int64 [batch, 1]; 0 means no words.

        Returns:
            text_features float32 [batch, hidden]; without words, zeros.
        """
        return pooled(*self.states(text_ids, text_length))


def load(run: Path) -> TextEncoder:
    """The trained step of a run, in eval mode."""
    return load_module(run, STEP, TextConfig, TextEncoder)


class TextLearner(nn.Module):
    """The encoder with what it learns by: next tokens and a linear reading of the feature."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.encoder = TextEncoder(config)
        self.emotion = nn.Linear(config.hidden, len(MER6))

    def language_loss(self, ids: Tensor, length: Tensor) -> Tensor:
        """Cross-entropy of each next token."""
        states, mask = self.encoder.states(ids, length)
        return self._next_token(states[-1], ids, mask)

    def loss(self, ids: Tensor, length: Tensor, labels: Tensor, config: TextConfig) -> Tensor:
        """Cross-entropy of the emotion, with a share of the next tokens', on masked tokens."""
        hidden = torch.rand(ids.shape) < config.token_dropout
        seen = torch.where(hidden, torch.zeros_like(ids), ids)
        states, mask = self.encoder.states(seen, length)
        logits = self.emotion(pooled(states, mask))
        emotion = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        return emotion + config.language_share * self._next_token(states[-1], ids, mask)

    def _next_token(self, last: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        logits = self.encoder.decoder.logits(last[:, :-1])
        target = torch.where(mask[:, 1:], ids[:, 1:], -100)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())


@dataclass(frozen=True)
class Sentences:
    """One split as ids and labels."""

    ids: Tensor  # int64 [n, tokens]
    lengths: Tensor  # int64 [n, 1]
    labels: Tensor  # int64 [n]

    @staticmethod
    def read(recipe: Recipe, corpus: Path, run: Path, split: str) -> Sentences:
        """Reads and tokenises one split of the corpus."""
        rows = read_sentences(corpus, split)
        limit = recipe.preprocessing.max_text_tokens
        ids, lengths = tokenizer.encode(tokenizer.load(run), [row["text"] for row in rows], limit)
        labels = torch.tensor([MER6.index(row["discrete"]) for row in rows])
        return Sentences(torch.from_numpy(ids), torch.from_numpy(lengths), labels)

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """ids (cut to the longest), lengths and labels of some sentences."""
        lengths = self.lengths[indices]
        return self.ids[indices, : int(lengths.max())], lengths, self.labels[indices]


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Next-token prediction over the sentences, then emotion by a linear reading of the feature
    (with a share of next-token prediction beside it)."""
    config, seed = recipe.text_encoder, stage_seed(recipe, STEP)
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    torch.manual_seed(seed)
    data, val = (Sentences.read(recipe, corpus, run, split) for split in ("train", "val"))
    learner = TextLearner(config)
    folder = run / STEP

    def language(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        ids, length, _labels = data.batch(indices)
        return learner.language_loss(ids, length)

    def emotion(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        return learner.loss(*data.batch(indices), config)

    def evaluate(_: nn.Module) -> dict[str, float]:
        return head_scores(learner.emotion(_features(learner, val)), val.labels)

    schedule = FitConfig(
        config.pretrain_epochs, config.batch_size, config.lr, seed=seed, bf16=config.bf16
    )
    first = fit(learner, language, len(data.labels), schedule, folder, name="pretrain")
    schedule = replace(schedule, epochs=config.epochs, lr=config.finetune_lr)
    scores = fit(
        learner, emotion, len(data.labels), schedule, folder, name="emotion", evaluate=evaluate
    )
    few = Sentences(*(t[:MOST_SAMPLES] for t in (data.ids, data.lengths, data.labels)))
    features = [_features(learner, s).numpy() for s in (few, val)]
    scores |= linear_probe(features[0], few.labels.numpy(), features[1], val.labels.numpy())
    scores["pretrain_loss"] = first["loss"]
    weights = learner.encoder.state_dict()
    save_step(run, STEP, asdict(config), weights, {"scores": scores, "data": "sentences"})
    clear_checkpoints(folder)
    return scores


def _features(learner: TextLearner, data: Sentences) -> Tensor:
    def encode(indices: NDArray[np.int64]) -> Tensor:
        features: Tensor = learner.encoder(*data.batch(indices)[:2])
        return features

    return torch.from_numpy(features_of(encode, len(data.labels)))
