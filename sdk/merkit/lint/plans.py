"""TensorRT plans: what their sidecars say against what the config promises.

A plan is opaque without the GPU it was built for. The sidecar that `merkit-export tensorrt` writes
beside each plan holds the profiles it was built with and the ONNX file it came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import Options
from merkit.lint.repository import Model, Repository

BATCH = rule(
    "profile-batch",
    "error",
    "a max_batch_size above the largest batch of every profile of the plan",
    "tensorrt_backend/src/instance_state.cc; triton-inference-server/server issue 7056",
)
SHAPE = rule(
    "profile-shape",
    "error",
    "dims that no profile of the plan allows",
    "tensorrt_backend/src/instance_state.cc, ValidateIO",
)
INDEX = rule(
    "profile-index",
    "error",
    "an instance group that asks for a profile the plan does not have",
    "Triton user guide, Model Configuration, TensorRT Optimization Profile",
)
STALE = rule(
    "plan-stale",
    "warning",
    "a plan that was built from another model.onnx than the one beside it",
    "the plan's sidecar holds the sha256 of its source",
)
NO_SIDECAR = rule(
    "plan-no-sidecar",
    "advice",
    "a plan without a sidecar: its profiles cannot be compared with the config",
    "merkit-export tensorrt writes one beside each plan",
)


def check(repository: Repository, _options: Options, _skip: Skip) -> Iterator[Finding]:
    """Every plan that a TensorRT model may load."""
    for model in repository.runners():
        if model.backend != "tensorrt":
            continue
        for version in model.served:
            for name in dict.fromkeys(model.model_files()):
                path = model.path / str(version) / name
                if path.is_file():
                    yield from _plan(model, path)


def _plan(model: Model, path: Path) -> Iterator[Finding]:
    place = f"{path.parent.name}/{path.name}"
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text("utf-8"))
        profiles = [dict(profile) for profile in sidecar["profiles"]]
    except (OSError, ValueError, KeyError, TypeError):
        yield NO_SIDECAR.at(
            model.name, place, "no sidecar beside it", "build it with merkit-export"
        )
        return
    source, onnx = sidecar.get("onnx_sha256"), path.parent / "model.onnx"
    if source and onnx.is_file() and hashlib.sha256(onnx.read_bytes()).hexdigest() != source:
        found = "model.onnx has changed since"
        yield STALE.at(model.name, place, found, "run merkit-export tensorrt again")
    most = model.config.max_batch_size
    if most and profiles and not any(_batch(p) >= most for p in profiles):
        found = f"max_batch_size {most}, and the profiles end at {max(map(_batch, profiles))}"
        yield BATCH.at(model.name, place, found, "lower it, or build the plan for larger batches")
    for group in model.config.instance_group:
        for index in group.profile:
            if index.isdigit() and int(index) >= len(profiles):
                found = f"profile {index} of {len(profiles)}"
                yield INDEX.at(model.name, "instance_group", found, "name one that the plan has")
    for tensor in model.config.input:
        if profiles and not any(_fits(p, tensor, bool(most)) for p in profiles):
            found = f"dims {list(tensor.dims)} lie outside every profile"
            yield SHAPE.at(model.name, f"input {tensor.name}", found, "let dims and profiles agree")


def _ranges(profile: Mapping[str, Any], name: str) -> tuple[list[int], list[int]] | None:
    """Smallest and largest shape of a tensor in a profile."""
    entry = profile.get(name)
    if not isinstance(entry, Mapping) or not entry.get("min") or not entry.get("max"):
        return None
    return list(entry["min"]), list(entry["max"])


def _batch(profile: Mapping[str, Any]) -> int:
    """The largest batch: the least of the first dimensions of tensors that have one."""
    ranges = [r for name in profile if (r := _ranges(profile, name)) and len(r[1]) > 1]
    return min((most[0] for _, most in ranges), default=0)


def _fits(profile: Mapping[str, Any], tensor: Any, batched: bool) -> bool:
    ranges = _ranges(profile, tensor.name)
    if ranges is None or tensor.allow_ragged_batch:
        return True
    least, most = (bounds[1:] if batched else bounds for bounds in ranges)
    return len(tensor.dims) == len(most) and all(
        dim == -1 or low <= dim <= high
        for dim, low, high in zip(tensor.dims, least, most, strict=True)
    )
