"""`merkit-export punctuator`: a punctuator for funasr-onnx and sherpa-onnx, or for FunASR."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "punctuator",
        help="write a punctuator as other tools read it",
        description="Writes model.onnx, config.yaml and tokens.json: what funasr-onnx and "
        "sherpa-onnx run.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE",
        help="a run with the stage punctuator, or a FunASR folder (config.yaml, model.pt, ...)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--torch", action="store_true", help="write FunASR's own model.pt in place of model.onnx"
    )
    parser.set_defaults(command=_write)


def _write(arguments: argparse.Namespace) -> int:
    from merkit_training.speech.punctuation.checkpoint import load_folder, write_folder
    from merkit_training.speech.punctuation.train import STEP, load

    in_run = (arguments.source / STEP).is_dir()
    known = load(arguments.source) if in_run else load_folder(arguments.source)[0]
    if arguments.torch:
        write_folder(arguments.out, known)
    else:
        from merkit_export.speech.punctuation import write_model_folder

        write_model_folder(arguments.out, known)
    print(f"{arguments.out}: a CT-Transformer of {len(known.tokens)} words")
    return 0
