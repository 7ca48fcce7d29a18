"""A trained step to disk and back as a module, with errors that say which stage to run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from merkit.errors import BundleCorruptError
from merkit_training.runs import CONFIG, MODEL, load_step_files, save_step
from merkit_training.settings import from_table

M = TypeVar("M", bound=nn.Module)


def load_module(run: Path, step: str, config: type[Any], build: Callable[[Any], M]) -> M:
    """Builds a step from what `runs.save_step` wrote, in eval mode.

    Args:
        run: the run folder.
        step: the step's name.
        config: the dataclass that its configuration file holds.
        build: makes the module from it.

    Raises:
        BundleNotFoundError: the run has no such step.
        BundleCorruptError: weights that are damaged or do not fit the configuration.
    """
    table, weights = load_step_files(run, step)
    module = build(from_table(config, table, str(run / step / CONFIG)))
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleCorruptError(
            f"{run / step / MODEL} does not fit its configuration ({error})",
            f"weights of the shapes that {CONFIG} beside it states",
            f"remove {run / step} and train the step again",
        ) from None
    return module.eval()


def save_module(
    run: Path, step: str, config: Any, module: nn.Module, card: Mapping[str, Any]
) -> None:
    """Writes what `load_module` reads: the dataclass `config`, the weights, the card last."""
    save_step(run, step, asdict(config), module.state_dict(), card)
