"""What `merkit-train features` costs as clips grow, and what a second worker brings.

An extraction that holds its clips in memory, or slows as they grow, shows only on the corpus that
it was meant for. `python -m merkit_bench.features` runs the command itself on growing numbers of
clips, all different to the cache: copies of the sample with a box of their own at the end.

Rates are read off the times at which features came into the cache, from the first tenth to the
last, so that starting (imports, the encoder, Ray) does not count; it is reported beside them.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from merkit_bench.summary import machine
from merkit_training.runs import write_json

SAMPLE = Path("docs/media/sample.mp4")
SPREADS = {
    "one process": (),
    "2 processes": ("--processes", "2"),
    "Ray, 1 actor": ("--ray", "1"),
    "Ray, 2 actors": ("--ray", "2"),
}


@dataclass(frozen=True)
class Cost:
    """One run of the command."""

    spread: str
    clips: int
    seconds: float  # wall
    processor: float  # seconds of the command and of what it waited for
    memory: float  # MB, greatest of the command's own process
    rate: float  # clips a second, once a tenth of them was done


def main() -> int:
    """Measures and writes features.json; prints the two tables."""
    parser = argparse.ArgumentParser(prog="merkit_bench.features", description=__doc__)
    parser.add_argument("--run", type=Path, help="a run; default: the recipe at random weights")
    parser.add_argument("--recipe", type=Path, default=Path("training/recipes/tiny.toml"))
    parser.add_argument("--step", default="audio_encoder")
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 192, 640])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spreads", nargs="+", choices=tuple(SPREADS), default=tuple(SPREADS))
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    counts = sorted(args.counts)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        run = args.run or _untrained(args.recipe, root / "run")
        folders = {count: _clips(root / f"clips{count}", count) for count in counts}
        costs = []
        for number in range(args.rounds):  # interleaved: a slow minute hits all alike
            for spread in args.spreads:
                for count in counts if spread == "one process" else counts[-1:]:
                    out = root / f"{number}-{spread}-{count}"
                    costs.append(_measure(spread, f"{run}:{args.step}", folders[count], out))
    write_json(
        args.out / "features.json",
        {
            **machine(),
            "step": args.step,
            "load": os.getloadavg(),
            "costs": [asdict(c) for c in costs],
        },
    )
    print("\n".join([*growth(costs), "", *workers(costs)]))
    return 0


def growth(costs: Sequence[Cost]) -> list[str]:
    """Markdown: processor time and memory of one process by the number of clips."""
    rows = ["| clips | processor seconds | seconds | memory, MB |", "|---:|---:|---:|---:|"]
    own = [c for c in costs if c.spread == "one process"]
    for count in sorted({c.clips for c in own}):
        same = [c for c in own if c.clips == count]
        seconds = median(c.seconds for c in same)
        cells = (median(c.processor for c in same), seconds, median(c.memory for c in same))
        rows.append(f"| {count} | {cells[0]:.1f} | {cells[1]:.1f} | {cells[2]:.0f} |")
    return rows


def workers(costs: Sequence[Cost]) -> list[str]:
    """Markdown: clips a second once started, as a ratio to one process, and all the rest."""
    rows = ["| spread | clips/s | to one process | start, s |", "|---|---:|---:|---:|"]
    first = None
    for spread in dict.fromkeys(c.spread for c in costs):
        most = max(c.clips for c in costs)
        same = [c for c in costs if c.spread == spread and c.clips == most]
        rate, seconds = median(c.rate for c in same), median(c.seconds for c in same)
        first = first or rate
        rows.append(f"| {spread} | {rate:.1f} | {rate / first:.2f} | {seconds - most / rate:.1f} |")
    return rows


def _measure(spread: str, encoder: str, clips: Path, out: Path) -> Cost:
    command = [sys.executable, "-m", "merkit_training.cli", "features", encoder]
    command += ["--clips", str(clips), "--out", str(out), *SPREADS[spread]]
    started = time.monotonic()
    errors = out.with_suffix(".err")
    with errors.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.read_text('utf-8')[-4000:]}")
    seconds = time.monotonic() - started
    done = sorted(entry.stat().st_mtime for entry in (out / "cache").glob("*/*.safetensors"))
    tenth = len(done) // 10
    rate = (len(done) - 1 - tenth) / (done[-1] - done[tenth])
    processor = used.ru_utime + used.ru_stime
    return Cost(spread, len(done), seconds, processor, used.ru_maxrss / 1024, rate)


def _clips(folder: Path, count: int) -> Path:
    """`count` copies of the sample, each with an empty box of its own, which players pass over."""
    folder.mkdir()
    data = SAMPLE.read_bytes()
    for number in range(count):
        box = struct.pack(">I4sQ", 16, b"free", number)
        (folder / f"clip{number:05d}.mp4").write_bytes(data + box)
    return folder


def _untrained(recipe: Path, run: Path) -> Path:
    from merkit_training.recipe import load_recipe
    from merkit_training.untrained import write_untrained_run

    return write_untrained_run(load_recipe(recipe), run)


if __name__ == "__main__":
    sys.exit(main())
