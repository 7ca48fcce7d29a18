"""`merkit-train gather`: face images out of folders of pictures and videos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_training.commands import Commands

LABELS = ("none", "folders", "rafdb", "expw", "csv")


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "gather",
        help="gather face images for pre-training and for teaching expressions",
        description="Find faces in pictures and videos, drop those that are blurred, incomplete "
        "or turned far away, and write the rest as one set with a report. A stopped command "
        "continues when given again.",
    )
    add_argument = parser.add_argument
    add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="folders (or CSV files)")
    add_argument("--out", type=Path, required=True, metavar="FACES", help="folder to write")
    add_argument("--recipe", type=Path, help="takes a crop's side and margin from it")
    add_argument("--side", type=int, help="of a crop in pixels (default: the recipe's, else 64)")
    add_argument("--labels", choices=LABELS, default="none", help="how sources state labels")
    add_argument(
        "--classes", nargs="+", metavar="CLASS", default=["8"],
        help="8 or 3 classes of the seed, or names of your own (default: 8)",
    )  # fmt: skip
    add_argument("--cropped", action="store_true", help="each picture is one face already")
    add_argument("--frames", type=int, default=8, help="frames of a video (default: 8)")
    add_argument("--yunet", default="", metavar="ONNX", help="a YuNet model (default: cascades)")
    add_argument("--val-share", type=float, default=0.02, help="held out (default: 0.02)")
    add_argument("--group", choices=("file", "folder"), default="file", help="held out together")
    add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    for name, help_text in THRESHOLDS.items():
        add_argument(f"--{name.replace('_', '-')}", type=float, metavar="N", help=help_text)
    parser.set_defaults(command=_gather)


THRESHOLDS = {
    "agreeing": "frames of a video that must show a face (default: 2)",
    "size": "least side of a face in the source's pixels (default: 40)",
    "cut_off": "most of a face's square outside the picture (default: 0.15)",
    "turned": "most that a face is turned, see the report (default: 0.6)",
    "sharpness": "least sharpness (default: 40)",
}


def _gather(arguments: argparse.Namespace) -> None:
    from merkit_training.faces.gather import gather
    from merkit_training.faces.look import GatherSettings
    from merkit_training.labels import FACE3, FACE8
    from merkit_training.recipe import load_recipe
    from merkit_training.settings import from_table

    table = {
        "labels": arguments.labels,
        "classes": {("8",): FACE8, ("3",): FACE3}.get(tuple(arguments.classes), arguments.classes),
        "cropped": arguments.cropped,
        "frames": arguments.frames,
        "yunet": arguments.yunet,
        "val_share": arguments.val_share,
        "group": arguments.group,
        "thresholds": {n: v for n in THRESHOLDS if (v := getattr(arguments, n)) is not None},
    }
    if arguments.recipe is not None:
        p = load_recipe(arguments.recipe).preprocessing
        table |= {"side": p.face_size, "margin": p.face_margin}
    if arguments.side is not None:
        table["side"] = arguments.side
    settings = from_table(GatherSettings, table, "the options")
    report = gather(arguments.sources, arguments.out, settings, arguments.workers)
    for source, facts in report["sources"].items():
        dropped = ", ".join(f"{n} {reason}" for reason, n in facts["dropped"].items() if n)
        print(f"{source}: {facts['kept']} of {facts['faces']} faces kept ({dropped or 'no drops'})")
    print(f"{report['kept']} faces are at {arguments.out}; {arguments.out / 'report.md'} says more")
