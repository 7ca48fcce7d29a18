"""The unlabelled pool: features of many clips, read from disk a block at a time.

The seed's pool has 115,595 clips; at the paper's widths their features take 5 GB in half
precision. So nothing here holds the pool: its files are mapped for as long as one block is read,
and only the rows that a learner trains on are ever gathered.

A part of the pool is a folder as `FeatureSet.save` writes it. Its labels, if any, are not read.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit.errors import InvalidInputError
from merkit_training.fusion.dataset import JOINT, JOINT_VIEWS, joint_view
from merkit_training.fusion.groups import (
    FOREIGN,
    STORED,
    in_order,
    modalities_of,
    read_by,
    stored_name,
)
from merkit_training.fusion.model import group_presence

Rows = NDArray[np.int64]

DTYPES = {"F16": np.float16, "F32": np.float32}
GATHERED_BYTES = 2**26
"""Of a mapped file read before it is unmapped, so that pages do not pile up."""


class Part:
    """One folder of features. Raises InvalidInputError where it is incomplete or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "features.safetensors"
        try:
            texts = json.loads((folder / "clips.json").read_text("utf-8"))
            self.names = tuple(texts["names"])
            with self.path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if not 0 < size < 2**20:
                    raise ValueError("no safetensors header")
                header: dict[str, Any] = json.loads(file.read(size))
            self.tensors = {k: v for k, v in header.items() if k != "__metadata__"}
            self.start = 8 + size
            if (end := self.start + self._bytes()) != self.path.stat().st_size:
                raise ValueError(f"{self.path.stat().st_size} bytes instead of {end}")
            names = {name: group for group, name in STORED.items()}
            names |= {FOREIGN + group: group for group in texts.get("groups", ())}
            self.groups = in_order([g for name, g in names.items() if name in self.tensors])
            self.presence = np.array(self._map("presence", np.bool_))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{folder} holds no readable features ({type(error).__name__}: {error})",
                "features.safetensors and clips.json of one set of clips",
                "extract the features again: merkit-train mine RUN --pool CORPUS --out DIR",
            ) from None
        for name, table in self.tensors.items():
            columns = len(modalities_of(self.groups)) if self.groups else None
            if table["shape"][:1] != [len(self.names)] or self.presence.shape[1:] != (columns,):
                raise InvalidInputError(
                    f"{self.path} has {name} of the shape {table['shape']}",
                    f"a row for each of the {len(self.names)} clips of clips.json",
                    "extract the features again",
                )

    def width(self, group: str) -> int | None:
        """Numbers in a feature of the group; None where the folder has none."""
        found = self.tensors.get(stored_name(group))
        return None if found is None else int(found["shape"][-1])

    def dtype(self, group: str) -> str:
        """safetensors' name of the type that the group is stored in."""
        return str(self.tensors[stored_name(group)]["dtype"])

    def has(self, modality: str) -> NDArray[np.bool_]:
        """Which clips hold the modality, [n]; none where the folder knows nothing of it."""
        known = modalities_of(self.groups)
        there = modality in known
        return self.presence[:, known.index(modality)] if there else np.zeros(len(self.names), bool)

    def read(self, group: str, rows: Rows, view: Rows | None = None) -> NDArray[Any]:
        """Features [rows, (3,) width] as stored; of the joint group those of `view` [rows]."""
        name = stored_name(group)
        shape = self.tensors[name]["shape"]
        kind = DTYPES[self.dtype(group)]
        row_bytes = max(1, int(np.prod(shape[1:])) * np.dtype(kind).itemsize)
        step = max(1, GATHERED_BYTES // row_bytes)
        own = shape[1:] if view is None else shape[2:]
        found = np.empty((len(rows), *own), kind)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            mapped = self._map(name, kind)
            found[part] = mapped[rows[part]] if view is None else mapped[rows[part], view[part]]
            del mapped
        return found

    def fingerprint(self) -> str:
        """A hash of the names, the layout and a sample of the values, in a moment at any size."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        digest.update(json.dumps(self.tensors, sort_keys=True).encode())
        with self.path.open("rb") as file:
            for place in np.linspace(self.start, self.path.stat().st_size, 64).astype(int):
                file.seek(int(place))
                digest.update(file.read(4096))
        return digest.hexdigest()

    def _bytes(self) -> int:
        return max(int(t["data_offsets"][1]) for t in self.tensors.values())

    def _map(self, name: str, kind: type) -> NDArray[Any]:
        table = self.tensors[name]
        shape = tuple(table["shape"])
        if 0 in shape:
            return np.zeros(shape, kind)
        offset = self.start + table["data_offsets"][0]
        return np.memmap(self.path, kind, "r", offset, shape)


class Pool:
    """All unlabelled clips, numbered over the parts in order.

    Args:
        folders: the parts.
        widths: of each group's features, as the run's own.

    Raises:
        InvalidInputError: no clip, a name twice, features of another width, or none of a group
            although clips have what it reads.
    """

    def __init__(self, folders: Sequence[Path], widths: Mapping[str, int]) -> None:
        self.parts, self.widths = [Part(folder) for folder in folders], dict(widths)
        self.modalities = modalities_of(self.widths)
        self.names = tuple(name for part in self.parts for name in part.names)
        if not self.names:
            raise InvalidInputError("the pool is empty", "at least one clip", "check --pool")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise InvalidInputError(
                f"the pool names {len(twice)} clips more than once, such as {twice[0]}",
                "each clip once",
                "remove the duplicates, or a part of the pool",
            )
        self._check()
        columns = [[part.has(m) for part in self.parts] for m in self.modalities]
        self.presence = torch.from_numpy(np.stack([*map(np.concatenate, columns)], axis=1))
        self.offsets = np.cumsum([0, *(len(part.names) for part in self.parts)])

    def __len__(self) -> int:
        return len(self.names)

    def _check(self) -> None:
        for part in self.parts:
            for group, width in self.widths.items():
                found = part.width(group)
                if found is None and not any(part.has(name).any() for name in read_by(group)):
                    continue
                if found != width or part.dtype(group) not in DTYPES:
                    what = "no" if found is None else f"{part.dtype(group)} {found} wide as"
                    raise InvalidInputError(
                        f"{part.folder} has {what} {STORED.get(group, group)}",
                        f"features {width} wide in F32 or F16, as the run's own",
                        "extract the pool with the run's encoders: --pool CORPUS",
                    )

    def stored(self, group: str) -> torch.dtype:
        """float16 where every part stores the group so, else float32."""
        kinds = {part.dtype(group) for part in self.parts if part.width(group) is not None}
        return torch.float16 if kinds == {"F16"} else torch.float32

    def features(self, rows: Rows) -> dict[str, Tensor]:
        """float32 features [rows, width] by group, each clip seen with all that it has.

        Raises:
            InvalidInputError: a feature is not finite.
        """
        shown = self.presence[torch.from_numpy(rows)]
        here_of = group_presence(shown, self.widths)
        found = {}
        for group in self.widths:
            view = joint_view(shown, self.modalities).numpy() if group == JOINT else None
            values = self.read(group, rows, view)
            found[group] = torch.from_numpy(values).float()
            here, name = here_of[group][:, 0], STORED.get(group, group)
            bad = (~torch.isfinite(found[group]).all(dim=1) & here).nonzero()[:, 0]
            if len(bad):
                raise InvalidInputError(
                    f"{name} of {len(bad)} clips are not finite, as of {self.names[rows[bad[0]]]}",
                    "finite features",
                    "extract these clips again, in float32 if half precision overflows",
                )
        return found

    def read(self, group: str, rows: Rows, view: Rows | None = None) -> NDArray[Any]:
        """Features of clips in any order, as stored; zeros where a part has none."""
        own = [len(JOINT_VIEWS), self.widths[group]] if group == JOINT else [self.widths[group]]
        shape = own if view is None else own[-1:]
        kind = np.float16 if self.stored(group) is torch.float16 else np.float32
        where = np.searchsorted(self.offsets, rows, side="right") - 1
        found = np.zeros((len(rows), *shape), kind)
        for i, part in enumerate(self.parts):
            chosen = np.flatnonzero(where == i)
            if len(chosen) and part.width(group) is not None:
                views = None if view is None else view[chosen]
                found[chosen] = part.read(group, rows[chosen] - self.offsets[i], views)
        return found

    def fingerprint(self) -> str:
        """A hash that tells this pool from another."""
        return hashlib.sha256("".join(p.fingerprint() for p in self.parts).encode()).hexdigest()

    def numbers(self, names: Collection[str]) -> Rows:
        """Row numbers of the clips of these names, ascending."""
        wanted = set(names)
        return np.array([i for i, n in enumerate(self.names) if n in wanted], np.int64)


def feature_folders(path: Path) -> list[Path]:
    """The folders of features at `path`: itself, or those in it; none where it is a corpus."""
    if (path / "clips.json").is_file():
        return [path]
    return sorted(found.parent for found in path.glob("*/clips.json"))
