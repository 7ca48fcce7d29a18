"""Builds what is missing of a bundle's plans, and puts each where a server looks for it.

A build takes minutes and may be killed at any of them; a bundle is exported ten times while one
of its encoders changes. So finished plans are kept in a cache under everything that decides what
they are, timings beside them, and nothing takes its final name before it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merkit import __version__
from merkit.bundle import Bundle, sha256_file, source_sha256
from merkit.contract import canonical
from merkit.cuda import Cuda
from merkit.errors import BundleCorruptError, InvalidInputError
from merkit.plans import Host, Profile, Sidecar, plan_path, read_sidecar
from merkit.trt import host_of, import_tensorrt
from merkit_export.tensorrt.builder import build_plan
from merkit_export.tensorrt.options import BuildOptions
from merkit_export.tensorrt.preflight import planned_steps

Say = Callable[[str], None]
CACHE_VARIABLE = "MERKIT_CACHE"


@dataclass(frozen=True)
class Built:
    """One plan in its place."""

    step: str
    path: Path
    sidecar: Sidecar
    from_cache: bool


def default_cache() -> Path:
    """Where plans and timings are kept: $MERKIT_CACHE, or merkit in the user's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen) / "tensorrt"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "merkit" / "tensorrt"


def build_plans(
    bundle: Bundle,
    profiles: Callable[[str], Sequence[Profile]],
    options: BuildOptions,
    *,
    out: Path | None = None,
    steps: Sequence[str] | None = None,
    cache: Path | None = None,
    say: Say = print,
) -> list[Built]:
    """Builds the plans of a bundle for the GPU at hand, or takes them from the cache.

    Args:
        bundle: an opened bundle.
        profiles: gives the shapes to build for, by step.
        options: choices.
        out: the model repository that gets the plans; default: the bundle's folder.
        steps: which steps; default: all but `plans.ON_HOST`.
        cache: where plans and timings are kept; default: `default_cache()`.
        say: receives progress, one line at a time.

    Raises:
        MissingExtraError: TensorRT is not installed.
        BackendError: no GPU, or TensorRT cannot use it.
        InvalidInputError: an unknown step, or `out` is no repository of this bundle's steps.
        MerkitError: TensorRT refuses a graph; plans built before it stay.
    """
    trt = import_tensorrt()
    cuda = Cuda()
    cuda.use()
    host = host_of(trt, cuda)
    root = bundle.root if out is None else out
    wanted = planned_steps(bundle) if steps is None else list(steps)
    for step in wanted:
        if not (root / step / "1").is_dir():
            raise InvalidInputError(
                f"there is no step {step!r} in {root}",
                f"{', '.join(planned_steps(bundle))}: the bundle's, or rendered from it",
                "correct --step, or render a repository there first",
            )
    store = _Store(cache or default_cache(), host)
    say(f"TensorRT {host.tensorrt}, compute capability {host.compute_capability}")
    say(f"engine cache: {store.root}")
    return [_one(bundle, root, s, profiles(s), options, trt, store, say) for s in wanted]


def _one(
    bundle: Bundle,
    root: Path,
    step: str,
    profiles: Sequence[Profile],
    options: BuildOptions,
    trt: Any,
    store: _Store,
    say: Say,
) -> Built:
    onnx = bundle.model_path(step)
    digest = str(bundle.manifest["step_digests"][step])
    key = store.key(digest, profiles, options)
    kept = store.find(key)
    if kept is None:
        say(f"{step}: building, {len(profiles)} profile{'s' if len(profiles) > 1 else ''}")
        started = time.monotonic()
        plan, timings = build_plan(trt, onnx, profiles, options, store.timings(), say)
        made = Sidecar(
            step=step,
            step_digest=digest,
            onnx_sha256=source_sha256(onnx),
            tensorrt=store.host.tensorrt,
            compute_capability=store.host.compute_capability,
            platform=store.host.platform,
            driver=store.host.driver,
            hardware=options.hardware,
            flags=options.flags,
            profiles=tuple(profiles),
            settings=options.settings,
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            plan_bytes=len(plan),
            seconds=round(time.monotonic() - started, 1),
        )
        store.put(key, plan, made, timings)
        sidecar = made
    else:
        sidecar = replace(kept, step=step, onnx_sha256=source_sha256(onnx))
    path = plan_path(root, step, sidecar.compute_capability)
    _install(store.plan(key), path, sidecar, root)
    took = "from the cache" if kept else f"{sidecar.seconds:.0f} s"
    say(f"{step}: {path.name}, {sidecar.plan_bytes / 1e6:.1f} MB, {took}")
    return Built(step, path, sidecar, kept is not None)


def _install(plan: Path, path: Path, sidecar: Sidecar, root: Path) -> None:
    """Puts plan, then sidecar in place: a plan beside the sidecar of another is refused.

    Half-written files stand in the repository's root, where neither Triton nor the check of the
    bundle's content minds them.
    """
    temporary = root / f".{path.parent.parent.name}.{path.name}.{os.getpid()}.tmp"
    try:
        shutil.copyfile(plan, temporary)
        temporary.replace(path)
        temporary.write_text(_text(sidecar), "utf-8")
        temporary.replace(path.with_suffix(".json"))
    finally:
        temporary.unlink(missing_ok=True)


class _Store:
    """The cache of plans, and of what TensorRT measured, on one host."""

    def __init__(self, root: Path, host: Host) -> None:
        self.root, self.host = root, host
        root.mkdir(parents=True, exist_ok=True)

    def key(self, digest: str, profiles: Sequence[Profile], options: BuildOptions) -> str:
        """A name for all that decides what a plan is."""
        said = {
            "digest": digest,
            "host": [self.host.tensorrt, self.host.compute_capability, self.host.platform],
            "profiles": [
                {name: [list(shape) for shape in shapes] for name, shapes in profile.items()}
                for profile in profiles
            ],
            "flags": list(options.flags),
            "hardware": options.hardware,
            "settings": options.settings,
            "merkit": __version__,  # what is handed to the parser may change
        }
        return hashlib.sha256(canonical(said)).hexdigest()[:32]

    def plan(self, key: str) -> Path:
        """Where the plan of that key is kept."""
        return self.root / f"{key}.plan"

    def find(self, key: str) -> Sidecar | None:
        """The sidecar of a plan that is kept whole, else None."""
        try:
            sidecar = read_sidecar(self.plan(key).with_suffix(".json"))
            return sidecar if sha256_file(self.plan(key)) == sidecar.plan_sha256 else None
        except (BundleCorruptError, OSError):
            return None

    def put(self, key: str, plan: bytes, sidecar: Sidecar, timings: bytes) -> None:
        """Keeps a plan; the sidecar comes last and makes it count."""
        _write(self.plan(key), plan)
        _write(self.plan(key).with_suffix(".json"), _text(sidecar).encode("utf-8"))
        _write(self._timings, timings)

    def timings(self) -> bytes:
        """The timing cache of earlier builds, or b""."""
        return self._timings.read_bytes() if self._timings.exists() else b""

    @property
    def _timings(self) -> Path:
        capability = self.host.compute_capability.replace(".", "")
        return self.root / f"timings-{self.host.tensorrt}-sm_{capability}.cache"


def _text(sidecar: Sidecar) -> str:
    return json.dumps(sidecar.to_json(), indent=1) + "\n"


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
