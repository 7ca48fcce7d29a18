"""The stage `punctuator`: marks learnt from punctuated sentences, scored mark by mark.

Most words are followed by no mark, so accuracy is high for a model that sets none. What is
reported, and chooses the epoch, is F1 of each mark that the validation sentences have.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.errors import BundleCorruptError
from merkit.speech.punctuate import COMMA, MARKS, NOTHING, PAUSE, QUESTION, STOP, role_of
from merkit_training.fit import FitConfig, clear_checkpoints, fit, step_rng
from merkit_training.recipe import Recipe
from merkit_training.runs import CONFIG, load_step_files, save_step, stage_seed, write_json
from merkit_training.settings import from_table
from merkit_training.speech.funasr import TOKENS
from merkit_training.speech.punctuation.checkpoint import (
    PunctuationModel,
    load_folder,
    read_tokens,
    write_tokens,
)
from merkit_training.speech.punctuation.config import PunctuatorConfig
from merkit_training.speech.punctuation.data import (
    IGNORED,
    MarkedSentences,
    learn_tokens,
    padded,
    read_texts,
)
from merkit_training.speech.punctuation.model import CtTransformer

STEP, MARKS_FILE = "punctuator", "marks.json"
NAMES = {COMMA: "comma", STOP: "stop", QUESTION: "question", PAUSE: "pause"}


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains the punctuator of the recipe, or takes its checkpoint; returns F1 by mark."""
    config, seed, folder = recipe.punctuator, stage_seed(recipe, STEP), run / STEP
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))
    torch.manual_seed(seed)
    texts = {split: read_texts(corpus, split, config.text) for split in ("train", "val")}
    known = start(config, texts["train"])
    data, val = (MarkedSentences.of(texts[s], known.tokens, known.marks) for s in ("train", "val"))
    scores = evaluate(known, val, seed)
    if config.epochs:
        scores = learn(known, data, val, seed, folder)
    write_tokens(folder / TOKENS, known.tokens)
    write_json(folder / MARKS_FILE, list(known.marks))
    card = {"scores": scores, "data": "sentences", "words": len(known.tokens)}
    save_step(run, STEP, asdict(known.config), known.model.state_dict(), card)
    clear_checkpoints(folder)
    return scores


def start(config: PunctuatorConfig, texts: list[str]) -> PunctuationModel:
    """The model before training: the checkpoint's, or one of random weights."""
    if config.checkpoint:
        return load_folder(Path(config.checkpoint).expanduser(), config)[0]
    tokens = learn_tokens(texts, config.vocabulary)
    return PunctuationModel(CtTransformer(config, len(tokens), len(MARKS)), config, tokens, MARKS)


def learn(
    known: PunctuationModel, data: MarkedSentences, val: MarkedSentences, seed: int, folder: Path
) -> dict[str, float]:
    """Trains in place; returns the scores of the best epoch."""
    config, model = known.config, known.model
    unknown = known.tokens.index("<unk>")

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        rng = step_rng()
        rows = [data.row(int(i), config.joined, rng) for i in indices]
        words, lengths, marks = padded(rows)
        words[rng.random(words.shape) < config.word_dropout] = unknown
        place = model.decoder.weight.device
        tensors = [torch.from_numpy(a).to(place) for a in (words, lengths, marks)]
        scores = model(tensors[0], tensors[1]).float()
        return F.cross_entropy(scores.transpose(1, 2), tensors[2], ignore_index=IGNORED)

    def scores(_: nn.Module) -> dict[str, float]:
        return evaluate(known, val, seed)

    schedule = FitConfig(config.epochs, config.batch_size, config.lr, seed=seed, bf16=config.bf16)
    return fit(model, loss, len(data), schedule, folder, name=STEP, evaluate=scores)


@torch.no_grad()
def evaluate(known: PunctuationModel, data: MarkedSentences, seed: int) -> dict[str, float]:
    """`f1`, the mean over the marks that occur, `f1_<mark>` of each, and `accuracy` over words;
    on the sentences joined by a seed, the same ones each time."""
    rng, config, model = np.random.default_rng([seed, 2]), known.config, known.model
    training = model.training
    model.eval()
    place = model.decoder.weight.device
    counts = np.zeros((len(known.marks), len(known.marks)), np.int64)  # true by found
    for part in np.array_split(np.arange(len(data)), -(-len(data) // config.batch_size)):
        rows = [data.row(int(i), config.joined, rng) for i in part]
        words, lengths, marks = padded(rows)
        scores = model(torch.from_numpy(words).to(place), torch.from_numpy(lengths).to(place))
        found = scores.argmax(-1).cpu().numpy()
        real = marks != IGNORED
        np.add.at(counts, (marks[real], found[real]), 1)
    model.train(training)
    return scores_of(counts, known.marks)


def scores_of(counts: NDArray[np.int64], marks: tuple[str, ...]) -> dict[str, float]:
    """As of `evaluate`, from counts [true, found]."""
    right, true, found = counts.diagonal(), counts.sum(1), counts.sum(0)
    f1 = 2 * right / np.maximum(true + found, 1)
    kinds = [i for i, mark in enumerate(marks) if i != IGNORED and mark != NOTHING and true[i]]
    named = {f"f1_{NAMES.get(role_of(marks[i]), str(i))}": float(f1[i]) for i in kinds}
    mean = float(np.mean([f1[i] for i in kinds])) if kinds else 0.0
    return {"f1": mean, **named, "accuracy": float(right.sum() / max(int(counts.sum()), 1))}


def load(run: Path) -> PunctuationModel:
    """The trained punctuator of a run, in eval mode.

    Raises:
        BundleNotFoundError: the run has no such step.
        BundleCorruptError: files that are damaged or do not belong together.
    """
    table, weights = load_step_files(run, STEP)
    config = from_table(PunctuatorConfig, table, str(run / STEP / CONFIG))
    tokens, marks = read_tokens(run / STEP / TOKENS), read_tokens(run / STEP / MARKS_FILE)
    model = CtTransformer(config, len(tokens), len(marks))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleCorruptError(
            f"the weights in {run / STEP} do not fit its configuration ({error})",
            "weights, words and marks of one training",
            f"remove {run / STEP} and train the step again",
        ) from None
    return PunctuationModel(model.eval(), config, tokens, marks)
