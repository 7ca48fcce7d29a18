"""What the language model of a recipe counts, readable without importing anything heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from merkit_training.settings import Amount, Count, Natural, Range


@dataclass(frozen=True)
class LanguageModelConfig:
    """The n-gram model that rescores the recogniser's beam (seed 2.4.1)."""

    order: Annotated[int, Range(0, 5)] = 0  # the longest n-gram; 0: the recipe has no such model
    text: tuple[str, ...] = ()  # further files to count, a sentence a line
    memory: Count = 5_000_000  # different n-grams held at once; more are sorted on disk
    beam: Count = 16  # hypotheses rescored for each utterance
    # tried on the validation utterances, all with all: the first of the best is kept
    weights: tuple[Amount, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # of the language model
    bonuses: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)  # for each token
    tune_on: Natural = 400  # validation utterances; 0: the first weight and bonus stand

    @property
    def asked(self) -> bool:
        """Whether a run has the stage."""
        return self.order > 0
