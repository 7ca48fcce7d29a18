"""Options of mining; no torch here, so that the command line answers fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from merkit_training.settings import Count, Natural, Range, Share


@dataclass(frozen=True)
class MiningConfig:
    """How the loop of 2.5 runs. The defaults are the seed's; every other option is off."""

    rounds: Count = 5  # N: how often the pool is voted on and the learners are retrained
    agree: Annotated[int, Range(1)] = 3  # learners that must vote alike for a label to be adopted
    transductive: bool = False  # leave test clips that lie in the pool there
    labels: Natural = 0  # train on that many labelled clips only, drawn by class; 0: on all
    confidence: Share = 0.0  # least mean probability of the learners that agree
    per_class: Natural = 0  # clips of one class that a round adopts at most, surest first; 0: all
    stratified: bool = False  # split the adopted clips evenly within each class too
    drop: bool = False  # return adopted clips to the pool when a later vote gives another label
    steps: Natural = 0  # of each learner, however many clips it has; 0: the recipe's epochs
    control: bool = False  # also train on labels alone, for as many steps, and compare
    patience: Natural = 0  # stop after that many rounds without gain on validation; 0: never
