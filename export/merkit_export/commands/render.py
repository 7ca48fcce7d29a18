"""`merkit-export render`: what one host needs to serve bundles; their content stays as it is."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit_export.commands import Commands

FLAVOURS = ("onnxruntime", "tensorrt", "python")


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "render",
        help="write the files that a server needs",
        description="Writes config.pbtxt and what else Triton needs to serve bundles.",
    )
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the bundle itself")
    parser.add_argument(
        "--deploy", type=Path, metavar="FILE", help="this host's choices (host.toml)"
    )
    parser.add_argument("--flavour", choices=FLAVOURS, help="what runs ONNX steps")
    parser.add_argument("--threads", type=int, metavar="N", help="of a step; 0: all")
    parser.add_argument("--warm-up", action="store_true", help="run samples before answering")
    parser.add_argument(
        "--versioned",
        action="store_true",
        help="name models after what they hold: several bundles share a repository, and DIR may "
        "hold others already",
    )
    parser.add_argument("--copy", action="store_true", help="copy content instead of linking to it")
    parser.set_defaults(command=_render)


def _render(args: argparse.Namespace) -> int:
    from merkit.bundle import open_bundle
    from merkit.lint import refuse_errors
    from merkit.serving.deployment import DEFAULT, read_deployment
    from merkit.serving.render import render

    _check_usage(args)
    deployment = read_deployment(args.deploy) if args.deploy else DEFAULT
    given = {"flavour": args.flavour, "threads": args.threads, "warm_up": args.warm_up or None}
    deployment = replace(deployment, **{k: v for k, v in given.items() if v is not None})
    bundles = [open_bundle(path) for path in args.bundles]
    for bundle in bundles:
        out = args.out or bundle.root
        written = render(bundle, out, deployment, versioned=args.versioned, copy=args.copy)
        what = f"bundle {bundle.bundle_id[:8]}, " if args.versioned else ""
        print(f"{out}: {what}{len(written)} files for the {deployment.flavour} flavour")
    for out in {args.out} if args.out else {bundle.root for bundle in bundles}:
        for finding in refuse_errors(out).findings:
            print(finding, file=sys.stderr)
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    if len(args.bundles) > 1 and not args.versioned:
        raise InvalidInputError(
            f"{len(args.bundles)} bundles", "one, or --versioned for several", "add --versioned"
        )
    if args.out is None and (args.versioned or args.copy):
        raise InvalidInputError(
            "no --out", "a folder of its own for such a repository", "add --out DIR"
        )
