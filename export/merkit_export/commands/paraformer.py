"""`merkit-export paraformer`: a recogniser for funasr-onnx and sherpa-onnx, or for FunASR."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "paraformer",
        help="write a recogniser as other tools read it",
        description="Writes model.onnx, config.yaml, am.mvn, tokens.json and tokens.txt: what "
        "funasr-onnx and sherpa-onnx run.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE",
        help="a run with the stage recognizer, or a FunASR folder (config.yaml, model.pt, ...)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--torch", action="store_true", help="write FunASR's own model.pt in place of model.onnx"
    )
    parser.set_defaults(command=_write)


def _write(arguments: argparse.Namespace) -> int:
    from merkit_training.speech.recognition.checkpoint import load_folder, write_folder
    from merkit_training.speech.recognition.train import STEP, load

    if (arguments.source / STEP).is_dir():
        recognizer, config, vocabulary = load(arguments.source)
    else:
        recognizer, config, vocabulary, _ = load_folder(arguments.source)
    if arguments.torch:
        write_folder(arguments.out, recognizer, config, vocabulary)
    else:
        from merkit_export.speech.paraformer import write_model_folder

        write_model_folder(arguments.out, recognizer, config, vocabulary)
    print(f"{arguments.out}: a Paraformer of {len(vocabulary)} tokens")
    return 0
