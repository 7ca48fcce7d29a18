"""The commands of `merkit-train`, a module each: they grow apart, and none may slow the others.

Each module has `add(commands)`, which makes its parser and sets `command` to the function that
takes the parsed arguments. Modules are imported for every `--help`: import torch, cv2 and other
heavy packages inside that function.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

COMMANDS = (
    "synth",
    "prepare",
    "gather",
    "run",
    "recipe",
    "features",
    "fuse",
    "study",
    "mine",
    "ablate",
    "tune",
    "evaluate",
    "submit",
    "ngrams",
    "selftrain",
    "hear",
)
"""Modules of this package, in the order of `--help`."""


def add_all(commands: Commands) -> None:
    """Adds every command."""
    for name in COMMANDS:
        import_module(f"{__name__}.{name}").add(commands)
