"""The commands of `merkit-export`, a module each: they grow apart, and none may slow the others.

Each module has `add(commands)`, which makes its parser and sets `command` to the function that
takes the parsed arguments and returns the exit status. Modules are imported for every `--help`:
import torch, onnx, onnxruntime and other heavy packages inside that function.
"""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

COMMANDS = (
    "plan",
    "build",
    "verify",
    "render",
    "preflight",
    "tensorrt",
    "keygen",
    "sign",
    "adopt",
    "paraformer",
    "punctuator",
)
"""Modules of this package, in the order of `--help`."""
REPORTS = ("json", "report", "html", "table")
"""Arguments that name a file to write when all work is done, in whichever command has them."""


def add_all(commands: Commands) -> None:
    """Adds every command."""
    for name in COMMANDS:
        import_module(f"{__name__}.{name}").add(commands)


def check_reports(args: argparse.Namespace) -> None:
    """Refuses a report that could not be written, before the work that it is to tell of.

    Raises:
        InvalidInputError: a folder stands there, or none can be made or written to above it.
    """
    for name in REPORTS:
        path: Path | None = getattr(args, name, None)
        if path is None:
            continue
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
            found = f"{path} is a folder" if path.is_dir() else f"{above} takes no files"
            raise InvalidInputError(found, f"a file to write for --{name}", "name another")
