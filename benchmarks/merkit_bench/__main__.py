"""`python -m merkit_bench`: PyTorch eager, embedded ONNX Runtime and Triton, side by side."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from itertools import islice
from pathlib import Path

from merkit.errors import MerkitError
from merkit_bench.agreement import read_clips
from merkit_bench.contest import contest
from merkit_bench.summary import markdown, summarise, write

CONTENDERS = ("torch", "embedded", "triton")
SAMPLE = Path("docs/media/sample.mp4")


def main() -> int:
    """Runs the contest and writes latency.json, latency.md and latency.png."""
    parser = argparse.ArgumentParser(prog="merkit_bench", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("triton_repo/models"))
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="PyTorch checkpoints")
    parser.add_argument("--recipe", type=Path, default=Path("training/recipes/tiny.toml"))
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--split", type=Path, help="a split of the corpus; default: the sample")
    parser.add_argument("--count", type=int, default=12, help="clips of the split")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    args = parser.parse_args()
    try:
        return bench(args)
    except MerkitError as error:
        print(f"merkit_bench: {error}", file=sys.stderr)
        return 2


def bench(args: argparse.Namespace) -> int:
    """The contest on checked arguments."""
    if args.split:
        clips = list(islice(read_clips(args.split), args.count))
    else:
        clips = [(SAMPLE, SAMPLE.with_suffix(".txt").read_text("utf-8").strip())]
    with tempfile.TemporaryDirectory() as scratch:
        run, trained = args.run, True
        if "torch" in args.only and not (run / "fusion" / "card.json").is_file():
            from merkit_training.recipe import load_recipe
            from merkit_training.untrained import write_untrained_run

            run = write_untrained_run(load_recipe(args.recipe), Path(scratch) / "run")
            trained = False
        tallies = contest(args.only, clips, args.rounds, args.bundle, run, args.threads)
    about = {"clips": len(clips), "rounds": args.rounds, "threads": args.threads}
    result = summarise(tallies, {**about, "trained": trained})
    write(result, args.out)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
