"""The command `merkit-export`: build a bundle from a run, verify it against the run, render it.

Heavy imports wait until a command needs them, so that `--help` and a mistyped path answer at
once. Exit status: 0 when all went well, 1 when a verification failed, 2 for an error or a wrong
command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from merkit import __version__
from merkit.errors import InvalidInputError, MerkitError

FLAVOURS = ("onnxruntime", "python")
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    args = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        return command(args)
    except MerkitError as error:
        print(f"merkit-export: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"merkit-export: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("merkit-export: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merkit-export", description="Turn a training run into a bundle, and prove it."
    )
    parser.add_argument("--version", action="version", version=f"merkit-export {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    build = commands.add_parser(
        "build",
        help="export a run as a bundle",
        description="Exports every step to ONNX, measures parity with torch, and replaces the "
        "bundle only when all agree.",
    )
    build.add_argument("run", type=Path, metavar="RUN", help="a folder of `merkit-train run`")
    build.add_argument("--out", type=Path, required=True, metavar="BUNDLE")
    build.add_argument("--name", help="what to call the bundle; default: the recipe's name")
    build.set_defaults(command=_build)

    verify = commands.add_parser(
        "verify",
        help="compare a bundle with its run",
        description="Compares every step, and the whole pipeline, with the run in torch.",
    )
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.add_argument("--run", type=Path, required=True, help="what it was built from")
    verify.add_argument(
        "--clips",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="also predict the media in DIR/video with DIR/transcripts.csv; may be repeated",
    )
    verify.add_argument("--limit", type=int, default=0, metavar="N", help="clips of each DIR")
    verify.add_argument("--report", type=Path, metavar="FILE", help="write Markdown")
    verify.add_argument("--json", type=Path, metavar="FILE", help="write JSON")
    verify.set_defaults(command=_verify)

    render = commands.add_parser(
        "render",
        help="write the files that a server needs",
        description="Writes config.pbtxt and what else Triton needs to serve the bundle.",
    )
    render.add_argument("bundle", type=Path, metavar="BUNDLE")
    render.add_argument("--flavour", choices=FLAVOURS, default=FLAVOURS[0])
    render.add_argument("--out", type=Path, metavar="DIR", help="default: the bundle itself")
    render.add_argument("--threads", type=int, default=0, metavar="N", help="of a step; 0: all")
    render.set_defaults(command=_render)
    return parser


def _build(args: argparse.Namespace) -> int:
    from merkit_export.build import build

    build(args.run, args.out, name=args.name)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from merkit_export.verify import verify

    if args.limit < 0:
        raise InvalidInputError(f"--limit is {args.limit}", "0 (all) or more")
    report = verify(args.bundle, args.run, args.clips, args.limit)
    for line in report.lines():
        print(line)
    report.write(args.report, args.json)
    return 0 if report.passed else 1


def _render(args: argparse.Namespace) -> int:
    from merkit.bundle import open_bundle
    from merkit.serving.render import Deployment, render

    bundle = open_bundle(args.bundle)
    out = args.out or args.bundle
    written = render(bundle, out, Deployment(flavour=args.flavour, threads=args.threads))
    print(f"{out}: {len(written)} files for the {args.flavour} flavour")
    return 0


if __name__ == "__main__":
    sys.exit(main())
