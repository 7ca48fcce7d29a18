"""`merkit-export verify`: is this bundle still what that run computes?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.bundle import MANIFEST, SIGNATURES
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
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write JSON")
    parser.add_argument(
        "--record",
        action="store_true",
        help="note the verdict in the bundle: one that fails is then refused wherever it is loaded",
    )
    budget = parser.add_argument_group("what the answers may cost where steps are lossy")
    for name, default, told in (
        ("agreement", 0.99, "least share of clips with the checkpoint's label"),
        ("waf", 0.5, "points of weighted average F1"),
        ("ece", 0.02, "rise of the calibration error"),
    ):
        budget.add_argument(
            f"--budget-{name}", type=float, default=default, metavar="X",
            help=f"{told} (default: {default})",
        )  # fmt: skip
    parser.set_defaults(command=_verify)


def _verify(args: argparse.Namespace) -> int:
    from merkit_export.tolerance import Budget
    from merkit_export.verify import record, verify

    if args.limit < 0:
        raise InvalidInputError(f"--limit is {args.limit}", "0 (all) or more")
    for name, most in (("agreement", 1.0), ("waf", 100.0), ("ece", 1.0)):
        value = getattr(args, f"budget_{name}")
        if not 0 <= value <= most:  # what is no number would admit everything
            raise InvalidInputError(f"--budget-{name} is {value:g}", f"0 to {most:g}", "correct it")
    budget = Budget(args.budget_agreement, args.budget_waf / 100, args.budget_ece)
    report = verify(args.bundle, args.run, args.clips, args.limit, budget)
    for line in report.lines():
        print(line)
    report.write(args.report, args.json, args.html)
    if args.record:
        signed = (args.bundle / SIGNATURES).exists()
        record(report)
        again = "; sign it again: the signatures were made for the former manifest"
        print(f"{args.bundle}: noted in {MANIFEST}{again if signed else ''}")
    return 0 if report.passed else 1
