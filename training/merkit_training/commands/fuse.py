"""`merkit-train fuse`: the fusion stage on features of any encoders, without clips."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError
from merkit_training.commands.common import with_seed

if TYPE_CHECKING:
    from merkit_training.commands import Commands
    from merkit_training.recipe import Recipe

EPILOG = (
    "A feature of zeros says that a clip lacks what the encoder reads, as MERTools writes it. "
    "evaluate, submit, tune, ablate and mine read RUN; with groups of other encoders than the "
    "pipeline's, merkit-export refuses it."
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "fuse",
        help="train fusion on features of any encoders",
        description=(
            "Rank, calibrate and train branches over feature folders of MERTools' layout "
            "(NAME-UTT/CLIP.npy or NAME-FRA), with labels of a file or beside a run's own features."
        ),
        epilog=EPILOG,
    )
    what = parser.add_argument_group("features and labels")
    what.add_argument("--features", type=Path, metavar="DIR", help="holds the feature folders")
    what.add_argument(
        "--groups",
        nargs="+",
        default=(),
        metavar="NAME",
        help="of --features, also NAME=FOLDER (default: all that lie there)",
    )
    what.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="MERTools' .npz, or a table: name, discrete, and if known group (or speaker), split, "
        "fold, valence and columns to report by",
    )
    what.add_argument(
        "--run", type=Path, metavar="RUN", help="whose own features and labels take part too"
    )
    what.add_argument(
        "--missing-is-absent",
        action="store_true",
        help="a clip without a file lacks what the encoder reads (default: an error)",
    )
    how = parser.add_argument_group("training")
    how.add_argument(
        "--voters",
        nargs="+",
        default=(),
        metavar="A+B",
        help="groups of each branch (default: one of all groups and one without each; those of "
        "the recipe where its [fusion] names the groups)",
    )
    how.add_argument(
        "--recipe", type=Path, metavar="FILE", help="[fusion], [data], [run] (default: the run's)"
    )
    how.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder to write")
    parser.set_defaults(command=_fuse)


def _fuse(arguments: argparse.Namespace) -> None:
    a = arguments
    if (a.labels is None) == (a.run is None) or (a.features is None and (a.groups or a.labels)):
        raise InvalidInputError(
            "--labels, --run and --features do not fit together",
            "--features with --labels, or --run (with --features of other encoders)",
            "see: merkit-train fuse --help",
        )
    recipe = _recipe(a)
    from merkit_training.data.records import problem_lines
    from merkit_training.fusion.folders import find_groups
    from merkit_training.fusion.fuse import branches_of, from_labels, from_run, fuse
    from merkit_training.fusion.label_files import read_label_file

    folders = find_groups(a.features, a.groups) if a.features else ()
    absent = {"missing_is_absent": a.missing_is_absent}
    if a.run is not None:
        material = from_run(a.run, folders, **absent)
    else:
        labels = read_label_file(a.labels, recipe.data.classes)
        material = from_labels(folders, labels, recipe.data, **absent)
    for line in problem_lines(material.problems):
        print(line)
    voters = branches_of(material, recipe, a.voters)
    counts = ", ".join(f"{split} {len(data)}" for split, data in material.sets.items())
    print(
        f"groups {', '.join(material.groups)}; voters {', '.join(voters)}; clips: {counts}",
        flush=True,
    )
    scores = fuse(material, recipe, voters, a.out)
    if not scores:
        print(f"{a.out}: done before, nothing to do")
    for name, value in scores.items():
        print(f"{name} {value:.3f}")
    print(f"the tables are at {a.out / 'fusion' / 'tables.md'}")


def _recipe(a: argparse.Namespace) -> Recipe:
    from merkit_training.recipe import load_recipe, recipe_from

    if a.recipe is not None:
        recipe = load_recipe(a.recipe)
    elif a.run is not None:
        from merkit_training.runs import read_json

        recipe = recipe_from(read_json(a.run / "recipe.json"))
    else:
        recipe = recipe_from({"run": {"name": a.out.resolve().name}})
    return with_seed(recipe, a.seed)
