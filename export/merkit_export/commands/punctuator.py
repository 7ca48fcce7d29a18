"""`merkit-export punctuator`: a punctuator for funasr-onnx and sherpa-onnx, or for FunASR."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from merkit_export.commands.foreign import add_writer

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    files = "model.onnx, config.yaml and tokens.json"
    add_writer(commands, "punctuator", "punctuator", "punctuator", files, _write)


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
