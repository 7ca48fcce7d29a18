"""What a run's chain makes of sounds: the words that nobody gave, and the sound that encoders hear.

Fusion must learn from what it will be given. A bundle that hears writes the words of a clip without
a transcript, and may let encoders hear cleaned sound (seed 2.4.2, Table 3); were such a clip to
train without words, or by the noisy sound, fusion would meet something else when it serves. So both
come from the very steps that serve: listen, separate, recognise, the rule that chooses, punctuate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit.contract import Contract, Preprocessing
from merkit.pipeline import GROUPS, cut, standard_contract
from merkit_training.speech.hearing.parts import chain_of, python_steps
from merkit_training.steps import load_step

GIVEN = ("waveform", "waveform_length", "text")


class Ears:
    """The chain of a run, from sounds and what callers say to what its encoders are given.

    Args:
        run: with a recogniser; where encoders hear cleaned sound, with a separator, too.
        contract: its pipeline.
        writes: whether words are wanted.
        cleans: whether cleaned sound is.
    """

    def __init__(self, run: Path, contract: Contract, writes: bool, cleans: bool) -> None:
        self.writes, self.cleans = writes, cleans
        wanted = (("words",) if writes else ()) + (("cleaned",) if cleans else ())
        self.plan = cut(contract.steps, GIVEN, wanted)
        self.modules = {s.name: load_step(run, s.name) for s in self.plan if s.kind == "onnx"}
        self.python = python_steps(run, contract)

    @staticmethod
    def of(
        run: Path, preprocessing: Preprocessing, writes: bool = True, cleans: bool = True
    ) -> Ears | None:
        """The run's; None where it has no chain, or one of which nothing is wanted.

        Args:
            run: its folder.
            preprocessing: the run's.
            writes: whether anybody reads words.
            cleans: whether anybody hears the sound that the run's encoders hear.

        Raises:
            as `parts.chain_of`.
        """
        chain = chain_of(run)
        cleans = cleans and chain is not None and chain.hearing.cleans
        if chain is None or not (writes or cleans):
            return None
        widths = dict.fromkeys(GROUPS, 1)  # like the labels, they play no part
        contract = standard_contract(("any", "other"), widths, preprocessing, chain=chain)
        return Ears(run, contract, writes, cleans)

    @torch.inference_mode()
    def __call__(
        self, waveform: Tensor, waveform_length: Tensor, texts: Sequence[str]
    ) -> tuple[list[str], Tensor | None]:
        """The words of each clip, the caller's or those heard, and where it is wanted the sound
        that encoders hear, float32 [b, s]: the chosen source, or the sound as it is.

        Args:
            waveform: float32 [b, s], 16 kHz, right padded.
            waveform_length: int64 [b, 1].
            texts: what callers say; blank where they leave it to the chain.
        """
        silent = [i for i, text in enumerate(texts) if not text.strip()]
        rows = list(range(len(texts))) if self.cleans else silent
        words = list(texts)
        if not rows or not (self.cleans or waveform_length[rows].any()):
            return words, None
        made = self._walk(waveform[rows], waveform_length[rows], [texts[i] for i in rows])
        if self.writes:
            heard = dict(zip(rows, made["words"][:, 0].tolist(), strict=True))
            words = [heard[i] if i in silent else text for i, text in enumerate(texts)]
        return words, torch.from_numpy(made["cleaned"]) if self.cleans else None

    def _walk(
        self, waveform: Tensor, waveform_length: Tensor, texts: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        values: dict[str, NDArray[Any]] = {
            "waveform": waveform.numpy(),
            "waveform_length": waveform_length.numpy(),
            "text": np.array([[text] for text in texts], dtype=np.object_),
        }
        for step in self.plan:
            if step.name in self.python:
                values |= self.python[step.name](values)
                continue
            given = (torch.from_numpy(np.asarray(values[name])) for name in step.inputs)
            made = self.modules[step.name](*given)
            tensors = made if isinstance(made, tuple) else (made,)
            values |= {n: t.numpy() for n, t in zip(step.outputs, tensors, strict=True)}
        return values
