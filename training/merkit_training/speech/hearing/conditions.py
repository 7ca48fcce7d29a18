"""The noise that hearing is measured in: the same for every row, so that rows can be compared.

What is drawn depends on the clip and on the kind of noise alone: levels of a curve differ in
nothing but the level, and two recognisers hear the very same mixture.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from merkit_training.speech.noise.config import KINDS
from merkit_training.speech.noise.generated import generated
from merkit_training.speech.noise.levels import Wave, active_power, mix, power, stretched

TALKERS = 4
AMBIENT = tuple(kind for kind in KINDS if kind != "babble")


@dataclass(frozen=True)
class Condition:
    """Clean speech, or noise of a kind at a level in dB above which speech stands."""

    kind: Literal["clean", "ambient", "babble"] = "clean"
    snr: float = 0.0

    @property
    def key(self) -> str:
        """Its name in files and tables, such as `ambient:5`."""
        return self.kind if self.kind == "clean" else f"{self.kind}:{self.snr:g}"


def conditions_of(snrs: Sequence[float]) -> Iterator[Condition]:
    """Clean, then each kind at each level."""
    yield Condition()
    for kind in ("ambient", "babble"):
        for snr in snrs:
            yield Condition(kind, snr)


def under(
    condition: Condition, wave: Wave, name: str, other: Callable[[int], Wave], count: int
) -> Wave:
    """A clip's sound float32 [samples] under a condition.

    Args:
        condition: what is done to it.
        wave: the clip's sound.
        name: of the clip; draws the noise.
        other: the sound of another clip by number, for babble.
        count: of other clips; without any there is no babble, and the sound stays.
    """
    if condition.kind == "clean" or not len(wave):
        return wave
    rng = np.random.default_rng([zlib.crc32(name.encode()), zlib.crc32(condition.kind.encode())])
    if condition.kind == "ambient":
        kind = AMBIENT[int(rng.integers(len(AMBIENT)))]
        noise = generated(kind, len(wave), rng, None)
        return mix(wave, noise, condition.snr, power(noise))
    if not count:
        return wave
    noise = np.zeros(len(wave), np.float32)
    for _ in range(TALKERS):
        voice = other(int(rng.integers(count)))
        level = active_power(voice)
        if level > 0:
            noise += stretched(voice, len(wave), rng) / np.float32(np.sqrt(level))
    return mix(wave, noise, condition.snr, active_power(noise))
