"""Every size and share of the synthetic corpus, as one frozen value.

The corpus must be the same for everybody who builds the demonstration bundle. So nothing of it
is decided in code that draws: this value and its seed determine every byte of the arrays.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Annotated

from merkit.contract import canonical
from merkit.errors import InvalidInputError
from merkit_training.settings import Count, Natural, Range, Share


@dataclass(frozen=True)
class SynthConfig:
    """The `[synth]` table of a recipe. Counts are samples."""

    seed: Natural = 2024  # all randomness derives from [seed, set, index]
    workers: Count = 2  # processes; changes speed, never content
    faces_train: Count = 22_000  # single face crops, eight classes
    faces_val: Count = 1_500
    sequences_train: Count = 4_000  # four crops of one silent performance, six classes
    sequences_val: Count = 600
    utterances_train: Count = 5_000  # speech without a face
    utterances_val: Count = 600
    sentences_train: Count = 30_000  # text alone
    sentences_val: Count = 2_000
    clips_train: Count = 2_400  # talking clips: these train fusion, never an encoder
    clips_val: Count = 600
    clips_test_multi: Count = 600
    clips_test_semi: Count = 500  # class prior shifted as in MER2023-SEMI
    clips_test_noise: Count = 500  # babble at SNR 5-10 dB and blur
    clips_unlabelled: Count = 600
    frame_size: Annotated[int, Range(96, 640)] = (
        160  # side of a clip's frames, in pixels; a multiple of 16
    )
    fps: Annotated[int, Range(1, 60)] = 12  # frames per second of a clip
    brief_share: Share = 0.35  # clips in which only some frames show the expression
    composite_share: Share = 0.12  # clips whose label depends on tone and words together
    chinese_share: Share = 0.5  # the rest speaks English
    ceiling_draws: Count = 40_000  # Monte Carlo draws behind each published ceiling

    def __post_init__(self) -> None:
        if self.frame_size % 16:
            raise InvalidInputError(
                f"synth.frame_size is {self.frame_size}",
                "a multiple of 16, the side of a codec's block",
                "correct the recipe",
            )

    @property
    def identity(self) -> str:
        """Hash of all that shapes the content: two corpora with equal ones are equal."""
        shaping = {k: v for k, v in asdict(self).items() if k != "workers"}
        return hashlib.sha256(canonical(shaping)).hexdigest()[:32]
