"""One encoder against the clock: PyTorch, every candidate and OpenVINO in turns on the same inputs.

On a shared machine only ratios within one run mean anything. So all contenders of an encoder are
open at once, each takes one turn a round, and the machine's own peak is measured in that very
minute. Only this encoder's weights are in memory, some five times: 12 GB for the base recipe's
joint encoder. OpenVINO's turns come after that, with PyTorch alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from merkit.backends.sessions import SHORT_NAMES, Session, open_session
from merkit.bundle import Bundle
from merkit.contract import StepSpec
from merkit.errors import MerkitError
from merkit.ort import import_onnxruntime
from merkit.ragged import graph_feed
from merkit_bench.openvino import OpenVino
from merkit_bench.summary import percentiles
from merkit_export.origin import Origin
from merkit_export.precision.kinds import REFERENCE
from merkit_export.precision.variants import variant
from merkit_export.walk import Values

GEMM_SIDE = 1536
GEMM_ROUNDS = 12
EXACT = 0.9999
"""Cosine to PyTorch that the exported graph must reach, or it is another encoder."""
BASE = "torch fp32"
Run = Callable[[], NDArray[Any]]
Row = dict[str, float]
"""p50, p95 and p99, the `base` p50 of PyTorch in the same turns, and the cosine to it."""


@dataclass(frozen=True)
class Conditions:
    """How everything is timed."""

    rounds: int
    threads: int
    openvino: Path | None = None
    """A Python that has onnxruntime-openvino."""


def time_encoder(
    step: StepSpec,
    origin: Origin,
    reference: Bundle,
    files: Mapping[str, Path],
    given: Values,
    conditions: Conditions,
) -> dict[str, Any]:
    """Times one encoder everywhere.

    Args:
        step: which.
        origin: the run, with its torch module.
        reference: the bundle whose contract the files implement.
        files: by precision, the reference among them.
        given: the step's inputs.
        conditions: rounds, threads.

    Raises:
        MerkitError: the exported graph does not compute what the module does.
    """
    torch.set_num_threads(conditions.threads)
    peaks = {"fp32": gemm_peak(torch.float32), "bf16": gemm_peak(torch.bfloat16)}
    runs, flops = _torch_runs(step, origin, given)
    found = _against_sessions(step, runs, reference, files, given, conditions)
    if not found[REFERENCE]["cosine"] >= EXACT:
        raise MerkitError(
            f"the exported {step.name!r} has cosine {found[REFERENCE]['cosine']:.5f} to PyTorch",
            f"at least {EXACT}",
            "remove the work folder; it may hold graphs of other code",
        )
    if conditions.openvino is not None:
        feed = graph_feed(step, [given])
        for hint in ("f32", "bf16"):
            found |= _against_openvino(step, runs, files[REFERENCE], feed, hint, conditions)
    return {"gflop": flops / 1e9, "gemm_gflops": peaks, "contenders": found}


def _against_sessions(
    step: StepSpec,
    runs: Mapping[str, Run],
    reference: Bundle,
    files: Mapping[str, Path],
    given: Values,
    conditions: Conditions,
) -> dict[str, Row]:
    """PyTorch and every candidate in turns."""
    sessions = {n: _session(reference, step, p, conditions.threads) for n, p in files.items()}
    try:
        own = {n: _onnx_run(s, step.outputs[0], given) for n, s in sessions.items()}
        return _turns(step.name, {**runs, **own}, conditions.rounds)
    finally:
        for session in sessions.values():
            session.close()


def _against_openvino(
    step: StepSpec,
    runs: Mapping[str, Run],
    path: Path,
    feed: Values,
    hint: str,
    conditions: Conditions,
) -> dict[str, Row]:
    """PyTorch again and OpenVINO in turns, once the candidates' memory is free; nothing where
    OpenVINO cannot run the graph."""
    assert conditions.openvino is not None
    name = f"openvino {hint}"
    try:
        worker = OpenVino(conditions.openvino, path, feed, hint, conditions.threads)
    except MerkitError as error:
        print(f"{step.name}: no {name}: {error}")
        return {}
    try:
        made = _turns(f"{step.name}, {name}", {BASE: runs[BASE], name: worker}, conditions.rounds)
    finally:
        worker.close()
    return {name: made[name]}


def gemm_peak(dtype: torch.dtype) -> float:
    """Best GFLOP/s of a large matrix product: what no graph of products can exceed."""
    a, b = (torch.randn(GEMM_SIDE, GEMM_SIDE).to(dtype) for _ in range(2))
    best = np.inf
    for _ in range(GEMM_ROUNDS):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return float(2 * GEMM_SIDE**3 / best / 1e9)


def _turns(title: str, runs: Mapping[str, Run], rounds: int) -> dict[str, Row]:
    """Milliseconds of every round and PyTorch's median among them; each second round in the
    opposite order, the first warms up. And the cosine to PyTorch."""
    want, order = runs[BASE](), list(runs)
    cosines = {name: _cosine(run(), want) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in tqdm(range(rounds + 1), desc=f"{title}, in turns"):
        for name in order if turn % 2 else reversed(order):
            start = time.perf_counter()
            runs[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    base = percentiles(times[BASE][1:])["p50"]
    return {
        name: {**percentiles(ms[1:]), "base": base, "cosine": cosines[name]}
        for name, ms in times.items()
    }


def _torch_runs(step: StepSpec, origin: Origin, given: Values) -> tuple[dict[str, Run], int]:
    module = origin.modules[step.name].eval()
    brain = copy.deepcopy(module).to(torch.bfloat16)
    tensors = [torch.from_numpy(np.array(given[name])) for name in step.inputs]
    halves = [t.to(torch.bfloat16) if t.is_floating_point() else t for t in tensors]

    def run(module: torch.nn.Module, arguments: list[torch.Tensor]) -> Run:
        def once() -> NDArray[Any]:
            # autocast lets products of mixed types meet; in float32 it is off
            with torch.inference_mode(), torch.autocast("cpu", enabled=module is brain):
                made = module(*arguments)
            first = made[0] if isinstance(made, tuple) else made
            return np.asarray(first.float().numpy())

        return once

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*tensors)
    runs = {BASE: run(module, tensors), "torch bf16": run(brain, halves)}
    return runs, int(counter.get_total_flops())


def _session(reference: Bundle, step: StepSpec, path: Path, threads: int) -> Session:
    bundle = variant(reference, {step.name: path})
    return open_session(import_onnxruntime(), bundle, step, [SHORT_NAMES["cpu"]], threads)


def _onnx_run(session: Session, output: str, given: Values) -> Run:
    return lambda: np.asarray(session(given)[output])


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
