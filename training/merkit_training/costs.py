"""What fits cost, and on what: read wherever a run is told of, without TensorBoard's imports."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

COSTS = "fits.json"


def peak_memory() -> int:
    """Bytes: the device's peak since the fit began, or this process's since it started."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def device_name() -> str:
    """What this process trains on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def read_costs(folder: Path) -> dict[str, Any]:
    """The costs of a stage's fits so far; empty if it had none."""
    try:
        content = json.loads((folder / COSTS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def keep_costs(folder: Path, name: str, costs: Mapping[str, Any]) -> None:
    """Adds a fit's costs to the stage's `fits.json`."""
    path = folder / COSTS
    temporary = path.with_suffix(".tmp")
    kept = read_costs(folder) | {name: dict(costs)}
    temporary.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    temporary.replace(path)
