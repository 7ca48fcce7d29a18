"""TensorRT plans: what their sidecars say against what the config promises.

A plan is opaque without the GPU it was built for. The sidecar that `merkit-export tensorrt` writes
beside each plan holds the profiles it was built with and the ONNX file it came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merkit.bundle import source_sha256
from merkit.errors import BundleCorruptError
from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import Options
from merkit.lint.repository import Model, Repository, enum_name
from merkit.plans import STRIP_PLAN, Profile, Sidecar, read_sidecar

COUNTED = {
    "BATCH_ELEMENT_COUNT": 0,
    "BATCH_ACCUMULATED_ELEMENT_COUNT": 0,
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": 1,
    "BATCH_ITEM_SHAPE": 0,
}
"""Kinds of batch_input with a value for each request, and how many values they hold beside."""

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
    "tensorrt_backend/src/instance_state.cc",
)
INDEX = rule(
    "profile-index",
    "error",
    "an instance group that asks for a profile the plan does not have",
    "Triton user guide, Model Configuration, TensorRT Optimization Profile",
)
STRIPPED = rule(
    "plan-stripped",
    "error",
    "a plan without its weights: Triton does not refit what it loads",
    "TensorRT developer guide, Weight-Stripped Engines",
)
STALE = rule(
    "plan-stale",
    "warning",
    "a plan that was built from another model.onnx or model.onnx.data than lies beside it",
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
        sidecar = read_sidecar(path.with_suffix(".json"))
    except BundleCorruptError:
        found, action = "no sidecar tells what it takes", "build it with merkit-export tensorrt"
        yield NO_SIDECAR.at(model.name, place, found, action)
        return
    source = path.parent / "model.onnx"
    if source.is_file() and source_sha256(source) != sidecar.onnx_sha256:
        found = "its model, or the weights beside that, have changed since"
        yield STALE.at(model.name, place, found, "run merkit-export tensorrt again")
    if STRIP_PLAN in sidecar.flags:
        yield STRIPPED.at(model.name, place, "it holds no weights", "build it without --strip-plan")
    yield from _profiles(model, place, sidecar)


def _profiles(model: Model, place: str, sidecar: Sidecar) -> Iterator[Finding]:
    most = model.config.max_batch_size
    batches = [size for p in sidecar.profiles if (size := _batch(model, p)) is not None]
    if most and batches and max(batches) < most:
        found = f"max_batch_size {most}, and the profiles end at {max(batches)}"
        yield BATCH.at(model.name, place, found, "lower it, or build the plan for larger batches")
    for group in model.config.instance_group:
        for index in group.profile:
            if index.isdigit() and int(index) >= len(sidecar.profiles):
                found = f"profile {index} of {len(sidecar.profiles)}"
                yield INDEX.at(model.name, "instance_group", found, "name one that the plan has")
    for tensor in model.config.input:
        if sidecar.profiles and not any(_fits(p, tensor, bool(most)) for p in sidecar.profiles):
            found = f"dims {list(tensor.dims)} lie outside every profile"
            yield SHAPE.at(model.name, f"input {tensor.name}", found, "let dims and profiles agree")


def _batch(model: Model, profile: Profile) -> int | None:
    """The largest batch that a profile takes; None where no tensor of it tells."""
    largest = []
    for tensor in model.config.input:
        if tensor.name in profile and not tensor.allow_ragged_batch:
            largest.append(profile[tensor.name][2][0])
    for entry in model.config.batch_input:
        beside = COUNTED.get(enum_name(entry, "kind"))
        for name in entry.target_name if beside is not None else ():
            if name in profile:
                largest.append(profile[name][2][0] - (beside or 0))
    return min(largest, default=None)


def _fits(profile: Profile, tensor: Any, batched: bool) -> bool:
    if tensor.name not in profile or tensor.allow_ragged_batch:
        return True
    least, _, most = profile[tensor.name]
    if batched:
        least, most = least[1:], most[1:]
    return len(tensor.dims) == len(most) and all(
        dim == -1 or low <= dim <= high
        for dim, low, high in zip(tensor.dims, least, most, strict=True)
    )
