"""How far a step, and the whole pipeline, may be from the checkpoint before the gate shuts.

One number for all would be either a rubber stamp for float32 or a wall before 8 bits. A step that
claims to compute the same is held to rounding; one in fewer bits to its direction, coarsely,
because what it costs shows in answers alone: there the budget decides, on clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROUNDING = 1e-4
"""Largest absolute difference between torch and ONNX in float32, and between a clip alone and in a
padded batch. Features have magnitudes around 1."""

AMPLIFIED = {"log_mel": 10.0, "token_logs": 10.0}
"""How much more a tensor may differ than its step: of a pure tone, most bins lie eight decades
below the loudest, and their logarithm multiplies the rounding of a sum (1.2e-4 was seen). The
recogniser reads such logarithms, and answers in logarithms of tokens that nobody said."""


@dataclass(frozen=True)
class Tolerance:
    """What one step may differ by.

    Attributes:
        precision: what the manifest calls the step's precision.
        max_abs: largest absolute difference; None where the cosine decides.
        cosine: least cosine of a clip's features with the checkpoint's.
        neighbour: largest change by other clips of a batch, and by what stands in the place of an
            absent modality; of the tensor's largest value where `max_abs` is None, else absolute.
    """

    precision: str
    max_abs: float | None = ROUNDING
    cosine: float = 0.99999
    neighbour: float = ROUNDING

    @property
    def lossy(self) -> bool:
        """Whether the precision changes what is computed."""
        return self.max_abs is None

    def told(self) -> str:
        """In a few words."""
        return f"cosine {self.cosine:g}" if self.lossy else f"{self.max_abs:g}"


LEAST_COSINE = {
    "fp16": 0.999,
    "bf16": 0.99,
    "int8-qdq": 0.95,
    "int8-dynamic": 0.95,
    "int8-weight": 0.98,
    "int4-weight": 0.9,
}
"""Of each precision; one that is not here is held to rounding."""
FIXED_SCALES = 0.02
"""With fixed scales a neighbour can at most flip the last bit of some activations, as float32 sums
come out in another order."""


@dataclass(frozen=True)
class Budget:
    """What the answers of a bundle with lossy steps may cost, on clips.

    Attributes:
        agreement: least share of clips with the checkpoint's label.
        waf_loss: most that weighted average F1 may lose.
        ece_shift: most that the expected calibration error may rise.
    """

    agreement: float = 0.99
    waf_loss: float = 0.005
    ece_shift: float = 0.02


def tolerance_of(manifest: Mapping[str, Any], step: str) -> Tolerance:
    """What the manifest's `precision` says of a step; rounding where it says nothing known."""
    table = manifest.get("precision")
    stated = table.get(step) if isinstance(table, Mapping) else None
    name = stated.get("precision") if isinstance(stated, Mapping) else None
    if name not in LEAST_COSINE:
        return Tolerance(name if isinstance(name, str) else "fp32")
    return Tolerance(name, None, LEAST_COSINE[name], FIXED_SCALES)
