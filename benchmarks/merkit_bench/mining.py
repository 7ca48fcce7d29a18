"""`python -m merkit_bench.mining`: how long a round of mining takes, and how much memory.

The seed mines 115,595 clips. Whether that fits on a desk is a matter of arithmetic until somebody
runs it, so pools of any size and width are made up here (class centres in noise, half precision)
and mined for one round by the very command, in a process of its own, whose peak memory is read.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import MODALITIES
from merkit.pipeline import SEED_VOTERS
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.groups import STORED
from merkit_training.labels import MER6
from merkit_training.recipe import recipe_from
from merkit_training.runs import write_bytes, write_json

WIDTHS = {
    "tiny": {"a": 128, "t": 128, "v": 128, "j": 128, "V": 160},
    "paper": {"a": 1024, "t": 5120, "v": 768, "j": 4096, "V": 3200},
}
LABELLED = {"train": 5030, "val": 600, "test": 600}  # MER2024 has 5,030 labelled clips
BLOCK = 2048
HEAD = """| widths | clips | pool on disk | epochs | adopted | wall | CPU | voting | peak memory |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def write_features(
    folder: Path, count: int, widths: Mapping[str, int], kind: str, seed: int
) -> None:
    """Writes made-up features of `count` clips a block at a time, as `FeatureSet.save` does."""
    folder.mkdir(parents=True)
    labels = np.random.default_rng(seed).integers(0, len(MER6), count)
    shapes = {STORED[g]: (3, w) if g == "j" else (w,) for g, w in widths.items()}
    columns: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = [
        ("labels", np.dtype(np.int64), ()),
        ("presence", np.dtype(bool), (len(MODALITIES),)),
        *((name, np.dtype(kind), shape) for name, shape in shapes.items()),
    ]
    names = {"int64": "I64", "bool": "BOOL", "float16": "F16", "float32": "F32"}
    header, place = {}, 0
    for name, dtype, shape in columns:
        size = count * int(np.prod(shape)) * dtype.itemsize
        header[name] = {
            "dtype": names[dtype.name],
            "shape": [count, *shape],
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "features.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(labels.tobytes())
        file.write(np.ones((count, len(MODALITIES)), bool).tobytes())
        for name, dtype, shape in columns[2:]:
            for block in _clouds(name, labels, shape):
                file.write(block.astype(dtype).tobytes())
    texts = [f"{folder.name}_{i:06d}" for i in range(count)]
    clips = {"names": texts, "identities": texts, "subsets": [""] * count}
    write_bytes(folder / "clips.json", json.dumps(clips).encode())


def _clouds(
    name: str, labels: NDArray[np.int64], shape: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """Noise about a centre for each class; the noise of all blocks is one, shifted."""
    rng = np.random.default_rng(sum(name.encode()))
    centres = rng.standard_normal((len(MER6), *shape), np.float32) * np.float32(shape[-1] ** -0.25)
    noise = rng.standard_normal((BLOCK, *shape), np.float32)
    for start in range(0, len(labels), BLOCK):
        own = labels[start : start + BLOCK]
        yield centres[own] + np.roll(noise, start // BLOCK + len(labels), axis=-1)[: len(own)]


def write_run(run: Path, widths: Mapping[str, int], epochs: int) -> None:
    """Writes what mining reads of a run."""
    for seed, (split, count) in enumerate(LABELLED.items()):
        write_features(run / "features" / split, count, widths, "float32", seed)
    recipe = recipe_from({"fusion": asdict(FusionConfig(epochs=epochs))})
    write_json(run / "recipe.json", recipe.to_json())
    write_json(run / "run.json", {"stages": {}})
    voters = [{"name": v.name, "groups": list(v.groups)} for v in SEED_VOTERS]
    write_json(run / "fusion" / "config.json", {"voters": voters, "labels": list(MER6)})


def measure(profile: str, clips: int, epochs: int, out: Path) -> str:
    """Mines a made-up pool for one round; a row of the table."""
    folder = out / f"{profile}-{clips}"
    shutil.rmtree(folder, ignore_errors=True)
    write_run(folder / "run", WIDTHS[profile], epochs)
    write_features(folder / "pool", clips, WIDTHS[profile], "float16", 9)
    size = (folder / "pool" / "features.safetensors").stat().st_size
    command = ["-m", "merkit_training.cli", "mine", str(folder / "run"), "--rounds", "1"]
    command += ["--pool", str(folder / "pool"), "--out", str(folder / "mined")]
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"merkit_bench.mining: mining ended with {status}")
    found: dict[str, Any] = json.loads(
        (folder / "mined" / "seed-0" / "round-01" / "round.json").read_text("utf-8")
    )
    shutil.rmtree(folder)
    return (
        f"| {profile} | {clips:,} | {size / 1e9:.2f} GB | {epochs} | {found['adopted']:,} "
        f"| {found['seconds']:.0f} s | {found['cpu_seconds']:.0f} s "
        f"| {found['cpu_seconds_voting']:.1f} s "
        f"| {used.ru_maxrss / 1e6:.2f} GB |"
    )


def main() -> int:
    """Prints a row for each size."""
    parser = argparse.ArgumentParser(prog="merkit_bench.mining", description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--widths", choices=tuple(WIDTHS), default="tiny")
    parser.add_argument("--epochs", type=int, default=FusionConfig().epochs, help="of a learner")
    parser.add_argument("--out", type=Path, required=True, help="for pools, removed afterwards")
    args = parser.parse_args()
    print(HEAD, flush=True)
    for clips in args.clips:
        print(measure(args.widths, clips, args.epochs, args.out), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
