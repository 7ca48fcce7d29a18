"""`python -m merkit_bench.precision`: encoders in every precision against PyTorch, in one run.

On a shared machine only ratios within one run mean anything, so PyTorch (float32, bfloat16) and
every ONNX file take turns on the same inputs. Weights are random (of the recipe's shapes): speed
and size are real, answers are not, so the cosine to PyTorch stands where a metric would.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from merkit import Clip
from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import MANIFEST, Bundle, open_bundle, write_manifest
from merkit.contract import StepSpec
from merkit.entry import decoded_entry
from merkit.errors import MerkitError
from merkit.media.limits import Limits
from merkit.ragged import graph_feed
from merkit_bench.contest import contest
from merkit_bench.openvino import OpenVino
from merkit_bench.precision_page import write
from merkit_bench.summary import machine, percentiles
from merkit_export.build import build, take_files
from merkit_export.origin import Origin, read_origin
from merkit_export.precision.choose import Choice, Plan, choose
from merkit_export.precision.kinds import REFERENCE, searched_steps, target
from merkit_export.precision.variants import Maker, variant
from merkit_export.storage import file_bytes
from merkit_export.walk import Values, bundle_steps, walk

SAMPLE = Path("docs/media/sample.mp4")
GEMM_SIDE = 1536
GEMM_ROUNDS = 12
Run = Callable[[], NDArray[Any]]


def main() -> int:
    """Builds what is missing below --work, times it, writes precision.json and precision.md."""
    parser = argparse.ArgumentParser(prog="merkit_bench.precision", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("training/recipes/base.toml"))
    parser.add_argument(
        "--work", type=Path, default=Path("out/precision"), help="kept between runs"
    )
    parser.add_argument("--clip", type=Path, default=SAMPLE, help="with a .txt of words beside it")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--openvino", type=Path, help="a Python that has onnxruntime-openvino")
    parser.add_argument("--only", nargs="+", default=(), metavar="STEP", help="these encoders")
    parser.add_argument(
        "--smallest", action="store_true", help="the tiny recipe, two rounds: does it work at all?"
    )
    args = parser.parse_args()
    if args.smallest:
        args.recipe, args.rounds = Path("training/recipes/tiny.toml"), 2
    try:
        result = bench(args)
    except MerkitError as error:
        print(f"merkit_bench.precision: {error}", file=sys.stderr)
        return 2
    print(write(result, args.work))
    return 0


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Everything on checked arguments, as plain values."""
    import torch

    torch.set_num_threads(args.threads)
    run = _untrained(args.recipe, args.work / "run")
    reference = _reference(run, args.work / "reference")
    plan = Plan("cpu", threads=args.threads)
    choice = choose(reference, plan, args.work / "search", print)
    best = _best(reference, choice, args.work / "best")
    origin = read_origin(run)
    inputs = _inputs(reference, args.clip)
    steps = [s for s in searched_steps(reference.contract) if not args.only or s.name in args.only]
    peaks = {"fp32": gemm_peak(torch.float32), "bf16": gemm_peak(torch.bfloat16)}
    encoders = {}
    for step in steps:
        files = _files(reference, choice, step, plan, args.work / "search")
        encoders[step.name] = _encoder(step, origin, reference, files, inputs, args)
    words = args.clip.with_suffix(".txt")
    text = words.read_text("utf-8").strip() if words.exists() else None
    tallies = contest(("torch", "embedded"), [(args.clip, text)], args.rounds, best.root, run,
                      args.threads)  # fmt: skip
    whole = {name: percentiles(tally.total_ms) for name, tally in tallies.items()}
    about = {"recipe": args.recipe.stem, "rounds": args.rounds, "threads": args.threads}
    return {
        "about": {**about, **machine()},
        "gemm_gflops": peaks,
        "encoders": encoders,
        "chosen": dict(choice.outcome.chosen),
        "whole": whole,
    }


def _untrained(recipe: Path, run: Path) -> Path:
    from merkit_training.recipe import load_recipe
    from merkit_training.untrained import write_untrained_run

    if not (run / "tokenizer" / "tokenizer.json").exists():  # written last
        write_untrained_run(load_recipe(recipe), run)
    return run


def _reference(run: Path, out: Path) -> Bundle:
    return open_bundle(out) if (out / MANIFEST).exists() else build(run, out)


def _best(reference: Bundle, choice: Choice, out: Path) -> Bundle:
    """The bundle with every file that was chosen; what stays as it was is a link."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(reference.root, out, copy_function=os.link)
    copied = Bundle(out, reference.contract, reference.manifest)
    digests = dict(reference.manifest["step_digests"])
    take_files(copied, choice.files, digests)
    details = {**reference.manifest, "precision": choice.precision}
    for key in ("schema", "contract_id", "bundle_id", "step_digests", "content", "contract"):
        del details[key]
    return write_manifest(out, reference.contract, digests, details)


def _inputs(reference: Bundle, path: Path) -> Values:
    """What every encoder reads of the clip."""
    words = path.with_suffix(".txt")
    text = words.read_text("utf-8").strip() if words.exists() else "I did not expect that!"
    preprocessing = reference.contract.preprocessing
    entry = decoded_entry(Clip(path, text), preprocessing, Limits(), None, keep_frames=False)
    backend = EmbeddedBackend(reference, ["cpu"], 1)
    try:
        wanted = {n for step in searched_steps(reference.contract) for n in step.inputs}
        return walk(reference.contract, bundle_steps(backend), entry.tensors, sorted(wanted))
    finally:
        backend.close()


def _files(
    reference: Bundle, choice: Choice, step: StepSpec, plan: Plan, work: Path
) -> dict[str, Path]:
    """Every candidate that was made of a step, whether chosen or not; others, of runs before, may
    lie beside them."""
    maker = Maker(reference, target(plan.target), plan.calibration, lambda _: [], work, 1)
    tried = (t.precision for t in choice.outcome.trials if t.step == step.name and not t.refused)
    return {name: maker.path(step.name, name) for name in (REFERENCE, *tried)}


def _encoder(
    step: StepSpec,
    origin: Origin,
    reference: Bundle,
    files: Mapping[str, Path],
    inputs: Values,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Times one encoder everywhere; only its own weights are in memory."""
    given = {name: inputs[name] for name in step.inputs}
    runs, flops = _torch_runs(step, origin, given)
    backends = []
    for name, path in files.items():
        runs[name] = _onnx_run(reference, step, path, args.threads, given)
    if args.openvino:
        feed = graph_feed(step, [given])
        for hint in ("f32", "bf16"):
            worker = OpenVino(args.openvino, files[REFERENCE], feed, hint, args.threads)
            backends.append(worker)
            runs[f"openvino {hint}"] = worker
    try:
        want = runs["torch fp32"]()
        cosines = {name: _cosine(run(), want) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in tqdm(range(args.rounds + 1), desc=step.name):
            for name in runs if turn % 2 else reversed(runs):
                start = time.perf_counter()
                runs[name]()
                times[name].append(1e3 * (time.perf_counter() - start))
    finally:
        for worker in backends:
            worker.close()
    sizes = {name: file_bytes(path) for name, path in files.items()}
    return {
        "gflop": flops / 1e9,
        "contenders": {
            name: {**percentiles(ms[1:]), "cosine": cosines[name], "bytes": sizes.get(name)}
            for name, ms in times.items()
        },
    }


def _torch_runs(step: StepSpec, origin: Origin, given: Values) -> tuple[dict[str, Run], int]:
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode

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
    runs = {"torch fp32": run(module, tensors), "torch bf16": run(brain, halves)}
    return runs, int(counter.get_total_flops())


def _onnx_run(reference: Bundle, step: StepSpec, path: Path, threads: int, given: Values) -> Run:
    from merkit.backends.sessions import SHORT_NAMES, open_session
    from merkit.ort import import_onnxruntime

    bundle = variant(reference, {step.name: path})
    session = open_session(import_onnxruntime(), bundle, step, [SHORT_NAMES["cpu"]], threads)
    return lambda: np.asarray(session(given)[step.outputs[0]])


def gemm_peak(dtype: Any) -> float:
    """Best GFLOP/s of a large matrix product: what no graph of products can exceed."""
    import torch

    a, b = (torch.randn(GEMM_SIDE, GEMM_SIDE).to(dtype) for _ in range(2))
    best = np.inf
    for _ in range(GEMM_ROUNDS):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return float(2 * GEMM_SIDE**3 / best / 1e9)


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


if __name__ == "__main__":
    sys.exit(main())
