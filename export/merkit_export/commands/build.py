"""`merkit-export build`: a run becomes a bundle, or nothing does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit_export.commands import Commands
    from merkit_export.precision.choose import Plan

TARGETS = ("cpu", "cuda", "tensorrt", "edge")
METHODS = ("percentile", "minmax", "entropy")


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "build",
        help="export a run as a bundle",
        description="Exports every step to ONNX, measures parity with torch, chooses precisions "
        "for a target where one is named, and replaces the bundle only when all agree.",
        epilog="A search that was interrupted goes on when the same command is given again.",
    )
    parser.add_argument(
        "run", type=Path, nargs="?", metavar="RUN", help="a folder of `merkit-train run`"
    )
    parser.add_argument("--out", type=Path, metavar="BUNDLE", help="needed but for --dry-run")
    parser.add_argument("--name", help="what to call the bundle; default: the recipe's name")
    parser.add_argument(
        "--untrained",
        type=Path,
        metavar="RECIPE",
        help="in place of RUN: a recipe's shapes at random weights, to try out its speed",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what it would take (parameters, files, memory), as merkit-export plan, and end",
    )
    _add_search(parser.add_argument_group("precision, with --target"))
    parser.set_defaults(command=_build)


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target", choices=TARGETS, help="where it is to run; default: float32 everywhere"
    )
    group.add_argument(
        "--corpus", type=Path, metavar="DIR", help="the run's own: calibrates and judges"
    )
    group.add_argument(
        "--budget-waf", type=float, default=0.5, metavar="POINTS",
        help="of weighted average F1 that may go (default: 0.5)",
    )  # fmt: skip
    group.add_argument(
        "--budget-agreement", type=float, default=0.99, metavar="SHARE",
        help="of labels that must stay (default: 0.99)",
    )  # fmt: skip
    group.add_argument(
        "--budget-cosine", type=float, default=0.995, metavar="COSINE",
        help="of each clip's features, where weights are random (default: 0.995)",
    )  # fmt: skip
    group.add_argument(
        "--precisions", nargs="+", default=(), metavar="NAME", help="only these (default: all)"
    )
    group.add_argument(
        "--clips", type=int, default=0, metavar="N", help="validation clips (default: all)"
    )
    group.add_argument(
        "--calibration-clips", type=int, default=64, metavar="N",
        help="training clips that ranges are measured on (default: 64)",
    )  # fmt: skip
    group.add_argument("--calibrate", choices=METHODS, default=METHODS[0], help="by which ranges")
    group.add_argument(
        "--weight-bits", type=int, choices=(7, 8), default=8,
        help="7 for CPUs without VNNI, whose 8-bit products saturate (default: 8)",
    )  # fmt: skip
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="to time with (default: all cores)"
    )
    group.add_argument("--table", type=Path, metavar="FILE", help="write the trade-off as Markdown")


def _build(args: argparse.Namespace) -> int:
    if (args.run is None) == (args.untrained is None):
        raise InvalidInputError(
            "both RUN and --untrained" if args.run else "neither RUN nor --untrained",
            "one of them",
            "give a folder of `merkit-train run`, or a recipe for random weights",
        )
    if args.dry_run:
        return _dry_run(args)
    if args.out is None:
        raise InvalidInputError("no --out", "the folder of the bundle", "add --out BUNDLE")
    idle = [name for name in ("corpus", "table") if getattr(args, name)]
    if idle and args.target is None:
        raise InvalidInputError(
            f"--{idle[0]} without --target, which would change nothing",
            "both, or neither: without a target every step stays float32",
            "add --target cpu, say",
        )
    plan = _plan(args) if args.target else None
    from merkit_export.build import build, build_untrained

    if args.untrained is not None:
        build_untrained(args.untrained, args.out, name=args.name, plan=plan)
    else:
        build(args.run, args.out, name=args.name, plan=plan)
    return 0


def _dry_run(args: argparse.Namespace) -> int:
    from merkit_export.plan import lines, plan
    from merkit_training.recipe import load_recipe, recipe_from
    from merkit_training.runs import read_json

    if args.untrained is not None:
        recipe = load_recipe(args.untrained)
    else:
        path = args.run / "recipe.json"
        recipe = recipe_from(read_json(path), str(path))
    for line in lines(list(plan(recipe))):
        print(line)
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    for option, least in (("clips", 0), ("calibration_clips", 1), ("threads", 0)):
        if getattr(args, option) < least:
            name = f"--{option.replace('_', '-')}"
            raise InvalidInputError(f"{name} is {getattr(args, option)}", f"{least} or more")
    if not args.budget_waf >= 0:  # nor is what is no number, which nothing exceeds
        raise InvalidInputError(f"--budget-waf is {args.budget_waf:g}", "points, 0 or more")
    for option in ("budget_agreement", "budget_cosine"):
        if not 0 <= getattr(args, option) <= 1:
            name = f"--{option.replace('_', '-')}"
            raise InvalidInputError(f"{name} is {getattr(args, option):g}", "a share of 1")
    from merkit_export.precision.choose import Plan, cores
    from merkit_export.precision.search import Budget
    from merkit_export.precision.variants import Calibration

    return Plan(
        args.target,
        args.corpus,
        Budget(args.budget_waf, args.budget_agreement, args.budget_cosine),
        Calibration(args.calibrate, args.calibration_clips, args.weight_bits),
        tuple(args.precisions),
        args.clips,
        args.threads or cores(),
        args.table,
    )
