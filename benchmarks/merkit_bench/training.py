"""`python -m merkit_bench.training`: how fast each training stage is and what memory it takes.

Who plans a training asks for samples a second and gigabytes, stage by stage, with fine-tuning apart
from pre-training. A run card states both, but of a process that may have trained something else
before. Here each stage of a recipe, its optional pre-training too, trains one epoch in a process
of its own, on a corpus a tenth as large as the recipe's: rates and memory do not depend on that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path

from merkit_bench.summary import machine
from merkit_training.costs import read_costs
from merkit_training.recipe import TABLES, Recipe, load_recipe
from merkit_training.recipe_text import full_text
from merkit_training.stages import STAGES

SHARE = 10
TRAINED = tuple(stage for stage in STAGES if "_encoder" in stage or stage.endswith("_pretraining"))
ALONE: dict[str, tuple[str, ...]] = {
    "tokenizer": ("sentences_train",),
    "features": ("clips_train", "clips_val", "clips_test"),
    "fusion": ("clips_train",),
}
"""Stages that fit nothing by gradient steps, or many small heads, with what they go through."""
HEAD = """# What training costs

Written by `make training-costs`; do not edit. Each stage of `training/recipes/{name}.toml`, also
pre-training that the recipe leaves out, for one epoch in a process of its own on {threads} of
{cores} cores ({cpu}). A *fit* is what is trained within a stage, a *sample* one face, grid,
sentence, sound or clip. Memory is the greatest of the whole process: some 0.4 GB of it are torch
itself. The last three have no such fit: sentences or clips by the seconds of the whole command,
starting included (fusion: all branches over folds and seeds, and the tables).

| stage | fit | samples a second | memory, GB |
| --- | --- | ---: | ---: |
"""


def main() -> int:
    """Prints a Markdown page."""
    parser = argparse.ArgumentParser(prog="merkit_bench.training", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("training/recipes/tiny.toml"))
    parser.add_argument("--share", type=int, default=SHARE, metavar="N", help="of its corpus: 1/N")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=TRAINED, default=TRAINED)
    args = parser.parse_args()
    stated = load_recipe(args.recipe)
    with tempfile.TemporaryDirectory() as scratch:
        recipe, root = Path(scratch) / "recipe.toml", Path(scratch)
        once = one_epoch(stated, args.share)
        recipe.write_text(full_text(once.to_json(), {}), "utf-8")
        _merkit_train(args.threads, "synth", root / "corpus", "--recipe", recipe)
        rows, alone = [], []
        for stage in STAGES:
            if stage in (*args.stages, *ALONE):
                told = ("--corpus", root / "corpus", "--out", root / "run", "--stage", stage)
                seconds, peak = _merkit_train(args.threads, "run", recipe, *told)
                rows += table_rows(stage, read_costs(root / "run" / stage))
                if stage in ALONE:
                    counts = vars(once.synth).items()
                    samples = sum(n for name, n in counts if name.startswith(ALONE[stage]))
                    cost = {"samples_per_second": samples / seconds, "peak_memory_mb": peak}
                    alone += table_rows(stage, {"": cost})
    about = machine()
    facts = {"name": stated.run.name, "threads": args.threads, "cores": about["cores"]}
    print(HEAD.format(**facts, cpu=about["cpu"]) + "\n".join([*rows, *alone]))
    return 0


def one_epoch(recipe: Recipe, share: int) -> Recipe:
    """The recipe with one epoch of each fit and a corpus of one in `share` samples."""
    for name in TABLES:
        if name != "fusion":
            table = getattr(recipe, name)
            once = {f.name: 1 for f in fields(table) if f.name.endswith("epochs")}
            recipe = replace(recipe, **{name: replace(table, **once)})
    synth, sets = recipe.synth, ("faces_", "sequences_", "utterances_", "sentences_", "clips_")
    counts = {f.name: getattr(synth, f.name) for f in fields(synth) if f.name.startswith(sets)}
    fewer = {name: max(1, count // share) for name, count in counts.items()}
    return replace(recipe, synth=replace(synth, **fewer))


def table_rows(stage: str, costs: dict[str, dict[str, float]]) -> list[str]:
    """Markdown, one row for each fit of a stage."""
    return [
        f"| {stage} | {fit} | {cost['samples_per_second']:,.0f} "
        f"| {cost['peak_memory_mb'] / 1024:.2f} |"
        for fit, cost in costs.items()
    ]


def _merkit_train(threads: int, *arguments: object) -> tuple[float, float]:
    """Runs the command; its seconds, and the greatest memory of its own process in MB."""
    command = [sys.executable, "-m", "merkit_training.cli", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-4000:]}")
    return time.monotonic() - started, used.ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
