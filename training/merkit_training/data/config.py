"""How own clips are divided, as one frozen value; imports no torch, so that recipes read fast."""

from __future__ import annotations

from dataclasses import dataclass

from merkit_training.settings import Count, Natural, Share


@dataclass(frozen=True)
class DataConfig:
    """The table [data] of a recipe, read by `merkit-train prepare`. Shares are of clips."""

    classes: tuple[str, ...] = ()  # in order; empty: MER's six, or those that the labels name
    seed: Natural = 0  # of the splits, which stay the same whatever the run's seed
    val_share: Share = 0.15  # where the data names no split val
    test_share: Share = 0.15  # where the data names no split that begins with test
    encoder_share: Share = 0.5  # of the training clips: these teach encoders, the rest fusion
    workers: Count = 2  # processes that decode; changes speed, never content

    def __post_init__(self) -> None:
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share leave nothing to train on")
        if self.val_share == 0:
            raise ValueError("val_share is 0; every stage chooses its best epoch by validation")
