"""`merkit-train selftrain`: teaches a recogniser with sound that has no text (seed 2.4.1)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit_training.commands.common import check_corpus, with_seed

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "selftrain",
        help="teach a recogniser with sound that has no text",
        description="Train the recogniser, adopt what it is sure of, repeat until no gain.",
        epilog="Interrupted, the same command continues. OUT/recognizer is the best round's.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="with [recognizer] epochs")
    parser.add_argument("--corpus", type=Path, required=True, help="labelled speech")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="of all rounds")
    parser.add_argument(
        "--sounds", type=Path, metavar="DIR", help="files without text (default: the corpus' clips)"
    )
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.set_defaults(command=_selftrain)


def _selftrain(arguments: argparse.Namespace) -> None:
    from merkit_training.recipe import load_recipe

    recipe = with_seed(load_recipe(arguments.recipe), arguments.seed)
    check_corpus(arguments.corpus, arguments.recipe)
    from merkit_training.speech.noise.rounds import train_in_rounds

    outcome = train_in_rounds(recipe, arguments.corpus, arguments.out, arguments.sounds)
    for number, (score, count) in enumerate(zip(outcome.scores, outcome.adopted, strict=True)):
        best = " (best)" if number == outcome.best else ""
        print(f"round {number}: {count} adopted, validation {score:.4f}{best}")
    print(f"ended: {outcome.reason}")
    print(f"the recogniser is in {arguments.out / 'recognizer'}")
