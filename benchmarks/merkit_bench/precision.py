"""`python -m merkit_bench.precision`: encoders in every precision against PyTorch, in one run.

On a shared machine only ratios within one run mean anything, so PyTorch (float32, bfloat16) and
every ONNX file take turns on the same inputs (`precision_times`). Weights are random (of the
recipe's shapes): speed and size are real, answers are not, so the cosine to PyTorch stands where a
metric would. Then the whole pipeline, decoding included, with each encoder as it was found fastest.

What is made and measured is kept below --work, encoder by encoder: after an interruption the same
command goes on. The words are given, so the chain that hears them is left out on both sides.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from merkit import Clip
from merkit.bundle import Bundle, sha256_file
from merkit.contract import StepSpec
from merkit.entry import decoded_entry
from merkit.errors import InvalidInputError, MerkitError
from merkit.media.limits import Limits
from merkit_bench.contest import contest
from merkit_bench.precision_page import write
from merkit_bench.precision_parts import (
    Candidate,
    Workshop,
    best,
    close,
    held,
    kept,
    reference,
    untrained,
)
from merkit_bench.summary import machine, percentiles
from merkit_export.origin import read_origin
from merkit_export.precision.kinds import REFERENCE, searched_steps
from merkit_export.precision.material import same_corpus

SAMPLE = Path("docs/media/sample.mp4")
PACKAGES = ("torch", "onnxruntime")


def main(argv: list[str] | None = None) -> int:
    """Makes what is missing below --work, times it, writes precision.json and precision.md."""
    parser = argparse.ArgumentParser(prog="merkit_bench.precision", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("training/recipes/base.toml"))
    parser.add_argument(
        "--work", type=Path, default=Path("out/precision"), help="kept between runs"
    )
    parser.add_argument(
        "--corpus", type=Path,
        help="its train clips calibrate, its val clips judge; default: made-up clips do, which are "
        "far from real ones",
    )  # fmt: skip
    parser.add_argument("--clip", type=Path, default=SAMPLE, help="with a .txt of words beside it")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--openvino", type=Path, help="a Python that has onnxruntime-openvino")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="STEP",
        help="these encoders; others are on the page if they were measured before, and the whole "
        "pipeline waits until all are",
    )  # fmt: skip
    parser.add_argument(
        "--make", action="store_true", help="only make what is to be timed, on busy cores, say"
    )
    parser.add_argument("--again", action="store_true", help="time anew what was timed before")
    parser.add_argument(
        "--smallest", action="store_true", help="the tiny recipe, two rounds: does it work at all?"
    )
    args = parser.parse_args(argv)
    if args.smallest:
        args.recipe, args.rounds = Path("training/recipes/tiny.toml"), 2
    try:
        result = bench(args)
    except MerkitError as error:
        print(f"merkit_bench.precision: {error}", file=sys.stderr)
        return 2
    if result is not None:
        print(write(result, args.work))
    return 0


def bench(args: argparse.Namespace) -> dict[str, Any] | None:
    """Everything on checked arguments, as plain values; None where nothing was to be timed."""
    say = Clock()
    if args.corpus is not None:
        same_corpus(args.corpus, None)
    say("weights")
    run = untrained(args.recipe, args.work / "run")
    say("graphs in float32")
    bundle = reference(run, args.work / "reference", say)
    steps = searched_steps(bundle.contract)
    if unknown := set(args.only) - {step.name for step in steps}:
        raise InvalidInputError(
            f"--only {' '.join(unknown)}", f"some of {', '.join(s.name for s in steps)}"
        )
    encoders = {}
    for step in steps:
        found = _encoder(step, run, bundle, args, say)
        if found is not None:
            encoders[step.name] = found
    if args.make or not encoders:
        return None
    chosen = {name: fastest(found) for name, found in encoders.items()}
    whole = {}
    if len(encoders) == len(steps):
        whole = _whole(run, bundle, chosen, args, say)
    about = {
        "recipe": args.recipe.stem,
        "corpus": args.corpus and args.corpus.name,
        "rounds": args.rounds,
        "threads": args.threads,
    }
    about |= {name: version(name) for name in PACKAGES}
    return {
        "about": {**about, **machine()},
        "encoders": encoders,
        "chosen": chosen,
        "whole": whole,
    }


def fastest(found: dict[str, Any]) -> str:
    """Of an encoder's candidates that pass the gate of random weights, on the clip that is timed,
    too, the fastest."""
    passed: list[str] = [
        name
        for name, made in found["candidates"].items()
        if made["passes"] and close(name, found["contenders"][name]["cosine"])
    ]
    return min(passed, key=lambda name: float(found["contenders"][name]["p50"]))


def _encoder(
    step: StepSpec, run: Path, bundle: Bundle, args: argparse.Namespace, say: Clock
) -> dict[str, Any] | None:
    """An encoder's candidates and their times; None if it is not asked for and was not timed."""
    from merkit_bench.precision_times import Conditions, time_encoder

    asked = not args.only or step.name in args.only
    workshop = Workshop(bundle, args.work / "candidates", args.threads, args.corpus)
    made, timed = (args.work / "measured" / f"{step.name}.{kind}.json" for kind in ("made", "time"))
    facts = workshop.facts(step)
    conditions = Conditions(args.rounds, args.threads, args.openvino)
    of_times = {
        **facts,
        **_conditions(args),
        "openvino": str(args.openvino) if args.openvino else None,
    }
    try:
        if not asked:
            were, took = held(made, facts), held(timed, of_times)
            return None if were is None or took is None else {**took, "candidates": were}
        found = kept(made, facts, lambda: _plain(workshop.candidates(step, say)), say)
        if args.make:
            return None
        if args.again:
            timed.unlink(missing_ok=True)
        files = {n: workshop.path(step, n) for n, c in found.items() if not c["refused"]}
        inputs = _inputs(workshop, step, args.clip)
    finally:
        workshop.close()
    times = kept(
        timed,
        of_times,
        lambda: time_encoder(step, read_origin(run), bundle, files, inputs, conditions),
        say,
    )
    return {**times, "candidates": found}


def _plain(made: dict[str, Candidate]) -> dict[str, Any]:
    return {name: {**vars(c), "passes": c.passes} for name, c in made.items()}


def _conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What times depend on beside the files."""
    facts = {"rounds": args.rounds, "threads": args.threads, "clip": sha256_file(args.clip)}
    return {**facts, **machine(), **{name: version(name) for name in PACKAGES}}


def _words(clip: Path) -> str:
    words = clip.with_suffix(".txt")
    return words.read_text("utf-8").strip() if words.exists() else "I did not expect that!"


def _inputs(workshop: Workshop, step: StepSpec, path: Path) -> dict[str, Any]:
    """What an encoder reads of the clip."""
    judge = workshop.judge
    clip = Clip(path, _words(path))
    entry = decoded_entry(clip, judge.contract.preprocessing, Limits(), None, keep_frames=False)
    return judge.inputs(step.name, dict(entry.tensors))


def _whole(
    run: Path, bundle: Bundle, chosen: dict[str, str], args: argparse.Namespace, say: Clock
) -> dict[str, Any]:
    """Clip to answer: PyTorch, and the bundle with each encoder as chosen."""
    workshop = Workshop(bundle, args.work / "candidates", args.threads, args.corpus)
    files = {
        name: workshop.path(bundle.contract.step(name), precision)
        for name, precision in chosen.items()
        if precision != REFERENCE
    }
    workshop.close()
    path = args.work / "measured" / "whole.json"
    if args.again:
        path.unlink(missing_ok=True)

    def measure() -> dict[str, Any]:
        say("the bundle as chosen")
        made = best(bundle, files, {s: p for s, p in chosen.items() if s in files},
                    args.work / "best")  # fmt: skip
        say("the whole pipeline, in turns")
        tallies = contest(("torch", "embedded"), [(args.clip, _words(args.clip))], args.rounds,
                          made.root, run, args.threads)  # fmt: skip
        return {
            name: {**percentiles(tally.total_ms), "peak_mb": tally.peak_mb}
            for name, tally in tallies.items()
        }

    facts = {"chosen": chosen, "graphs": dict(bundle.manifest["step_digests"]), **_conditions(args)}
    found: dict[str, Any] = kept(path, facts, measure, say)
    return found


class Clock:
    """Says what is being done, and since when."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __call__(self, what: str) -> None:
        print(f"[{time.monotonic() - self._begun:6.0f} s] {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
