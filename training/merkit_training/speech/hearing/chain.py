"""The chain in front of the emotion model: recognise, separate, recognise, choose (seed 2.4.2).

The rule's threshold decides only which of three sounds is used. So the emotion model is asked
about all three, once, and any threshold can be judged afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merkit.speech.select import select_source
from merkit_training.speech.noise.levels import Wave
from merkit_training.speech.noise.listen import Listen

Separate = Callable[[Wave], NDArray[np.float32]]
"""float32 [samples] at 16 kHz to sources float32 [2, samples]."""
Punctuate = Callable[[str], str]


@dataclass(frozen=True)
class Passage:
    """What the chain made of a sound: the original first, then the sources."""

    sounds: tuple[Wave, ...]
    texts: tuple[str, ...]  # as recognised, without marks


def pass_through(wave: Wave, listen: Listen, separate: Separate) -> Passage:
    """Separates a sound and recognises it and its sources."""
    sources = tuple(np.asarray(s, np.float32) for s in separate(wave))
    sounds = (wave, *sources)
    return Passage(sounds, tuple(heard.text for heard in listen(sounds)))


def chosen(texts: Sequence[str], threshold: float) -> int:
    """Which sound the rule takes: 0 the original, else 1 + the source's number."""
    source = select_source(texts[0], texts[1:], threshold=threshold).source
    return 0 if source is None else source + 1
