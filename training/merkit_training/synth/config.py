"""Every size and share of the synthetic corpus, as one frozen value.

The corpus must be the same for everybody who builds the demonstration bundle. So nothing of it
is decided in code that draws: this value and its seed determine every byte of the arrays.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from merkit.contract import canonical
from merkit.errors import InvalidInputError


@dataclass(frozen=True)
class SynthConfig:
    """The `[synth]` table of a recipe. Counts are samples."""

    seed: int = 2024  # all randomness derives from [seed, set, index]
    workers: int = 2  # processes; changes speed, never content
    faces_train: int = 22_000  # single face crops, eight classes
    faces_val: int = 1_500
    sequences_train: int = 4_000  # four crops of one silent performance, six classes
    sequences_val: int = 600
    utterances_train: int = 5_000  # speech without a face
    utterances_val: int = 600
    sentences_train: int = 30_000  # text alone
    sentences_val: int = 2_000
    clips_train: int = 2_400  # talking clips: these train fusion, never an encoder
    clips_val: int = 600
    clips_test_multi: int = 600
    clips_test_semi: int = 500  # class prior shifted as in MER2023-SEMI
    clips_test_noise: int = 500  # babble at SNR 5-10 dB and blur
    clips_unlabelled: int = 600
    frame_size: int = 160  # side of a clip's frames, in pixels; a multiple of 16
    fps: int = 12  # frames per second of a clip
    brief_share: float = 0.35  # clips in which only some frames show the expression
    composite_share: float = 0.12  # clips whose label depends on tone and words together
    chinese_share: float = 0.5  # the rest speaks English
    ceiling_draws: int = 40_000  # Monte Carlo draws behind each published ceiling

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            share = name.endswith("_share")
            if value < 0 or (share and value > 1) or (name == "workers" and value < 1):
                expected = "a share between 0 and 1" if share else "a number that is not negative"
                raise InvalidInputError(f"synth.{name} is {value}", expected, "correct the recipe")
        if self.frame_size % 16 or self.frame_size < 96 or not 1 <= self.fps <= 60:
            raise InvalidInputError(
                f"synth.frame_size is {self.frame_size} and synth.fps {self.fps}",
                "a multiple of 16 from 96 upwards, and 1 to 60 frames a second",
                "correct the recipe",
            )

    @property
    def identity(self) -> str:
        """Hash of all that shapes the content: two corpora with equal ones are equal."""
        shaping = {k: v for k, v in asdict(self).items() if k != "workers"}
        return hashlib.sha256(canonical(shaping)).hexdigest()[:32]
