"""`merkit-train tune`: searches the fusion head's options on a run's features."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError
from merkit_training.commands.common import check_counts

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "tune",
        help="search the fusion head's options, judged out of fold",
        description="Try options of [fusion]; no test clip is used. Interrupted, it continues.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="with the stage `features` done")
    parser.add_argument(
        "--corpus", type=Path, help="whose card names the classes (default: the run's)"
    )
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--sampler",
        choices=("mertools", "optuna"),
        default="optuna",
        help="draws from MERTools' grid as MERBench trains, or Optuna's TPE (default)",
    )
    parser.add_argument("--voters", nargs="+", metavar="A+T", help="default: the recipe's")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the recipe's")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/tuning")
    parser.set_defaults(command=_tune)


def _tune(arguments: argparse.Namespace) -> None:
    from merkit_training.fusion.dataset import classes_in
    from merkit_training.fusion.search import search
    from merkit_training.recipe import recipe_from
    from merkit_training.runs import read_json

    if arguments.trials < 1 or arguments.seed < 0:
        found = f"--trials is {arguments.trials}, --seed is {arguments.seed}"
        raise InvalidInputError(found, "at least one trial, and a seed that is not negative")
    base = recipe_from(read_json(arguments.run / "recipe.json")).fusion
    try:
        if arguments.voters:
            base = replace(base, voters=tuple(arguments.voters))
    except ValueError as error:
        raise InvalidInputError(f"--voters: {error}", "such as a+t+v") from None
    if arguments.epochs is not None:
        check_counts(arguments, "epochs")
        base = replace(base, epochs=arguments.epochs)
    out = arguments.out or arguments.run / "tuning"
    classes = len(classes_in(arguments.run, arguments.corpus))
    options = (arguments.trials, arguments.sampler, arguments.seed, classes)
    best = search(arguments.run, out, base, *options)
    told = ", ".join(f"{name} {value:.6g}" for name, value in best.items() if name != "waf")
    print(f"best of the trials: out-of-fold WAF {best['waf']:.4f} with {told}")
    print(f"as tables of a recipe: {out / (arguments.sampler + '.toml')}")
