"""`merkit-train run`: trains the stages of a recipe, one after the other."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError
from merkit_training.stages import STAGES, is_asked, stage_function

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "run",
        help="train the stages of a recipe",
        description=f"Train in this order, skipping what is done: {', '.join(STAGES)}.",
    )
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="such as training/recipes/tiny.toml"
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="what `merkit-train synth` wrote"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--stage", choices=tuple(STAGES), help="only this stage (default: all)")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> None:
    from merkit_training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe)
    if arguments.seed is not None:
        if arguments.seed < 0:
            raise InvalidInputError(f"--seed is {arguments.seed}", "a number that is not negative")
        recipe = recipe.with_seed(arguments.seed)
    if not arguments.corpus.is_dir():
        raise InvalidInputError(
            f"there is no corpus at {arguments.corpus}",
            "a folder that merkit-train synth wrote",
            f"run: merkit-train synth {arguments.corpus} --recipe {arguments.recipe}",
        )
    from merkit_training.runs import RunCard

    card = RunCard(arguments.out, recipe, arguments.corpus)
    for stage in [arguments.stage] if arguments.stage else STAGES:
        if not is_asked(recipe, stage):
            continue
        if card.done(stage):
            print(f"{stage}: done before, skipped")
            continue
        started = time.monotonic()
        scores = stage_function(stage)(recipe, arguments.corpus, arguments.out)
        seconds = time.monotonic() - started
        card.record(stage, scores, seconds)
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        print(f"{stage}: {told} ({seconds:.0f} s)", flush=True)
