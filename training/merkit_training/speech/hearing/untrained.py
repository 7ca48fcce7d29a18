"""A chain of random weights, so that a whole pipeline can be built and timed without a corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from merkit.speech.punctuate import MARKS, UNKNOWN
from merkit.speech.vocabulary import BLANK, END, GOES_ON, SPECIAL, START, Vocabulary
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, CONFIG, save_step, write_json
from merkit_training.speech.funasr import TOKENS
from merkit_training.speech.hearing import parts
from merkit_training.speech.language_model.arpa import write_arpa
from merkit_training.speech.language_model.estimate import estimate
from merkit_training.speech.punctuation.checkpoint import write_tokens
from merkit_training.speech.punctuation.model import CtTransformer
from merkit_training.speech.recognition.model import Recognizer
from merkit_training.speech.separation.model import Separator, begin_lapped

Shaken = Callable[[Any], Any]
CHARACTERS = "我你他她们的了在是不有人会很这那说真好没想到"
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
SENTENCES = 300
"""Made-up ones, that n-grams are counted of."""
CENTRE, SPREAD = 12.0, 4.0
"""Of log-mel energies of speech: what a trained front end would have measured."""


def write_untrained_chain(recipe: Recipe, run: Path, shaken: Shaken) -> None:
    """Writes what the recipe asks for of recogniser, language model, punctuator and separator.

    `shaken` moves a module's weights away from their neutral start. What cleaned sound needs is
    written even where the recipe has a folder for it still to be named.
    """
    c, cleans = recipe, recipe.hearing.cleans
    tokens = made_up_vocabulary(c.recognizer.word_pieces)
    if c.recognizer.asked or cleans:
        recognizer = shaken(Recognizer(c.recognizer, len(tokens)))
        recognizer.frontend.shift.fill_(-CENTRE)
        recognizer.frontend.scale.fill_(1 / SPREAD)
        _save(run, parts.RECOGNIZER, replace(c.recognizer, checkpoint=""), recognizer)
        tokens.save(run / parts.RECOGNIZER / TOKENS)
    if c.language_model.asked:
        _write_language_model(run / parts.LANGUAGE_MODEL, tokens, c.language_model.order)
    if c.separator.asked or cleans:
        separator = Separator(c.separator)
        if c.separator.lapped_start:
            begin_lapped(separator.model)
        _save(run, parts.SEPARATOR, replace(c.separator, checkpoint=""), shaken(separator))
    if c.punctuator.asked:
        words = (UNKNOWN, *(t.removesuffix(GOES_ON) for t in tokens.tokens if t not in SPECIAL))
        known = tuple(dict.fromkeys(words))
        model = shaken(CtTransformer(c.punctuator, len(known), len(MARKS)))
        _save(run, parts.PUNCTUATOR, replace(c.punctuator, checkpoint=""), model)
        write_tokens(run / parts.PUNCTUATOR / TOKENS, known)
        write_json(run / parts.PUNCTUATOR / parts.MARKS, list(MARKS))


def made_up_vocabulary(pieces: int) -> Vocabulary:
    """Some Chinese characters, all letters, and so many pieces of two letters."""
    pairs = islice((a + b for a, b in product(LETTERS, LETTERS)), pieces)
    singles = (piece for letter in LETTERS for piece in (letter + GOES_ON, letter))
    named = (BLANK, START, END, *CHARACTERS, *singles, *pairs, UNKNOWN)
    return Vocabulary(tuple(dict.fromkeys(named)))


def _write_language_model(folder: Path, tokens: Vocabulary, order: int) -> None:
    rng = np.random.default_rng(0)
    words = [token for token in tokens.tokens if token not in SPECIAL]
    said = [[words[int(i)] for i in rng.integers(0, len(words), 6)] for _ in range(SENTENCES)]
    write_arpa(estimate(said, order, words=words), folder / parts.ARPA)
    tokens.save(folder / TOKENS)
    write_json(folder / CONFIG, {"order": order, "weight": 0.3, "bonus": 0.5})
    write_json(folder / CARD, {"scores": {}, "data": "made up"})


def _save(run: Path, step: str, config: Any, module: nn.Module) -> None:
    save_step(run, step, asdict(config), module.state_dict(), {"scores": {}})
