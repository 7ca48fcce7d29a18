"""The precisions there are, and which of them each target may use.

A precision that is fast on one target does not exist on another: TensorRT takes no contrib
operators, CPUs have no bfloat16 kernels in ONNX Runtime, and what scales its activations as it
runs cannot share a batch. Each fact is stated once, here.
"""

from __future__ import annotations

from dataclasses import dataclass

from merkit.contract import Contract, StepSpec
from merkit.errors import InvalidInputError
from merkit.pipeline import GROUPS

REFERENCE = "fp32"
LANGUAGE_STEPS = ("text_encoder", "joint_encoder")
"""Steps that hold a language model, whose many weights are worth fewer bits alone."""


@dataclass(frozen=True)
class Precision:
    """One way to compute a step."""

    name: str
    bits: int
    """Of a weight."""
    why: str
    """What it is, for the manifest."""
    calibrated: bool = False
    """Whether ranges of activations are measured on clips first."""
    batches: bool = True
    """Whether clips may share a batch: False where scales span what is computed together."""
    languages: bool = False
    """Whether only steps with a language model are tried in it."""
    providers: tuple[str, ...] = ("cpu", "cuda")
    """ONNX Runtime providers (short names) that can run it."""


PRECISIONS = {
    p.name: p
    for p in (
        Precision(REFERENCE, 32, "as exported; weights stored in fewer bits where that is exact"),
        Precision("fp32-fused", 32, "attention and norms fused into ONNX Runtime's own operators"),
        Precision("fp16", 16, "half precision inside, float32 on every wire"),
        Precision("bf16", 16, "bfloat16 inside, float32 on every wire", providers=("cuda",)),
        Precision(
            "int8-qdq",
            8,
            "weights and activations in 8 bits, on scales fixed by calibration",
            calibrated=True,
        ),
        Precision(
            "int8-dynamic",
            8,
            "weights in 8 bits, activations scaled as they come: never batched",
            batches=False,
        ),
        Precision("int8-weight", 8, "weights in 8 bits by blocks, activations by rows"),
        Precision(
            "int4-weight", 4, "weights in 4 bits by blocks, activations by rows", languages=True
        ),
    )
}


@dataclass(frozen=True)
class Target:
    """Where a bundle is to run."""

    name: str
    provider: str
    """The ONNX Runtime provider whose times count."""
    precisions: tuple[str, ...]
    """What is tried beside the reference; where no time can be measured, the fastest first."""
    contrib: bool = True
    """Whether operators of ONNX Runtime's own may stand in a graph."""


TARGETS = {
    t.name: t
    for t in (
        Target("cpu", "cpu", ("fp32-fused", "int8-qdq", "int8-weight", "int4-weight")),
        Target("cuda", "cuda", ("fp16", "bf16", "int4-weight", "fp32-fused")),
        Target("tensorrt", "cuda", ("int8-qdq", "fp16", "bf16"), contrib=False),
        Target(
            "edge", "cpu", ("fp32-fused", "int8-qdq", "int8-dynamic", "int8-weight", "int4-weight")
        ),
    )
}


def target(name: str) -> Target:
    """The target called `name`; InvalidInputError if there is none."""
    if name not in TARGETS:
        raise InvalidInputError(f"the target {name!r} is unknown", f"one of {', '.join(TARGETS)}")
    return TARGETS[name]


def candidates(target: Target, step: StepSpec, allowed: tuple[str, ...] = ()) -> list[Precision]:
    """What is tried for a step beside the reference, in the target's order.

    Args:
        target: where the bundle is to run.
        step: which step.
        allowed: only these precisions; empty: all of the target's.
    """
    found = [PRECISIONS[n] for n in target.precisions if not allowed or n in allowed]
    return [p for p in found if not p.languages or step.name in LANGUAGE_STEPS]


def searched_steps(contract: Contract) -> list[StepSpec]:
    """The encoders: what costs time. Preprocessing, fusion and voting stay exact."""
    return [s for s in contract.steps if s.kind == "onnx" and s.outputs[0] in GROUPS.values()]
