"""`merkit-export adopt`: somebody else's encoder becomes a step of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands

STEPS = ("audio_encoder", "text_encoder", "face_encoder", "face_encoder_large")
POOLS = ("mean", "cls", "last")


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "adopt",
        help="take an encoder that Hugging Face Optimum exported",
        description="Writes a run in which FOLDER's model.onnx is the step. Its features are new "
        "to fusion: train that with merkit-train run, then build the bundle.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="what `optimum-cli export onnx` wrote"
    )
    parser.add_argument(
        "--as", dest="step", choices=STEPS, required=True, help="the step it becomes"
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="the run that it joins; stays as it is"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the new run")
    parser.add_argument(
        "--pool", choices=POOLS, default="mean", help="how positions become one feature"
    )
    parser.set_defaults(command=_adopt)


def _adopt(args: argparse.Namespace) -> int:
    from merkit_export.adopt.place import adopt

    report = adopt(args.folder, args.step, args.run, args.out, args.pool)
    print(
        f"{args.step}: the graph agrees with {args.folder} on {report.cases} inputs, at most "
        f"{report.max_abs:.1e} apart"
    )
    print(
        f"{args.out}: now train what reads its features: merkit-train run RECIPE --corpus CORPUS "
        f"--out {args.out}; then: merkit-export build {args.out} --out BUNDLE"
    )
    return 0
