"""How a run's pipeline hears, readable without importing torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from merkit.contract import Heard, Hearing
from merkit_training.settings import Count, Share


@dataclass(frozen=True)
class HearingConfig:
    """The chain in front of the encoders (seed 2.4), which a run with a recogniser has.

    Without a recogniser the table means nothing, unless an encoder is to hear cleaned sound: then
    the run must have a recogniser and a separator.
    """

    beam: Count = 8  # transcripts that are considered for each sound
    threshold: Share = 0.1  # by which similarities must differ for a source to be taken (2.4.2)
    measure: Literal["cer", "bigrams", "blocks"] = "cer"  # of similarity
    # dB: sound that is estimated to be as clean or cleaner is not separated; left out: all is
    clean_from_db: float | None = None
    audio_hears: Heard = "original"  # what the audio encoder hears: this, or "cleaned"
    joint_hears: Heard = "original"  # and the joint one

    @property
    def cleans(self) -> bool:
        """Whether any encoder hears cleaned sound."""
        return "cleaned" in (self.audio_hears, self.joint_hears)

    def stated(self, language_weight: float, language_bonus: float) -> Hearing:
        """What the contract says, with the scales of the run's language model."""
        return Hearing(
            **asdict(self), language_weight=language_weight, language_bonus=language_bonus
        )
