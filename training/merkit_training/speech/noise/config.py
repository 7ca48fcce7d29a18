"""What noise training adds, readable without importing what makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from merkit_training.settings import Amount, Count, Share

Kind = Literal["pink", "brown", "hum", "crackle", "babble"]
KINDS: tuple[Kind, ...] = ("pink", "brown", "hum", "crackle", "babble")
Pair = tuple[float, float]


@dataclass(frozen=True)
class NoiseConfig:
    """The `[noise]` table (seed 2.4.1); pairs are the bounds of a uniform draw."""

    clean: Amount = 2.0  # of speech, in proportion to the next two
    ambient: Amount = 1.0  # speech with noise of the surroundings
    voices: Amount = 1.0  # speech with voices in the background, through a room
    ambient_snr: Pair = (5.0, 12.0)  # dB
    voices_snr: Pair = (10.0, 30.0)  # dB
    talkers: tuple[Count, Count] = (1, 3)  # voices in the background
    # Sound files of any kind, such as MUSAN; those below a folder `speech` are background voices.
    folder: str = ""  # "": noise is generated
    kinds: tuple[Kind, ...] = KINDS  # of generated noise, equally often
    rooms_folder: str = ""  # room impulse responses, such as RIRS_NOISES; "": rooms are simulated
    rooms: Count = 64  # different simulated ones
    reverberation: Pair = (0.15, 0.6)  # seconds until the sound in a room has fallen by 60 dB

    def __post_init__(self) -> None:
        if not self.clean + self.ambient + self.voices > 0:
            raise ValueError("of clean, ambient and voices at least one must be above 0")
        if not self.kinds and not self.folder:
            raise ValueError("without a folder there must be kinds of noise to generate")
        for name in ("ambient_snr", "voices_snr", "talkers", "reverberation"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} ({low}, {high}) must not fall")
        if self.reverberation[0] < 0.05 or self.reverberation[1] > 2:
            raise ValueError(f"reverberation {self.reverberation} must lie within 0.05 to 2 s")


@dataclass(frozen=True)
class SelfTrainingConfig:
    """How a recogniser learns from sound without text (seed 2.4.1)."""

    confidence: Share = 0.8  # least mean probability of a token, by beam search, that is adopted
    least_tokens: Count = 2  # of a transcript; a single sure token says little
    beam: Count = 5
    rounds: Count = 5  # at most
    gain: Amount = 0.001  # least rise of the validation score that counts as improvement
