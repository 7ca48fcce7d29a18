"""May a candidate share a batch? Asked of the graph itself, and of loud neighbours.

A precision that scales activations over the whole batch answers a clip differently beside a
louder one, and no average over clips shows it. So each clip runs alone and beside neighbours three
times as large; and operators that scale so are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from merkit.contract import StepSpec

Values = Mapping[str, NDArray[Any]]
Run = Callable[[Values], dict[str, NDArray[Any]]]

SCALED_BY_BATCH = frozenset(
    {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)
LOUDER = 3.0
TOLERANCE = 2e-3
"""Of the largest feature: with fixed scales a neighbour can at most flip the last bit of some
activations, since float32 sums come out in another order."""


@dataclass(frozen=True)
class Admission:
    """What neighbours do to a candidate."""

    neighbour: float
    """Largest change of a feature beside loud neighbours, relative to the largest feature."""
    scaled_by: tuple[str, ...]
    """Operators that scale over the whole batch."""
    finite: bool
    """No NaN or infinity anywhere."""

    @property
    def batches(self) -> bool:
        """Whether clips may share a batch."""
        return not self.scaled_by and self.neighbour <= TOLERANCE

    @property
    def problem(self) -> str:
        """Why they may not, or ""."""
        if not self.finite:
            return "makes NaN or infinity"
        if self.scaled_by:
            return f"{', '.join(self.scaled_by)} scales over the whole batch"
        if not self.batches:
            return f"features change by {self.neighbour:.1%} beside a louder clip"
        return ""


def probe(
    run: Run, spec: StepSpec, path: Path, batch: Values, alone: Sequence[Values]
) -> Admission:
    """Asks a candidate.

    Args:
        run: the candidate.
        spec: its step.
        path: its file.
        batch: the step's inputs for several clips, padded to one shape.
        alone: the same clips, each with batch 1 at its own size.
    """
    floats = [n for n in spec.inputs if batch[n].dtype.kind == "f"]
    output = spec.outputs[0]
    largest, change, finite = 0.0, 0.0, True
    for row, values in enumerate(alone):
        loud = {name: np.array(batch[name]) for name in spec.inputs}
        for name in floats:
            others = np.arange(len(loud[name])) != row
            loud[name][others] *= LOUDER
        single, beside = run(values)[output][0], run(loud)[output][row]
        finite = finite and bool(np.isfinite(single).all() and np.isfinite(beside).all())
        largest = max(largest, float(np.abs(single).max()))
        change = max(change, float(np.abs(single - beside).max()))
    model = onnx.load(path, load_external_data=False)
    found = {node.op_type for node in model.graph.node}
    scaled = tuple(sorted(found & SCALED_BY_BATCH))
    return Admission(change / max(largest, 1e-9), scaled, finite)
