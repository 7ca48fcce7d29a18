"""`merkit-train run`: trains the stages of a recipe, one after the other."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError
from merkit_training import processes
from merkit_training.commands.common import check_corpus, check_counts, with_seed
from merkit_training.stages import STAGES, is_asked, is_shared, stage_function

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
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--corpus", type=Path, help="what `merkit-train synth` or `prepare` wrote")
    data.add_argument(
        "--clips", type=Path, help="own clips as `prepare` reads them; prepared into RUN/corpus"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--stage", choices=tuple(STAGES), help="only this stage (default: all)")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="of this machine (default: 1)"
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> None:
    check_counts(arguments, "processes")
    if arguments.processes > 1 and processes.count() == 1:
        return processes.launch(arguments.processes, arguments.argv)
    processes.end_with_starter()
    from merkit_training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe)
    if recipe.fusion.groups:
        raise InvalidInputError(
            f"{arguments.recipe} fuses {', '.join(recipe.fusion.groups)}, which no stage makes",
            "a [fusion] table without groups",
            "remove groups, or fuse features of other encoders: merkit-train fuse",
        )
    recipe = with_seed(recipe, arguments.seed)
    if arguments.clips is not None:
        from merkit_training.commands.prepare import prepare_and_tell

        arguments.corpus = arguments.out / "corpus"
        if processes.is_main():
            prepare_and_tell(arguments.clips, arguments.corpus, recipe)
        processes.join()
    check_corpus(arguments.corpus, arguments.recipe)
    from merkit_training.runs import RunCard
    from merkit_training.speech.hearing.parts import check_asked

    check_asked(recipe)
    card = RunCard(arguments.out, recipe, arguments.corpus)
    for stage in [arguments.stage] if arguments.stage else STAGES:
        if not is_asked(recipe, stage):
            if arguments.stage:
                key = "order" if stage == "language_model" else "epochs"
                _say(f"{stage}: left out, as [{stage}] {key} is 0")
            continue
        if card.done(stage):
            card.adopt(stage)
            _say(f"{stage}: done before, skipped")
            continue
        processes.join()  # all agree on what is done
        started = time.monotonic()
        scores = {}
        if is_shared(stage) or processes.is_main():
            scores = stage_function(stage)(recipe, arguments.corpus, arguments.out)
        seconds = time.monotonic() - started
        processes.join()
        if processes.is_main():
            card.record(stage, scores, seconds)
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        _say(f"{stage}: {told} ({seconds:.0f} s)")
        processes.join()
    return None


def _say(line: str) -> None:
    if processes.is_main():
        print(line, flush=True)
