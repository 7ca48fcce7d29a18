"""`merkit-export preflight`: would TensorRT take this bundle? Needs neither TensorRT nor a GPU."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "preflight",
        help="check a bundle against what TensorRT takes, on any machine",
        description="Holds every node, type, shape and profile of the bundle's graphs against "
        "TensorRT's published support. Exit status 1 when a plan could not be built.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_choices(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings as JSON")
    parser.set_defaults(command=_preflight)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """What decides steps and shapes, for this command and for `tensorrt`."""
    parser.add_argument(
        "--step", action="append", metavar="NAME", help="only this step; may be repeated"
    )
    parser.add_argument(
        "--deploy", type=Path, metavar="FILE", help="take batch sizes from host.toml"
    )
    parser.add_argument("--max-batch", type=int, metavar="N", help="rows of the largest batch")
    parser.add_argument(
        "--buckets",
        type=_seconds,
        default=(),
        metavar="S,S,...",
        help="longest sound of each profile, in seconds",
    )


def _preflight(args: argparse.Namespace) -> int:
    from merkit.bundle import open_bundle
    from merkit_export.tensorrt.operators import SOURCE
    from merkit_export.tensorrt.preflight import preflight, summary
    from merkit_export.tensorrt.profiles import profiles_of

    bundle = open_bundle(args.bundle)
    profiles = profiles_of(bundle, args.deploy, args.max_batch, args.buckets)
    verdicts = preflight(bundle, profiles, args.step)
    for verdict in verdicts:
        for line in summary(verdict.findings if verdict.planned else ()):
            print(line)
    for verdict in verdicts:
        word = "ready" if verdict.passed else "refused"
        if not verdict.planned:
            word = f"stays on ONNX Runtime ({len(verdict.findings)} findings)"
        print(f"{verdict.step:20} {verdict.nodes:5} nodes  {word}")
    print(f"held against {SOURCE}")
    if args.json:
        found = {"source": SOURCE, "steps": [verdict.to_json() for verdict in verdicts]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.json.with_name(f".{args.json.name}.tmp")
        temporary.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        temporary.replace(args.json)
    return 0 if all(v.passed for v in verdicts if v.planned) else 1


def _seconds(text: str) -> tuple[float, ...]:
    try:
        sizes = tuple(float(part) for part in text.split(","))
    except ValueError:
        sizes = (math.nan,)
    if not all(map(math.isfinite, sizes)):
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 2.5,5,20")
    return sizes
