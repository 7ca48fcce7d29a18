"""One ONNX graph becomes one TensorRT plan: every call of the exporter into `tensorrt` is here.

No plan can be built without a GPU, and most who change this file have none. So it is short, does
nothing but call, and its tests hold each name and each argument against the real bindings' own.
Networks are strongly typed (TensorRT 11 knows no others): precision is what the graph says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from merkit.errors import BackendError, MerkitError
from merkit.plans import STRIP_PLAN, Profile
from merkit.trt import make_log
from merkit_export.tensorrt.options import TF32, BuildOptions
from merkit_export.tensorrt.restate import restate

Say = Callable[[str], None]
MIB = 1 << 20
HOPE = "run merkit-export preflight, which names what TensorRT does not take"


def build_plan(
    trt: Any,
    path: Path,
    profiles: Sequence[Profile],
    options: BuildOptions,
    timings: bytes,
    say: Say = print,
) -> tuple[bytes, bytes]:
    """Builds the plan of a graph for the GPU at hand. Takes seconds to an hour.

    Args:
        trt: the module `tensorrt`.
        path: the step's `model.onnx`.
        profiles: the shapes to build for, narrow before wide.
        options: choices.
        timings: a timing cache from earlier builds on this kind of GPU, or b"".
        say: receives progress, one line at a time.

    Returns:
        The serialised plan, and the timing cache with what was measured.

    Raises:
        MerkitError: TensorRT refuses the graph (the node is named) or cannot build it.
        BackendError: there is no GPU that TensorRT can use.
        KeyboardInterrupt: Ctrl-C stops a build at its next step.
    """
    log = make_log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError:  # what the bindings make of a null pointer
        raise BackendError(
            f"TensorRT cannot start a builder ({log.last or 'it does not say why'})",
            "a GPU and a driver that this TensorRT supports",
            "run nvidia-smi, and compare the driver with TensorRT's release notes",
        ) from None
    network = builder.create_network(0)
    _parse(trt, network, log, path, options)
    config = builder.create_builder_config()
    _configure(trt, config, options)
    for profile in profiles:
        made = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            name = network.get_input(index).name
            made.set_shape(name, *profile[name])
        if config.add_optimization_profile(made) < 0:
            raise _failed(path, f"refuses the profile {profile}", log)
    cache = config.create_timing_cache(timings)
    config.set_timing_cache(cache, True)
    monitor = _monitor(trt, say)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if plan is None:
        raise _failed(path, "builds no plan", log)
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def _parse(trt: Any, network: Any, log: Any, path: Path, options: BuildOptions) -> None:
    """Reads the restated graph into the network; weights beside the file are found by its path."""
    parser = trt.OnnxParser(network, log)
    model = onnx.load(path, load_external_data=False)
    folded = restate(model)
    if not parser.parse(model.SerializeToString(), str(path)):
        raise MerkitError(
            f"TensorRT's parser refuses {path}: {_parser_errors(parser) or log.last}",
            "operators, types and shapes that it takes",
            HOPE,
        )
    if folded and options.strip_plan:
        raise MerkitError(
            f"{path} stores weights as int8 steps, which TensorRT's refitter cannot read back",
            f"plain weights for {STRIP_PLAN}",
            "build the bundle with --target tensorrt, or leave out --strip-plan",
        )


def _parser_errors(parser: Any) -> str:
    """What the parser says, each error with its node; the first three."""
    errors = [parser.get_error(index) for index in range(min(parser.num_errors, 3))]
    return "; ".join(f"{e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors)


def _configure(trt: Any, config: Any, options: BuildOptions) -> None:
    config.builder_optimization_level = options.level
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    if not options.tf32:
        config.clear_flag(getattr(trt.BuilderFlag, TF32))  # set by default, and not float32
    for flag in options.flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    level = getattr(trt.HardwareCompatibilityLevel, options.hardware.upper())
    config.hardware_compatibility_level = level


def _monitor(trt: Any, say: Say) -> Any:
    """Tells how far a build is, and stops it after Ctrl-C."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._top: str | None = None
            self._steps, self._told = 1, 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._top, self._steps, self._told = phase_name, max(num_steps, 1), 0

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:  # an exception must not travel through TensorRT
                done = 10 * (step + 1) // self._steps
                if phase_name == self._top and done > self._told:
                    self._told = done
                    say(f"    {phase_name}: {10 * done} %")
            except KeyboardInterrupt:
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._top:
                self._top = None

    return Monitor()


def _failed(path: Path, what: str, log: Any) -> MerkitError:
    return MerkitError(
        f"TensorRT {what} for {path} ({log.last or 'it does not say why'})",
        "a graph and profiles that fit this GPU",
        f"{HOPE}; if memory ran out, lower --max-batch or set --workspace",
    )
