"""What encoders said of clips, kept by content: a killed extraction continues, a repeated one is
free, and a renamed clip costs nothing.

One file for each key, written under a temporary name and moved into place, so that several
processes may write at once and a kill leaves no half of one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merkit_training.features.extractor import Feature
from merkit_training.runs import write_bytes


@dataclass(frozen=True)
class Entry:
    """What is known of a content: its feature (None: nothing to read) and its problems."""

    feature: Feature | None
    problems: tuple[str, ...]


class FeatureCache:
    """A folder of entries; may be shared by encoders, data sets and machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str, frames: bool) -> Entry | None:
        """The entry, or None if there is none, it is damaged, or it lacks frames asked for."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(key), framework="np") as file:
                problems = tuple(json.loads((file.metadata() or {})["problems"]))
                held = set(file.keys())
                if "utterance" not in held:
                    return Entry(None, problems)
                if frames and "frames" not in held:
                    return None
                series = file.get_tensor("frames") if frames else None
                return Entry(Feature(file.get_tensor("utterance"), series), problems)
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None

    def has(self, key: str, frames: bool) -> bool:
        """Whether `read` would find it."""
        return self._path(key).exists() and self.read(key, frames) is not None

    def write(self, key: str, feature: Feature | None, problems: Sequence[str]) -> None:
        """Keeps what an encoder said."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[np.float32]] = {}
        if feature is not None:
            tensors["utterance"] = np.ascontiguousarray(feature.utterance)
            if feature.frames is not None:
                tensors["frames"] = np.ascontiguousarray(feature.frames)
        path = self._path(key)
        write_bytes(path, save(tensors, {"problems": json.dumps(list(problems))}))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
