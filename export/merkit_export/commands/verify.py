"""`merkit-export verify`: is this bundle still what that run computes?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "verify",
        help="compare a bundle with its run",
        description="Compares every step, and the whole pipeline, with the run in torch.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--run", type=Path, required=True, help="what it was built from")
    parser.add_argument(
        "--clips",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="also predict the media in DIR/video with DIR/transcripts.csv; may be repeated",
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="clips of each DIR")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write JSON")
    parser.set_defaults(command=_verify)


def _verify(args: argparse.Namespace) -> int:
    from merkit_export.verify import verify

    if args.limit < 0:
        raise InvalidInputError(f"--limit is {args.limit}", "0 (all) or more")
    report = verify(args.bundle, args.run, args.clips, args.limit)
    for line in report.lines():
        print(line)
    report.write(args.report, args.json)
    return 0 if report.passed else 1
