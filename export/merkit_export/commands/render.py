"""`merkit-export render`: what one host needs to serve a bundle; the content stays as it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands

FLAVOURS = ("onnxruntime", "python")


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "render",
        help="write the files that a server needs",
        description="Writes config.pbtxt and what else Triton needs to serve the bundle.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--flavour", choices=FLAVOURS, default=FLAVOURS[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the bundle itself")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of a step; 0: all")
    parser.set_defaults(command=_render)


def _render(args: argparse.Namespace) -> int:
    from merkit.bundle import open_bundle
    from merkit.serving.render import Deployment, render

    bundle = open_bundle(args.bundle)
    out = args.out or args.bundle
    written = render(bundle, out, Deployment(flavour=args.flavour, threads=args.threads))
    print(f"{out}: {len(written)} files for the {args.flavour} flavour")
    return 0
