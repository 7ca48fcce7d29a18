"""`merkit-train synth`: writes the synthetic corpus, on which everything can be tried."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "synth",
        help="write the synthetic corpus",
        description="Write faces, sequences, utterances, sentences and clips, the same for the "
        "same recipe.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the corpus")
    parser.add_argument(
        "--recipe", type=Path, required=True, help="a TOML file with a [synth] table"
    )
    parser.add_argument("--only", nargs="+", metavar="SET", help="some of its sets (default: all)")
    parser.set_defaults(command=_synth)


def _synth(arguments: argparse.Namespace) -> None:
    from merkit_training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe)
    from merkit_training.synth.generate import generate
    from merkit_training.synth.sets import KINDS

    generate(arguments.out, recipe.synth, arguments.only or KINDS)
    print(f"the corpus is at {arguments.out}")
