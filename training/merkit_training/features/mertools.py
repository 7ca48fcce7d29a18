"""Feature folders as MERTools and MERBench read and write them.

    DIR/<name>-UTT/<clip>.npy   float32 (D,)     one feature for a clip
    DIR/<name>-FRA/<clip>.npy   float32 (T, D)   one for each frame, face or token

Their readers want a file for every clip, so evidence that a clip lacks is written as zeros, as
their extractors do: (D,) and (1, D).
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError
from merkit_training.features.extractor import Feature
from merkit_training.runs import write_bytes

UTTERANCE, FRAMES = "UTT", "FRA"
NAMED_AT_MOST = 20
"""Clips that an error message lists."""


def folder_of(root: Path, name: str, kind: str) -> Path:
    """Where the features of an encoder called `name` lie; `kind` is UTT or FRA."""
    return root / f"{name}-{kind}"


def write_feature(root: Path, name: str, clip: str, feature: Feature, frames: bool) -> None:
    """Writes a clip's files, each whole or not at all; those that would not change are left."""
    _save(folder_of(root, name, UTTERANCE) / f"{clip}.npy", feature.utterance)
    if frames and feature.frames is not None:
        _save(folder_of(root, name, FRAMES) / f"{clip}.npy", feature.frames)


def remove_feature(root: Path, name: str, clip: str) -> None:
    """Removes what an earlier extraction said of a clip that can no longer be read."""
    for kind in (UTTERANCE, FRAMES):
        (folder_of(root, name, kind) / f"{clip}.npy").unlink(missing_ok=True)


def zeros(width: int) -> Feature:
    """What stands for a clip that lacks what the encoder reads."""
    return Feature(np.zeros(width, np.float32), np.zeros((1, width), np.float32))


@dataclass(frozen=True)
class MertoolsFeatures:
    """Features of clips, in order of name or as asked.

    Attributes:
        names: the clips.
        values: float32 [width] of each from a `-UTT` folder, [time, width] from a `-FRA` one.
        width: numbers in a feature.
    """

    names: tuple[str, ...]
    values: tuple[NDArray[np.float32], ...]
    width: int

    def stacked(self) -> NDArray[np.float32]:
        """float32 [clips, width]; features over time are averaged, as MERTools does."""
        rows = [value if value.ndim == 1 else value.mean(axis=0) for value in self.values]
        return np.stack(rows).astype(np.float32)


def read_mertools(
    folder: Path, names: Iterable[str] | None = None, width: int | None = None
) -> MertoolsFeatures:
    """Reads a feature folder, of ours or of MERTools.

    Args:
        folder: `<name>-UTT` or `<name>-FRA`.
        names: the clips wanted, in order; None for all.
        width: what each feature must measure; None for what most of them do.

    Raises:
        InvalidInputError: names every clip whose feature is missing, no numeric array, not
            finite, or of another width.
    """
    if not folder.is_dir():
        raise InvalidInputError(
            f"there is no folder {folder}", "features of an encoder", "run: merkit-train features"
        )
    if names is None:
        names = sorted(path.stem for path in folder.glob("*.npy"))
    wanted = list(names)
    if not wanted:
        raise InvalidInputError(f"{folder} holds no features", "files <clip>.npy", "check the path")
    values, wrong = {}, {}
    for name in wanted:
        try:
            values[name] = _load(folder / f"{name}.npy")
        except ValueError as error:
            wrong[name] = str(error)
    widths = [value.shape[-1] for value in values.values()]
    usual = width or (max(sorted(set(widths)), key=widths.count) if widths else 0)
    wrong |= {n: f"is {v.shape[-1]} wide" for n, v in values.items() if v.shape[-1] != usual}
    if wrong:
        told = [f"{name} {what}" for name, what in sorted(wrong.items())]
        more = f" and {len(told) - NAMED_AT_MOST} more" if len(told) > NAMED_AT_MOST else ""
        raise InvalidInputError(
            f"of {len(wanted)} features in {folder}: {', '.join(told[:NAMED_AT_MOST])}{more}",
            f"finite arrays {usual} wide for each clip",
            "extract them again, or leave these clips out",
        )
    return MertoolsFeatures(tuple(wanted), tuple(values[name] for name in wanted), usual)


def _load(path: Path) -> NDArray[np.float32]:
    try:
        array: Any = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError("is missing") from None
    except (OSError, EOFError, ValueError):
        raise ValueError("is no array file") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError("is no array of numbers")
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise ValueError(f"has the shape {list(array.shape)}")
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("is not finite")
    return values


def _save(path: Path, array: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    data = buffer.getvalue()
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)
