"""A run of the smallest sizes that hears: recogniser, separator, punctuator and language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from random_run import LABELS, SMALLEST

from merkit_training.recipe import Recipe
from merkit_training.speech.hearing.config import HearingConfig
from merkit_training.speech.language_model.config import LanguageModelConfig
from merkit_training.speech.punctuation.config import PunctuatorConfig
from merkit_training.speech.recognition.config import RecognizerConfig
from merkit_training.speech.separation.config import SeparatorConfig
from merkit_training.untrained import write_untrained_run

HEARING = replace(
    SMALLEST,
    recognizer=RecognizerConfig(
        hidden=16, layers=1, heads=2, intermediate=32, decoder_layers=1, decoder_attending=1,
        decoder_heads=2, decoder_intermediate=32, word_pieces=20, epochs=1,
    ),
    separator=SeparatorConfig(
        channels=16, layers=1, group=32, query_key=8, memory=8, order=3, epochs=1
    ),
    punctuator=PunctuatorConfig(
        embedded=16, hidden=16, layers=1, heads=2, intermediate=32, epochs=1
    ),
    language_model=LanguageModelConfig(order=2),
)  # fmt: skip
"""The recipe; encoders hear the original."""
CLEANED = replace(HEARING, hearing=HearingConfig(audio_hears="cleaned", joint_hears="cleaned"))
"""The same, but encoders hear cleaned sound."""


def write_hearing_run(
    run: Path, recipe: Recipe = HEARING, labels: tuple[str, ...] = LABELS
) -> Path:
    """Writes the run below `run`, at random weights."""
    return write_untrained_run(recipe, run, labels)
