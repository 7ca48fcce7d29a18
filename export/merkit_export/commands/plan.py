"""`merkit-export plan`: what exporting a recipe would take, without weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "plan",
        help="say what exporting a recipe would take",
        description="Parameters, bytes per precision, files and memory of each encoder, from a "
        "recipe's shapes alone: nothing is built.",
    )
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="such as training/recipes/paper.toml"
    )
    parser.add_argument(
        "--graphs", action="store_true", help="trace each graph too (seconds for each layer)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write JSON")
    parser.set_defaults(command=_plan)


def _plan(args: argparse.Namespace) -> int:
    from merkit_export.plan import lines, plan
    from merkit_training.recipe import load_recipe
    from merkit_training.runs import write_json

    steps = list(plan(load_recipe(args.recipe), args.graphs))
    for line in lines(steps):
        print(line)
    if args.json is not None:
        write_json(args.json, {step.step: step.to_json() for step in steps})
    return 0
