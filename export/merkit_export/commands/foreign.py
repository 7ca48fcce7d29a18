"""The arguments of commands that write a model as FunASR's tools read it.

Recogniser and punctuator are asked for alike, whatever lies in their folders.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add_writer(
    commands: Commands,
    name: str,
    what: str,
    stage: str,
    files: str,
    command: Callable[[argparse.Namespace], int],
) -> None:
    """Adds the command `name`, which takes `source`, `out` and `torch`.

    Args:
        commands: those of `merkit-export`.
        name: of the command.
        what: is written, in words.
        stage: that trains it.
        files: that are written.
        command: takes the parsed arguments.
    """
    parser = commands.add_parser(
        name,
        help=f"write a {what} as other tools read it",
        description=f"Writes {files}: what funasr-onnx and sherpa-onnx run.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE",
        help=f"a run with the stage {stage}, or a FunASR folder (config.yaml, model.pt, ...)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--torch", action="store_true", help="write FunASR's own model.pt in place of model.onnx"
    )
    parser.set_defaults(command=command)
