"""What a hearing study trains and opens, each behind one function.

A study of hours must be tested in seconds. Tests put functions with known answers here; nothing
else of the study knows where a recogniser comes from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, RunCard, read_json
from merkit_training.speech.hearing.chain import Punctuate, Separate
from merkit_training.speech.noise.levels import Wave
from merkit_training.speech.noise.listen import Listen, listener
from merkit_training.speech.noise.rounds import train_in_rounds
from merkit_training.stages import stage_function
from merkit_training.studies.inputs import Inputs, decoded

Judge = Callable[[NDArray[np.uint8], Wave, str], int]
"""The emotion model: faces uint8 [f, side, side, 3], sound and words to a class."""


def train(recipe: Recipe, corpus: Path, run: Path, stage: str) -> dict[str, float]:
    """Trains a stage in a run folder, unless it is there; its scores."""
    card_path = run / stage / CARD
    if not card_path.exists():
        card, started = RunCard(run, recipe, corpus), time.monotonic()
        scores = stage_function(stage)(recipe, corpus, run)
        card.record(stage, scores, time.monotonic() - started)
    return {k: float(v) for k, v in read_json(card_path)["scores"].items()}


def self_train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Self-training into a run folder; the score of each round."""
    outcome = train_in_rounds(recipe, corpus, run)
    return {f"round {i}": score for i, score in enumerate(outcome.scores)}


def listen(run: Path, language: Path | None, beam: int) -> Listen:
    """The recogniser of a run, with the language model of the run `language` if there is one."""
    if language is None:
        return listener(run, beam)
    from merkit_training.speech.language_model.stage import load as load_language_model

    rescorer = load_language_model(language)
    return listener(run, beam, rescorer)


def separate(run: Path) -> Separate:
    """The separator of a run as the pipeline uses it, and sound of any length in chunks."""
    from merkit.speech.separate import separate_long
    from merkit_training.speech.hearing.modules import load_separate

    step = load_separate(run)

    def chunk(wave: Wave) -> NDArray[np.float32]:
        with torch.no_grad():
            sound = torch.from_numpy(np.ascontiguousarray(wave))[None]
            made = step(sound, torch.tensor([[len(wave)]]))
        return np.asarray(made[0].numpy(), np.float32)

    return lambda wave: separate_long(wave, chunk)


def punctuate(run: Path) -> Punctuate:
    """The punctuator of a run."""
    from merkit.speech.punctuate import Punctuator
    from merkit_training.speech.hearing.modules import Punctuate
    from merkit_training.speech.punctuation.train import load

    known = load(run)
    step = Punctuate(known.model).eval()

    def classify(words: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            scores = step(torch.from_numpy(words), torch.from_numpy(lengths)[:, None])
        return np.asarray(scores.numpy(), np.float32)

    return Punctuator(known.tokens, known.marks, classify)


def judge(model: Path) -> Judge:
    """A bundle or run as a function from a clip to its class; -1 where it sees nothing."""
    from merkit_training.evaluation.conditions import CLEAN, Material, tensors_under
    from merkit_training.evaluation.subject import open_subject

    subject = open_subject(model, threads=1)

    def decide(crops: NDArray[np.uint8], wave: Wave, text: str) -> int:
        material = Material({1: crops}, np.asarray(wave, np.float32), text)
        tensors = tensors_under(CLEAN, material, subject.contract.preprocessing, ())
        if subject.contract.hearing and not text:
            del tensors["text"]  # else the model would listen once more
        return int(subject.client.backend.infer(tensors)["label"][0])

    return decide


@dataclass(frozen=True)
class Tools:
    """The functions a study is run with."""

    train: Callable[[Recipe, Path, Path, str], dict[str, float]] = train
    self_train: Callable[[Recipe, Path, Path], dict[str, float]] = self_train
    listen: Callable[[Path, Path | None, int], Listen] = listen
    separate: Callable[[Path], Separate] = separate
    punctuate: Callable[[Path], Punctuate] = punctuate
    judge: Callable[[Path], Judge] = judge
    clips: Callable[[Path, str, Preprocessing, Path], Inputs] = decoded


REAL = Tools()
"""What `merkit-train hear` runs with."""
