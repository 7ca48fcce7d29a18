"""What several commands ask of their arguments, and what they do with a page.

The same slip must meet the same words whichever command it is made in. Written once in each, the
checks had begun to differ: one command said how to make a corpus, its neighbour only that none is
there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit_training.recipe import Recipe

NOT_NEGATIVE = "a number that is not negative"


def check_counts(arguments: argparse.Namespace, *options: str) -> None:
    """Refuses options, where given, that are not at least 1."""
    for option in options:
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise InvalidInputError(f"--{option} is {value}", "1 or more")


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses seeds that are negative or occur twice."""
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InvalidInputError(f"--seeds are {seeds}", "different numbers that are not negative")


def with_seed(recipe: Recipe, seed: int | None) -> Recipe:
    """The recipe with the seed that was given in place of its own, if one was."""
    if seed is None:
        return recipe
    if seed < 0:
        raise InvalidInputError(f"--seed is {seed}", NOT_NEGATIVE)
    return recipe.with_seed(seed)


def check_corpus(corpus: Path, recipe: Path = Path("training/recipes/tiny.toml")) -> None:
    """Refuses a corpus that is not there; `recipe` is the one to make it of."""
    if not corpus.is_dir():
        raise InvalidInputError(
            f"there is no corpus at {corpus}",
            "a folder that merkit-train synth wrote",
            f"run: merkit-train synth {corpus} --recipe {recipe}",
        )


def give_page(page: str, path: Path | None) -> None:
    """Prints a page, or writes it where it is wanted and says so."""
    from merkit_training.runs import write_bytes

    if path is None:
        print(page, end="")
        return
    write_bytes(path, page.encode())
    print(f"the page is at {path}")
