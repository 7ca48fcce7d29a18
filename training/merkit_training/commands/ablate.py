"""`merkit-train ablate`: what each addition to MERBench's attention is worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError
from merkit_training.commands.common import check_counts, give_page

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "ablate",
        help="measure each addition to MERBench's attention, alone and together",
        description="Train each row under each seed, print the page. Interrupted, it continues.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="with the stage `features` done")
    parser.add_argument(
        "--corpus", type=Path, help="whose card names the classes (default: the run's)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the figures")
    parser.add_argument(
        "--groups", metavar="A+T", help="of the branch (default: a+t+v; all, of a run of `fuse`)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="default: %(default)s")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page there")
    parser.set_defaults(command=_ablate)


def _ablate(arguments: argparse.Namespace) -> None:
    from merkit_training.fusion.ablation import ablation_page, run_ablation
    from merkit_training.fusion.dataset import classes_in, read_features
    from merkit_training.fusion.groups import check_voter, foreign

    check_counts(arguments, "seeds", "epochs")
    there = tuple(read_features(arguments.run / "features" / "train").groups)
    asked = arguments.groups or ("+".join(there) if foreign(there) else "a+t+v")
    try:
        check_voter(asked, there)
    except ValueError as error:
        raise InvalidInputError(f"--groups: {error}", "such as a+t+v") from None
    groups = tuple(asked.split("+"))
    classes = len(classes_in(arguments.run, arguments.corpus))
    seeds = range(arguments.seeds)
    options = (groups, seeds, arguments.epochs, classes)
    run_ablation(arguments.run, arguments.out, *options)
    page = ablation_page(arguments.run, arguments.out, *options)
    give_page(page, arguments.page)
