"""One walk over the contract's steps, whatever executes them: torch or the SDK's own backend.

Parity means little if the two sides are driven by different code. So both are a mapping from
step to function, and one loop, which follows the same cut as every backend, runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from merkit.backends.embedded import EmbeddedBackend
from merkit.contract import Contract, StepSpec
from merkit.errors import MerkitError
from merkit.pipeline import OUTCOME, cut

Values = dict[str, NDArray[Any]]
Step = Callable[[Mapping[str, NDArray[Any]]], Values]


def walk(
    contract: Contract,
    steps: Mapping[str, Step],
    given: Mapping[str, NDArray[Any]],
    wanted: Collection[str] = OUTCOME,
) -> Values:
    """Every tensor on the way from `given` to `wanted`, the given ones included. Unlike a
    backend it skips nothing, so that what absent modalities leave behind is computed too."""
    values = dict(given)
    for spec in cut(contract.steps, given, wanted):
        values |= steps[spec.name](values)
    return values


def bundle_steps(backend: EmbeddedBackend) -> dict[str, Step]:
    """Every step of a bundle, as the embedded backend runs it."""

    def step(spec: StepSpec) -> Step:
        return lambda values: backend.run_step(spec, {name: values[name] for name in spec.inputs})

    return {spec.name: step(spec) for spec in backend.contract.steps}


def torch_steps(contract: Contract, modules: Mapping[str, nn.Module]) -> dict[str, Step]:
    """The ONNX steps of the contract, as torch computes them on the CPU. A module is taken from
    `modules` when its step runs, so that a mapping that loads them need not hold all."""

    def step(name: str) -> Step:
        spec = contract.step(name)
        return lambda values: torch_step(spec, modules[name])(values)

    return {name: step(name) for name in modules}


def torch_step(spec: StepSpec, module: nn.Module) -> Step:
    """One ONNX step as its torch module computes it on the CPU."""
    module.eval()

    def run(values: Mapping[str, NDArray[Any]]) -> Values:
        arguments = [torch.from_numpy(np.array(values[name])) for name in spec.inputs]
        try:
            with torch.inference_mode():
                made = module(*arguments)
        except (RuntimeError, IndexError) as error:  # sizes of stages that do not fit
            first = str(error).partition("\n")[0]
            raise MerkitError(
                f"the torch module of {spec.name!r} fails ({first})",
                f"one that takes {', '.join(spec.inputs)} as the contract states them",
                "train its stage again: the run's stages may be of different recipes",
            ) from error
        tensors = made if isinstance(made, tuple) else (made,)
        return {name: t.numpy() for name, t in zip(spec.outputs, tensors, strict=True)}

    return run
