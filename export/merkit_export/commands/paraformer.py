"""`merkit-export paraformer`: a recogniser for funasr-onnx and sherpa-onnx, or for FunASR."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from merkit_export.commands.foreign import add_writer

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    files = "model.onnx, config.yaml, am.mvn, tokens.json and tokens.txt"
    add_writer(commands, "paraformer", "recogniser", "recognizer", files, _write)


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
