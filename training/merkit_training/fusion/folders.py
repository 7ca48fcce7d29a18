"""Feature folders of other encoders, in MERTools' layout, as the groups of a `FeatureSet`.

A folder that lacks a clip, or holds one of another width, would show as a wrong shape deep in the
training. So folders are held against the names of the clips before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from merkit.errors import InvalidInputError
from merkit_training.features.mertools import (
    FRAMES,
    NAMED_AT_MOST,
    UTTERANCE,
    folder_of,
    read_mertools,
)
from merkit_training.fusion.groups import check_names

BLOCK = 256
"""Clips whose files are in memory at once: those with features over time are large."""
KINDS = (UTTERANCE, FRAMES)


@dataclass(frozen=True)
class GroupFolder:
    """A feature group and where its files lie."""

    name: str
    path: Path


def find_groups(root: Path, asked: Sequence[str] = ()) -> tuple[GroupFolder, ...]:
    """The folders of feature groups below `root`.

    Args:
        root: holds `<name>-UTT` or `<name>-FRA`.
        asked: names, each also as NAME=FOLDER; none: every such folder, by the alphabet. Of
            `clip`, the folder clip-UTT is taken, else clip-FRA, else clip.

    Raises:
        InvalidInputError: no such folder, or a name that is unfit, taken or twice.
    """
    if not root.is_dir():
        raise InvalidInputError(
            f"there is no folder {root}", "feature folders such as clip-UTT", "check --features"
        )
    there = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[-4:] in _ENDINGS)
    asked = asked or list(dict.fromkeys(_plain(name) for name in there))
    found = []
    for told in asked:
        name, stated, folder = told.partition("=")
        folder = folder if stated else name
        tried = [root / folder, *(folder_of(root, folder, kind) for kind in KINDS)]
        if folder[-4:] not in _ENDINGS:
            tried = [*tried[1:], tried[0]]
        path = next((path for path in tried if path.is_dir()), None)
        if path is None:
            raise InvalidInputError(
                f"{root} has no features of {folder!r}",
                f"one of {', '.join(there) or 'the folders that merkit-train features writes'}",
                "correct --groups or --features",
            )
        found.append(GroupFolder(name if stated else _plain(name), path))
    if not found:
        raise InvalidInputError(
            f"{root} holds no feature folders", "folders such as clip-UTT", "check --features"
        )
    try:
        check_names([group.name for group in found])
    except ValueError as error:
        raise InvalidInputError(
            f"--groups: {error}", "a new name", "call the group otherwise: --groups NAME=FOLDER"
        ) from None
    return tuple(found)


def read_groups(
    folders: Sequence[GroupFolder],
    names: Sequence[str],
    widths: Mapping[str, int] | None = None,
    *,
    missing_is_absent: bool = False,
) -> dict[str, Tensor]:
    """Features float32 [clips, width] of each group; features over time are averaged.

    Args:
        folders: the groups.
        names: the clips, in order.
        widths: what features must measure, of a run that has been trained; None: as most of a
            group's first files do, and some clip has to have something of each group.
        missing_is_absent: a clip without a file lacks what the encoder reads, as if the file held
            zeros; else it is an error.

    Raises:
        InvalidInputError: names the clips whose file is missing, unreadable, not finite or of
            another width, or the group of which no clip has anything.
    """
    found = {}
    for group in folders:
        there = {path.stem for path in group.path.glob("*.npy")}
        missing = [name for name in names if name not in there]
        if missing and not missing_is_absent:
            raise _missing(group, missing, len(names))
        found[group.name] = _read(group, names, there, (widths or {}).get(group.name))
        if widths is None and not found[group.name].any():
            raise InvalidInputError(
                f"all {len(names)} features in {group.path} are zeros or missing",
                "features; zeros stand for clips that lack what the encoder reads",
                "extract them again, or leave the group out",
            )
    return found


def _read(group: GroupFolder, names: Sequence[str], there: set[str], width: int | None) -> Tensor:
    rows = [i for i, name in enumerate(names) if name in there]
    values = torch.zeros(len(names), width or 0)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        read = read_mertools(group.path, [names[i] for i in block], width)
        if width is None:
            width = read.width
            values = torch.zeros(len(names), width)
        values[torch.tensor(block)] = torch.from_numpy(np.ascontiguousarray(read.stacked()))
    return values


def _missing(group: GroupFolder, names: Sequence[str], count: int) -> InvalidInputError:
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return InvalidInputError(
        f"{group.path} has no file of {len(names)} of {count} clips: "
        f"{', '.join(names[:NAMED_AT_MOST])}{more}",
        "a file <clip>.npy of each labelled clip",
        "extract them, or leave the clips out; or fuse with --missing-is-absent: they lack it",
    )


_ENDINGS = tuple(f"-{kind}" for kind in KINDS)


def _plain(name: str) -> str:
    """The name without its kind."""
    return name[:-4] if name[-4:] in _ENDINGS else name
