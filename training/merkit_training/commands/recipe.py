"""`merkit-train recipe`: shows a recipe with every default filled in, before hours go into it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "recipe",
        help="print a recipe in full",
        description="Check a recipe and print it as TOML with all defaults filled in; remarks of "
        "the file stay beside their values, and what the seed does not state is listed.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file")
    parser.set_defaults(command=_recipe)


def _recipe(arguments: argparse.Namespace) -> None:
    from merkit_training.recipe import load_recipe
    from merkit_training.recipe_text import NOT_STATED, READ_AS, full_text, remarks

    recipe = load_recipe(arguments.recipe)
    notes = remarks(arguments.recipe.read_text("utf-8"))
    print(full_text(recipe.to_json(), notes), end="")
    for mark, said in ((NOT_STATED, "Not stated by the seed"), (READ_AS, "Read so, by us")):
        keys = [f"{table}.{key}" for (table, key), note in notes.items() if mark in note]
        if keys:
            print(f"\n# {said}: {', '.join(keys)}.")
    if any(NOT_STATED in note for note in notes.values()):
        print("# Nor does it state what is marked as a default.")
