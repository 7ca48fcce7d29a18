"""A trained step on disk: `config.json`, `model.safetensors` and, last of all, `card.json`.

The card marks a step as done. Written last and by renaming, it never stands beside weights that
a killed run has left half-written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from merkit.errors import BundleCorruptError, BundleNotFoundError
from merkit_training.settings import from_table

M = TypeVar("M", bound=nn.Module)


def save_module(
    run: Path, step: str, config: object, module: nn.Module, card: Mapping[str, Any]
) -> None:
    """Writes a step's configuration (a dataclass), weights and card under `run / step`."""
    folder = run / step
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in module.state_dict().items()}
    write_json(folder / "config.json", asdict(config))  # type: ignore[call-overload]
    temporary = folder / "model.safetensors.tmp"
    save_file(weights, temporary)
    temporary.replace(folder / "model.safetensors")
    write_json(folder / "card.json", dict(card))


def load_module(run: Path, step: str, config: type[Any], build: Callable[[Any], M]) -> M:
    """Builds a step from what `save_module` wrote, in eval mode.

    Raises:
        BundleNotFoundError: the run has no such step.
        BundleCorruptError: weights that are damaged or do not fit the configuration.
    """
    folder = run / step
    try:
        table = json.loads((folder / "config.json").read_text("utf-8"))
        module = build(from_table(config, table, str(folder / "config.json")))
        module.load_state_dict(load_file(folder / "model.safetensors"))
    except FileNotFoundError:
        raise BundleNotFoundError(
            f"{folder} holds no trained step",
            "config.json and model.safetensors",
            "run the stage first: merkit-train run",
        ) from None
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise BundleCorruptError(
            f"{folder} cannot be loaded ({error})",
            "weights of the shapes that its config.json states",
            "remove the folder and train the step again",
        ) from None
    return module.eval()


def write_json(path: Path, value: object) -> None:
    """Writes JSON under a temporary name, then renames."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(path)
