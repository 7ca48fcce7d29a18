"""A training run behind the SDK's own seam, so that a checkpoint and its bundle are asked alike.

A report on a checkpoint must not need an export first, and must not drive the modules through
other code than a report on a bundle: then two reports could differ for no reason of the model's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from merkit.backends.base import Tensors, check_tensors
from merkit.backends.entries import complete, wanted
from merkit.contract import Contract, Preprocessing, StepSpec, Voter
from merkit.errors import BundleCorruptError, InferenceError
from merkit.pipeline import cut, standard_contract
from merkit_training.evaluation.subject import VALENCE
from merkit_training.fusion.model import Fusion
from merkit_training.runs import read_json
from merkit_training.settings import from_table
from merkit_training.speech.hearing.parts import chain_of, python_steps
from merkit_training.steps import load_step
from merkit_training.voting import Voting


class TrainedBackend:
    """Runs a finished training run's modules on the CPU, step after step.

    Takes `pipeline.DECODED_IN`; the client decodes. Where the run's branches have a head for
    valence, answers hold `VALENCE` beside the outcome.

    Raises:
        BundleNotFoundError: a stage has not been run.
        BundleCorruptError: a file of the run is damaged.
    """

    def __init__(self, run: Path) -> None:
        self.contract = contract_of(run)
        contract_id = self.contract.contract_id
        self.identity: Mapping[str, str] = {"contract_id": contract_id, "backend": "torch"}
        names = [step.name for step in self.contract.steps if step.kind == "onnx"]
        self._modules: dict[str, nn.Module] = {
            name: load_step(run, name) for name in names if name != "voting"
        }
        self._modules["voting"] = Voting(bytes.fromhex(contract_id)).eval()
        self._python = python_steps(run, self.contract)

    def infer(
        self, tensors: Tensors, timings: dict[str, float] | None = None
    ) -> dict[str, NDArray[Any]]:
        """See `Backend.infer`."""
        check_tensors(self.contract, tensors)
        asked = wanted(self.contract, tensors)
        values = dict(complete(self.contract, tensors))
        for spec in cut(self.contract.steps, values, asked):
            start = time.perf_counter()
            values |= self._run(spec, values)
            if timings is not None:
                timings[spec.name] = 1e3 * (time.perf_counter() - start)
        answer = {name: values[name] for name in asked}
        if self._fusion.config.valence:
            answer[VALENCE] = self._fusion.valence(*self._arguments("fusion", values))
        return answer

    @property
    def _fusion(self) -> Fusion:
        fusion = self._modules["fusion"]
        assert isinstance(fusion, Fusion)
        return fusion

    def _arguments(self, step: str, values: Tensors) -> list[torch.Tensor]:
        names = self.contract.step(step).inputs
        return [torch.from_numpy(np.array(values[name])) for name in names]

    def close(self) -> None:
        """Nothing to release."""

    def _run(self, spec: StepSpec, values: Tensors) -> dict[str, NDArray[Any]]:
        if spec.name in self._python:
            return self._python[spec.name](values)
        arguments = self._arguments(spec.name, values)
        try:
            with torch.inference_mode():
                made = self._modules[spec.name](*arguments)
        except (RuntimeError, IndexError) as error:
            raise InferenceError.of(f"the step {spec.name!r}", error) from error
        outputs = made if isinstance(made, tuple) else (made,)
        return {name: t.numpy() for name, t in zip(spec.outputs, outputs, strict=True)}


def contract_of(run: Path) -> Contract:
    """What a run's bundle will implement.

    Raises BundleNotFoundError or BundleCorruptError.
    """
    table = read_json(run / "recipe.json").get("preprocessing", {})
    preprocessing = from_table(Preprocessing, table, "recipe.json [preprocessing]")
    path = run / "fusion" / "config.json"
    facts = read_json(path)
    try:
        voters = [Voter(v["name"], tuple(v["groups"])) for v in facts["voters"]]
        chain = chain_of(run)
        return standard_contract(facts["labels"], facts["widths"], preprocessing, voters, chain)
    except (KeyError, TypeError) as error:
        raise BundleCorruptError(
            f"{path} is malformed ({type(error).__name__}: {error})",
            "labels, widths and voters",
            "run the fusion stage again",
        ) from None
