"""The sound that encoders hear where the recipe lets them hear it cleaned (seed 2.4.2, Table 3).

Fusion must learn from what it will be given. So features of cleaned sound come from the very steps
that serve: listen, separate, recognise all three sounds, and the rule that chooses one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from merkit.contract import Contract, Preprocessing
from merkit.pipeline import GROUPS, cut, standard_contract
from merkit_training.speech.hearing.parts import chain_of, python_steps
from merkit_training.steps import load_step


class Cleaner:
    """Sounds as a run's encoders hear them.

    Args:
        run: with a recogniser and a separator.
        contract: its pipeline, whose encoders hear cleaned sound.
    """

    def __init__(self, run: Path, contract: Contract) -> None:
        given = ("waveform", "waveform_length", "text")
        self.plan = cut(contract.steps, given, ("cleaned",))
        self.modules = {s.name: load_step(run, s.name) for s in self.plan if s.kind == "onnx"}
        self.python = python_steps(run, contract)

    @staticmethod
    def of(run: Path, preprocessing: Preprocessing) -> Cleaner | None:
        """The run's; None where its encoders hear the original. Errors as of `parts.chain_of`."""
        chain = chain_of(run)
        if chain is None or not chain.hearing.cleans:
            return None
        widths = dict.fromkeys(GROUPS, 1)  # like the labels, they play no part
        return Cleaner(run, standard_contract(("any", "other"), widths, preprocessing, chain=chain))

    @torch.inference_mode()
    def __call__(self, waveform: Tensor, waveform_length: Tensor) -> Tensor:
        """float32 [b, s]: of each row the chosen source, or the sound as it is.

        Args:
            waveform: float32 [b, s], 16 kHz, right padded.
            waveform_length: int64 [b, 1].
        """
        values = {
            "waveform": waveform.numpy(),
            "waveform_length": waveform_length.numpy(),
            "text": np.full((len(waveform), 1), "", dtype=np.object_),
        }
        for step in self.plan:
            if step.name in self.python:
                values |= self.python[step.name](values)
                continue
            made = self.modules[step.name](*(torch.from_numpy(values[n]) for n in step.inputs))
            tensors = made if isinstance(made, tuple) else (made,)
            values |= {n: t.numpy() for n, t in zip(step.outputs, tensors, strict=True)}
        return torch.from_numpy(np.asarray(values["cleaned"]))
