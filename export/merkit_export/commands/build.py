"""`merkit-export build`: a run becomes a bundle, or nothing does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "build",
        help="export a run as a bundle",
        description="Exports every step to ONNX, measures parity with torch, and replaces the "
        "bundle only when all agree.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder of `merkit-train run`")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE")
    parser.add_argument("--name", help="what to call the bundle; default: the recipe's name")
    parser.set_defaults(command=_build)


def _build(args: argparse.Namespace) -> int:
    from merkit_export.build import build

    build(args.run, args.out, name=args.name)
    return 0
