"""`merkit calibrate`: a bundle's temperatures and class prior from a user's own labelled clips."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit.calibration import Outcome

TOLD = 10
MEASURES = (("waf", "WAF"), ("accuracy", "accuracy"), ("ece", "ECE"), ("brier", "Brier"))


def add(commands: Any, say: Callable[[str], None]) -> None:
    """Adds the command, which prints with `say`."""
    parser = commands.add_parser(
        "calibrate",
        help="fit a bundle's probabilities to your own labelled clips",
        description="Refits temperatures, and with --prior the class prior, without training.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("labels", type=Path, metavar="LABELS.csv", help="columns path, label, text")
    parser.add_argument("--out", type=Path, required=True, metavar="NEW_BUNDLE")
    parser.add_argument(
        "--prior",
        metavar="counts|uniform|FILE",
        help="how often classes occur in use: as in LABELS.csv, alike, or shares in a JSON file",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="S",
        help="share of clips on which to be confident, such as 0.9",
    )
    parser.set_defaults(run=lambda args, _parser: _calibrate(args, say))


def _calibrate(args: argparse.Namespace, say: Callable[[str], None]) -> int:
    from merkit.calibration import calibrate

    outcome = calibrate(
        args.bundle,
        args.labels,
        args.out,
        prior=_prior(args.prior),
        coverage=args.coverage,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    for line in _lines(outcome, args):
        say(line)
    return 0


def _lines(outcome: Outcome, args: argparse.Namespace) -> Iterator[str]:
    if outcome.failed:
        yield f"{len(outcome.failed)} clips could not be judged and were left out"
        yield from (f"  {name}: {error}" for name, error in outcome.failed[:TOLD])
    yield f"{outcome.clips} clips; every one judged by a fit that did not see it"
    yield f"  {'':<9} {'before':>8} {'after':>8}"
    for key, name in MEASURES:
        yield f"  {name:<9} {outcome.before[key]:>8.4f} {outcome.after[key]:>8.4f}"
    if outcome.after["brier"] >= outcome.before["brier"]:
        yield "  The Brier score did not improve: these labels do not support a new calibration."
    voters, labels = outcome.bundle.contract.voters, outcome.bundle.contract.labels
    pairs = zip(voters, outcome.calibration.temperatures, strict=True)
    yield "temperatures  " + ", ".join(f"{voter.name} {value:.3f}" for voter, value in pairs)
    if args.prior is not None:
        shifts = zip(labels, outcome.calibration.log_prior, strict=True)
        yield "class shifts  " + ", ".join(f"{label} {value:+.3f}" for label, value in shifts)
    if abstention := outcome.bundle.manifest.get("abstention"):
        least, share, right = (abstention[k] for k in ("threshold", "coverage", "accuracy"))
        yield f"confident from a score of {least:.3f}: {share:.0%} of the clips, {right:.1%} right"
    yield f"{args.out}: bundle {outcome.bundle.bundle_id}"


def _prior(given: str | None) -> str | Mapping[str, float] | None:
    if given is None or given in ("counts", "uniform"):
        return given
    try:
        shares = json.loads(Path(given).read_text("utf-8"))
    except (OSError, ValueError) as error:
        found = f"the prior {given!r} cannot be read ({getattr(error, 'strerror', error)})"
        raise InvalidInputError(found, "counts, uniform or a JSON file", "check the path") from None
    if not isinstance(shares, dict):
        raise InvalidInputError(f"{given} holds {type(shares).__name__}", "shares by class name")
    return shares
