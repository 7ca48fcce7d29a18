"""The pipeline in PyTorch eager behind the SDK's own seam: what the engines are measured against.

A benchmark or a parity check that drives PyTorch through other code than the engines compares
two programs. Here a training run is a `Backend`, so `merkit.client.Client` drives all alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from merkit.backends.base import Tensors
from merkit.backends.entries import complete, wanted
from merkit.pipeline import cut
from merkit_export.origin import read_origin
from merkit_export.walk import torch_steps


class TorchBackend:
    """Runs a finished training run's modules on the CPU, step after step.

    Takes `pipeline.DECODED_IN`; the client decodes. Raises as `read_origin` does.

    Args:
        run: the run's folder.
        keep: hold every module in memory, however large: what is timed must not load.
    """

    def __init__(self, run: Path, keep: bool = False) -> None:
        origin = read_origin(run)
        self.contract = origin.contract
        identity = {"contract_id": self.contract.contract_id, "backend": "torch"}
        self.identity: Mapping[str, str] = identity
        modules = dict(origin.modules) if keep else origin.modules
        self._steps = torch_steps(self.contract, modules)
        self._steps.update(origin.python_steps())

    def infer(
        self, tensors: Tensors, timings: dict[str, float] | None = None
    ) -> dict[str, NDArray[Any]]:
        """See `Backend.infer`."""
        asked = wanted(self.contract, tensors)
        values = dict(complete(self.contract, tensors))
        for spec in cut(self.contract.steps, values, asked):
            start = time.perf_counter()
            values |= self._steps[spec.name](values)
            if timings is not None:
                timings[spec.name] = 1e3 * (time.perf_counter() - start)
        return {name: values[name] for name in asked}

    def close(self) -> None:
        """Nothing to release."""
