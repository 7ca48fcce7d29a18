"""The step `listen`: which of a clip's sound is worth recognising, and what is wrong with it.

Recognition is the dearest part of a clip, and graphs cannot decide not to run. So what goes in is
decided here: nothing where the caller gave the words, where nobody speaks, or, into separation,
where the sound is clean (seed 2.4.2). Of nothing the graphs behind make nothing; executors that can
leave a step out do not even run them (`merkit.presence.nothing`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np

from merkit.contract import Contract, Hearing
from merkit.speech.quality import assess
from merkit.speech.snr import is_clean
from merkit.steps.base import Array, as_text, column, padded, take

UNHEARD = frozenset({"empty", "too_quiet", "no_speech"})
"""Flags of sound in which there are no words to be found."""


class Listen:
    """`waveform`, `waveform_length`, `text` -> `speech`, `speech_length`, `mixture_length` where
    the pipeline separates, and `quality`, JSON of `merkit.speech.quality.Quality`.

    Samples that are no numbers become zeros in `speech`, which is as long as the longest of the
    batch that is to be recognised.
    """

    name: ClassVar[str] = "listen"

    def __init__(self, contract: Contract, resources: Path | None = None) -> None:  # noqa: ARG002
        self.contract = contract
        self.hearing = contract.hearing or Hearing()
        self.separates = "mixture_length" in contract.step(self.name).outputs

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """See Step."""
        names = ("waveform", "waveform_length", "text")
        waveforms, lengths, texts = take(tensors, self.contract, *names)
        rate = self.contract.preprocessing.sample_rate
        speech, mixtures, told = [], [], []
        for waveform, length, text in zip(waveforms, lengths[:, 0], texts[:, 0], strict=True):
            sound = waveform[: max(0, int(length))]
            quality = assess(sound, rate)
            if quality.not_finite:
                sound = np.where(np.isfinite(sound), sound, np.float32(0))
            asked = self.hearing.cleans or not as_text(text).strip()
            if not asked or UNHEARD.intersection(quality.flags):
                sound = sound[:0]
            speech.append(sound)
            mixtures.append(0 if is_clean(sound, self.hearing.clean_from_db) else len(sound))
            told.append([json.dumps(asdict(quality), allow_nan=False)])
        made = {
            "speech": padded(speech),
            "speech_length": column([len(sound) for sound in speech]),
            "quality": np.array(told, dtype=np.object_),
        }
        return made | ({"mixture_length": column(mixtures)} if self.separates else {})
