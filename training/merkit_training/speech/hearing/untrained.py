"""A chain of random weights, so that a whole pipeline can be built and timed without a corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import chain, count, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from merkit.pipeline import Chain
from merkit.speech.punctuate import MARKS, UNKNOWN
from merkit.speech.vocabulary import BLANK, END, GOES_ON, SPECIAL, START, Vocabulary
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, CONFIG, save_step, write_json
from merkit_training.speech.funasr import TOKENS
from merkit_training.speech.hearing import parts
from merkit_training.speech.hearing.modules import Punctuate, Recognize, Separate
from merkit_training.speech.language_model.arpa import write_arpa
from merkit_training.speech.language_model.estimate import estimate
from merkit_training.speech.punctuation.checkpoint import write_tokens
from merkit_training.speech.punctuation.config import PunctuatorConfig
from merkit_training.speech.punctuation.model import CtTransformer
from merkit_training.speech.recognition.config import LARGE, LARGE_TOKENS, SIZES, RecognizerConfig
from merkit_training.speech.recognition.model import Recognizer
from merkit_training.speech.separation.model import Separator, begin_lapped

Shaken = Callable[[Any], Any]
NAMED = (BLANK, START, END, UNKNOWN)
"""Where FunASR has them: the first three, and the last token."""
FIRST_CHARACTER, CHARACTERS = 0x4E00, 22
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
UNLIKELY = 2000.0
"""How much less probable, as a logarithm, what stands for no text is made: less than the longest
sound's tokens together."""
SENTENCES = 300
"""Made-up ones, that n-grams are counted of."""
CENTRE, SPREAD = 12.0, 4.0
"""Of log-mel energies of speech: what a trained front end would have measured."""


def write_untrained_chain(recipe: Recipe, run: Path, shaken: Shaken) -> None:
    """Writes what the recipe asks for of recogniser, language model, punctuator and separator.

    `shaken` moves a module's weights away from their neutral start.
    """
    made, tokens = chain_modules(recipe), made_up_vocabulary(recipe.recognizer)
    if isinstance(heard := made.get("recognize"), Recognize):
        recognizer = shaken(heard.recognizer)
        recognizer.frontend.shift.fill_(-CENTRE)
        recognizer.frontend.scale.fill_(1 / SPREAD)
        with torch.no_grad():  # else to end at once is the most probable of all nonsense
            recognizer.model.decoder.output_layer.bias[list(tokens.silent)] -= UNLIKELY
        _save(run, parts.RECOGNIZER, recipe.recognizer, recognizer)
        tokens.save(run / parts.RECOGNIZER / TOKENS)
    if recipe.language_model.asked:
        _write_language_model(run / parts.LANGUAGE_MODEL, tokens, recipe.language_model.order)
    if isinstance(apart := made.get("separate"), Separate):
        if recipe.separator.lapped_start:
            begin_lapped(apart.separator.model)
        _save(run, parts.SEPARATOR, recipe.separator, shaken(apart.separator))
    if isinstance(marked := made.get("punctuate"), Punctuate):
        _save(run, parts.PUNCTUATOR, recipe.punctuator, shaken(marked.model))
        write_tokens(run / parts.PUNCTUATOR / TOKENS, made_up_words(recipe.punctuator))
        write_json(run / parts.PUNCTUATOR / parts.MARKS, list(MARKS))


def chain_modules(recipe: Recipe) -> dict[str, nn.Module]:
    """The ONNX steps of the chain that a recipe asks for, of its own sizes, before training.

    What cleaned sound needs is among them even where the recipe leaves its checkpoint to be named.
    """
    c, cleans = recipe, recipe.hearing.cleans
    made: dict[str, nn.Module] = {}
    if c.separator.asked or cleans:
        made["separate"] = Separate(Separator(c.separator))
    if c.recognizer.asked or cleans:
        tokens = len(made_up_vocabulary(c.recognizer))
        made["recognize"] = Recognize(Recognizer(c.recognizer, tokens))
    if c.punctuator.asked:
        words = len(made_up_words(c.punctuator))
        made["punctuate"] = Punctuate(CtTransformer(c.punctuator, words, len(MARKS)))
    return made


def chain_like(recipe: Recipe) -> Chain | None:
    """The chain of an untrained run of the recipe; None where it has no recogniser."""
    asked = chain_modules(recipe)
    if "recognize" not in asked:
        return None
    tokens = len(made_up_vocabulary(recipe.recognizer))
    marks = len(MARKS) if "punctuate" in asked else 0
    return Chain(recipe.hearing.stated(0.0, 0.0), tokens, "separate" in asked, marks)


def made_up_vocabulary(config: RecognizerConfig) -> Vocabulary:
    """All letters, so many pieces of two letters as the recipe would learn, and some Chinese
    characters: at the published sizes as many as make the published vocabulary."""
    pairs = islice((a + b for a, b in product(LETTERS, LETTERS)), config.word_pieces)
    singles = (piece for letter in LETTERS for piece in (letter + GOES_ON, letter))
    narrow = tuple(dict.fromkeys((*singles, *pairs)))
    published = all(getattr(config, key) == size for key, size in LARGE.items() if key in SIZES)
    wide = LARGE_TOKENS - len(narrow) - len(NAMED) if published else CHARACTERS
    characters = (chr(FIRST_CHARACTER + i) for i in range(wide))
    return Vocabulary((*NAMED[:-1], *characters, *narrow, NAMED[-1]))


def made_up_words(config: PunctuatorConfig) -> tuple[str, ...]:
    """As many words as the recipe allows."""
    known = chain((UNKNOWN,), LETTERS, (a + b + c for a, b, c in product(LETTERS, repeat=3)))
    wide = (chr(FIRST_CHARACTER + i) for i in range(CHARACTERS))
    others = (f"{number:x}" for number in count())
    return tuple(islice(chain(known, wide, others), config.vocabulary))


def _write_language_model(folder: Path, tokens: Vocabulary, order: int) -> None:
    rng = np.random.default_rng(0)
    words = [token for token in tokens.tokens if token not in SPECIAL]
    said = [[words[int(i)] for i in rng.integers(0, len(words), 6)] for _ in range(SENTENCES)]
    write_arpa(estimate(said, order, words=words), folder / parts.ARPA)
    tokens.save(folder / TOKENS)
    write_json(folder / CONFIG, {"order": order, "weight": 0.3, "bonus": 0.5})
    write_json(folder / CARD, {"scores": {}, "data": "made up"})


def _save(run: Path, step: str, config: Any, module: nn.Module) -> None:
    config = replace(config, checkpoint="")
    save_step(run, step, asdict(config), module.state_dict(), {"scores": {}})
