"""How plans are built, as one value: every choice that makes another plan is in it."""

from __future__ import annotations

from dataclasses import dataclass

from merkit.errors import InvalidInputError
from merkit.plans import HARDWARE, STRIP_PLAN, VERSION_COMPATIBLE, Hardware

WEIGHT_STREAMING, REFIT, TF32 = "WEIGHT_STREAMING", "REFIT", "TF32"
LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """Choices for all plans of a run."""

    version_compatible: bool = False
    """Plans that newer TensorRT of the same major runs, too (some kernels are given up)."""
    hardware: Hardware = "none"
    """GPUs beside this one: none, of the same compute capability, or Ampere and newer."""
    weight_streaming: bool = False
    """Weights may stay in the host's memory, for models larger than the GPU's (slower)."""
    refit: bool = False
    """Weights may be exchanged without building again."""
    strip_plan: bool = False
    """Plans without weights, which are read from `model.onnx` when loaded (not by Triton)."""
    tf32: bool = False
    """Let float32 products round their factors to 10 bits: faster, and 1e-3 apart."""
    workspace_mib: int = 0
    """Memory for intermediate results of one operator, in MiB; 0: what the GPU has."""
    level: int = 3
    """How long the builder searches, 0 to 5."""

    def __post_init__(self) -> None:
        if self.hardware not in HARDWARE:
            raise InvalidInputError(
                f"hardware compatibility is {self.hardware!r}", f"one of {HARDWARE}", "choose"
            )
        if self.level not in LEVELS or self.workspace_mib < 0:
            raise InvalidInputError(
                f"the level is {self.level} and the workspace {self.workspace_mib} MiB",
                "a level of 0 to 5 and a workspace of 0 or more",
                "correct --level or --workspace",
            )

    @property
    def flags(self) -> tuple[str, ...]:
        """Builder flags to set, by TensorRT's names. TF32 is set there by default: see builder."""
        chosen = {
            VERSION_COMPATIBLE: self.version_compatible,
            WEIGHT_STREAMING: self.weight_streaming,
            REFIT: self.refit,
            STRIP_PLAN: self.strip_plan,
            TF32: self.tf32,
        }
        return tuple(name for name, wanted in chosen.items() if wanted)

    @property
    def settings(self) -> dict[str, int]:
        """Settings that are numbers."""
        return {"level": self.level, "workspace_mib": self.workspace_mib}
