"""`merkit-train prepare`: own clips, or MER's folders, become a corpus to train on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_training.commands import Commands
    from merkit_training.recipe import Recipe


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "prepare",
        help="make a corpus of own clips",
        description="Decode the clips of a CSV or JSON-lines manifest, or of a folder of MER's, "
        "into a corpus that every stage trains on, and report what is wrong with which clip.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="a table or a folder")
    parser.add_argument("--out", type=Path, metavar="CORPUS", help="folder of the corpus")
    parser.add_argument(
        "--recipe", type=Path, help="a TOML file with [data] and [preprocessing] (default: theirs)"
    )
    parser.add_argument(
        "--check", action="store_true", help="only read the table and report; decode nothing"
    )
    parser.set_defaults(command=_prepare)


def _prepare(arguments: argparse.Namespace) -> None:
    from merkit.errors import InvalidInputError
    from merkit_training.recipe import load_recipe, recipe_from

    recipe = load_recipe(arguments.recipe) if arguments.recipe else recipe_from({})
    if arguments.check:
        from merkit_training.data import read_dataset
        from merkit_training.data.prepare import refuse_one_class

        dataset = read_dataset(arguments.dataset, recipe.data.classes)
        print(dataset.report())
        return refuse_one_class(dataset)
    if arguments.out is None:
        raise InvalidInputError(
            "--out is missing", "a folder for the corpus", "give --out CORPUS, or --check"
        )
    return prepare_and_tell(arguments.dataset, arguments.out, recipe)


def prepare_and_tell(dataset: Path, out: Path, recipe: Recipe) -> None:
    """Prepares a corpus and prints its report."""
    from merkit_training.data.prepare import prepare

    prepare(dataset, out, recipe)
    print((out / "report.txt").read_text("utf-8"), end="")
    print(f"the corpus is at {out}; all problems are in {out / 'problems.jsonl'}")
