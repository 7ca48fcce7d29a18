"""A trained recogniser as a function from sounds to transcripts, with how sure it is of each.

Self-training and evaluation need nothing else of a recogniser, so that both are tested with ones
whose answers are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from merkit.speech.decode import Hypothesis, beam
from merkit_training.speech.noise.levels import Wave

BATCH = 16


@dataclass(frozen=True)
class Heard:
    """What a recogniser makes of a sound."""

    text: str
    confidence: float  # 0 to 1: mean probability of a token, by beam search; 0 for no text
    tokens: int
    beam: tuple[tuple[str, float], ...] = ()  # texts with their log-probability, best first


Listen = Callable[[Sequence[Wave]], list[Heard]]
"""Transcribes sounds, float32 [samples] at 16 kHz each."""
Reorder = Callable[[Sequence[Hypothesis]], list[Hypothesis]]
"""Hypotheses in a better order, such as `merkit.speech.rescore.Rescorer`."""


def listener(run: Path, width: int = 5, reorder: Reorder | None = None) -> Listen:
    """The recogniser of a run.

    Args:
        run: its folder, with the finished stage `recognizer`.
        width: of the beam.
        reorder: a language model's word on the beam; confidences stay the recogniser's.

    Raises:
        BundleError: the run has no such stage, or a damaged one.
    """
    from merkit_training.speech.recognition.train import load

    recognizer, _, vocabulary = load(run)

    def heard(beamed: list[Hypothesis]) -> Heard:
        found = reorder(beamed) if reorder else beamed
        best = found[0]
        texts = tuple((vocabulary.decode(h.ids), h.total) for h in found)
        return Heard(texts[0][0], best.confidence, len(best.ids), texts)

    def listen(waves: Sequence[Wave]) -> list[Heard]:
        longest = max((len(wave) for wave in waves), default=0)
        batch = np.zeros((len(waves), max(longest, 1)), np.float32)
        for row, wave in zip(batch, waves, strict=True):
            row[: len(wave)] = wave
        lengths = torch.tensor([[len(wave)] for wave in waves], dtype=torch.int64)
        with torch.no_grad():
            logs, counts = (out.numpy() for out in recognizer(torch.from_numpy(batch), lengths)[:2])
        return [
            heard(beam(row, int(n[0]), width, end=vocabulary.end, silent=vocabulary.silent))
            for row, n in zip(logs, counts, strict=True)
        ]

    return listen


def in_batches(listen: Listen, waves: Iterable[Wave], size: int = BATCH) -> Iterator[Heard]:
    """The transcripts of many sounds, `size` at a time, in order."""
    waiting: list[Wave] = []
    for wave in waves:
        waiting.append(wave)
        if len(waiting) == size:
            yield from listen(waiting)
            waiting = []
    if waiting:
        yield from listen(waiting)
