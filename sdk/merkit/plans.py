"""TensorRT plans beside a bundle's models: their names, and what each says about where it may run.

A plan is tied to a TensorRT version, a kind of GPU and an operating system, and TensorRT tells so
only by failing to load it, in words that name none of the three. So each plan has a sidecar, a
JSON file beside it. The exporter writes both, a server's config is rendered from them, and the
embedded runtime reads the sidecar before it touches the plan. Both are deployment files: they
differ per host and are never hashed (design 2).

    face_encoder/1/model.onnx          content
    face_encoder/1/model.sm_90.plan    for compute capability 9.0
    face_encoder/1/model.sm_90.json    its sidecar
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from merkit.errors import BundleCorruptError, InvalidInputError

Hardware = Literal["none", "same_compute_capability", "ampere_plus"]
HARDWARE: tuple[Hardware, ...] = ("none", "same_compute_capability", "ampere_plus")
Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Smallest, usual and largest shape of each input that a plan takes."""

VERSION_COMPATIBLE, STRIP_PLAN = "VERSION_COMPATIBLE", "STRIP_PLAN"
AMPERE = (8, 0)
ON_HOST = ("separate", "recognize", "punctuate", "preprocess", "voting")
"""Steps that get no plan: a little arithmetic on what comes from or goes back to the host, in
types (uint8) and open sizes that TensorRT takes at a network's edge at best; and the chain that
hears: recognition finds out as it runs how many tokens it makes room for, and separation's graph
compares booleans."""
REBUILD = "run merkit-export tensorrt on this host"
_PLAN = re.compile(r"model\.sm_(\d+)(\d)\.plan")


@dataclass(frozen=True)
class Host:
    """What a plan meets where it is loaded."""

    tensorrt: str
    """Version, as `tensorrt.__version__` gives it."""
    compute_capability: str
    """Of the GPU: `9.0`."""
    platform: str
    """Operating system and machine: `linux-x86_64`."""
    driver: str = ""
    """Newest CUDA version that the driver runs: `13.0`."""


@dataclass(frozen=True)
class Sidecar:
    """What was built, from what, where and how."""

    step: str
    step_digest: str
    """Of the graph and weights, as the manifest has it: another export, another plan."""
    onnx_sha256: str
    """`bundle.source_sha256` of the model it was built from."""
    tensorrt: str
    compute_capability: str
    platform: str
    driver: str
    hardware: Hardware
    """GPUs beside the one it was built on: none, of the same compute capability, Ampere and up."""
    flags: tuple[str, ...]
    """Builder flags by TensorRT's names, in order."""
    profiles: tuple[Profile, ...]
    settings: Mapping[str, int]
    """Builder settings that are numbers: optimisation level, workspace in MiB."""
    plan_sha256: str
    plan_bytes: int
    seconds: float
    """What building took; 0 where the engine cache had it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def refusal(self, host: Host, digest: str) -> str | None:
        """Why this plan cannot run on `host` for a step of that digest; None if it can."""
        if self.step_digest != digest:
            return f"its plan was built from other weights ({self.step_digest[:8]}…)"
        if self.platform != host.platform:
            return f"its plan was built for {self.platform}, and this is {host.platform}"
        return self._other_version(host) or self._other_gpu(host)

    def _other_version(self, host: Host) -> str | None:
        built, here = _numbers(self.tensorrt), _numbers(host.tensorrt)
        if VERSION_COMPATIBLE in self.flags:
            fits, asked = built[:1] == here[:1] and built <= here, "the same major or newer"
        else:
            fits, asked = built == here, "the very same"
        if fits:
            return None
        return (
            f"its plan was built by TensorRT {self.tensorrt}, and this is {host.tensorrt}"
            f" ({asked} is needed)"
        )

    def _other_gpu(self, host: Host) -> str | None:
        # a plan without hardware compatibility may run on its twin, with a warning of TensorRT's
        if self.compute_capability == host.compute_capability:
            return None
        if self.hardware == "ampere_plus" and _numbers(host.compute_capability) >= AMPERE:
            return None
        return (
            f"its plan was built for compute capability {self.compute_capability}, and this GPU "
            f"has {host.compute_capability}"
        )


def plan_path(root: Path, step: str, compute_capability: str) -> Path:
    """Where the plan of `step` for GPUs of that compute capability lies below `root`."""
    return root / step / "1" / f"model.sm_{compute_capability.replace('.', '')}.plan"


def plans_of(root: Path, step: str) -> dict[str, Sidecar]:
    """The plans of a step that lie below `root`, by compute capability.

    Raises:
        BundleCorruptError: a sidecar is missing or malformed.
    """
    found = {}
    for path in sorted((root / step / "1").glob("model.sm_*.plan")):
        if match := _PLAN.fullmatch(path.name):
            found[f"{match[1]}.{match[2]}"] = read_sidecar(path.with_suffix(".json"))
    return found


def read_sidecar(path: Path) -> Sidecar:
    """Reads a sidecar; BundleCorruptError says what is wrong with it."""
    try:
        plain = json.loads(path.read_text("utf-8"))
        if set(plain) != {f.name for f in fields(Sidecar)}:
            raise ValueError(f"it has the keys {sorted(plain)}")
        return Sidecar(
            **{
                **plain,
                "flags": tuple(map(str, plain["flags"])),
                "profiles": tuple(map(_profile, plain["profiles"])),
                "settings": {str(k): int(v) for k, v in plain["settings"].items()},
            }
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleCorruptError(
            f"{path} cannot be read ({error})", "what merkit-export tensorrt writes", REBUILD
        ) from None


def triton_fields(root: Path, step: str) -> dict[str, Any]:
    """What a config.pbtxt says of a step's plans: file names, and profiles for its instances.

    Returns:
        `default_model_filename` and `cc_model_filenames` as the config has them, and `profiles`:
        the names that each of the step's instance groups lists as its `profile`.

    Raises:
        InvalidInputError: there is no plan, or one without weights, which Triton cannot refit.
        BundleCorruptError: a sidecar is missing or malformed.
    """
    plans = plans_of(root, step)
    if not plans:
        raise InvalidInputError(
            f"the step {step!r} has no TensorRT plan in {root / step / '1'}",
            "a plan built on such a GPU as will serve it",
            "run merkit-export tensorrt there, or choose the onnxruntime flavour for this step",
        )
    if stripped := [cc for cc, plan in plans.items() if STRIP_PLAN in plan.flags]:
        raise InvalidInputError(
            f"the plan of {step!r} for compute capability {stripped[0]} holds no weights",
            "a whole plan: Triton does not refit what it loads",
            "build it again without --strip-plan",
        )
    files = {cc: plan_path(root, step, cc).name for cc in plans}
    widest = min(plans, key=lambda cc: plans[cc].hardware != "ampere_plus")
    counts = {len(plan.profiles) for plan in plans.values()}
    return {
        "default_model_filename": files[widest],
        "cc_model_filenames": files,
        "profiles": [str(index) for index in range(min(counts))],
    }


def _profile(plain: Mapping[str, Any]) -> Profile:
    profile = {}
    for name, shapes in plain.items():
        smallest, usual, largest = (tuple(map(int, shape)) for shape in shapes)
        profile[str(name)] = (smallest, usual, largest)
    return profile


def admits(profile: Profile, shapes: Mapping[str, Shape]) -> bool:
    """Whether a profile takes inputs of these shapes; inputs that no plan reads are not given."""
    return all(
        len(shape) == len(profile[name][0])
        and all(a <= n <= b for a, _, b, n in zip(*profile[name], shape, strict=True))
        for name, shape in shapes.items()
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
