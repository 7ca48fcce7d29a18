"""Features of clips as they lie in a run, and what they would be with a modality hidden.

The joint encoder reads sound and words together, so hiding the words of a clip changes its joint
feature rather than removing it. A fusion head trained without that never sees the joint feature of
sound alone, which it will meet in use. So three joint features are kept for each clip.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.corpus import in_split_order
from merkit_training.fusion.groups import (
    FOREIGN,
    STORED,
    in_order,
    modalities_of,
    stored_name,
)
from merkit_training.labels import classes_of
from merkit_training.runs import read_json

JOINT = "j"
JOINT_VIEWS = ("both", "audio", "text")
"""Second axis of the stored joint features: what the joint encoder was given."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of n clips; rows of absent modalities are zeros."""

    names: tuple[str, ...]
    identities: tuple[str, ...]  # of the speakers, "/clip" where unknown; folds never share one
    subsets: tuple[str, ...]  # aligned, mixed or conflicting evidence; "" where unknown
    labels: Tensor  # int64 [n]
    presence: Tensor  # bool [n, modalities], columns as in `modalities`
    groups: Mapping[str, Tensor]
    """float32 (float16 in large pools) [n, width] by group; of `j` [n, 3, width] as JOINT_VIEWS."""
    valence: Tensor = field(default_factory=lambda: torch.zeros(0))  # float32 [n], NaN: unlabelled

    def __post_init__(self) -> None:
        ordered = {group: self.groups[group] for group in in_order(self.groups)}
        object.__setattr__(self, "groups", ordered)
        if len(self.valence) != len(self.names):  # sets that were written without
            object.__setattr__(self, "valence", torch.full((len(self.names),), torch.nan))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What a clip may lack: the columns of `presence`."""
        return modalities_of(self.groups)

    def select(self, rows: Tensor) -> FeatureSet:
        """The clips numbered `rows` (int64), in that order."""
        order = rows.tolist()
        return FeatureSet(
            names=tuple(self.names[i] for i in order),
            identities=tuple(self.identities[i] for i in order),
            subsets=tuple(self.subsets[i] for i in order),
            labels=self.labels[rows],
            presence=self.presence[rows],
            groups={group: values[rows] for group, values in self.groups.items()},
            valence=self.valence[rows],
        )

    def with_groups(self, features: Mapping[str, Tensor]) -> FeatureSet:
        """The same clips with features [n, width] of other encoders too.

        A row of zeros stands for what a clip lacks, as MERTools' extractors write it.
        """
        there = [values.ne(0).any(dim=1, keepdim=True) for values in features.values()]
        presence = torch.cat([self.presence, *there], dim=1)
        return replace(self, presence=presence, groups={**self.groups, **features})

    def features(
        self, rows: Tensor, presence: Tensor, wanted: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Features by group of the clips `rows`, seen with only `presence` [rows, modalities].

        `wanted` are the groups asked for; None: all.
        """
        found = {}
        for group, values in self.groups.items():
            if wanted is not None and group not in wanted:
                continue
            if group == JOINT:
                found[group] = values[rows, joint_view(presence, self.modalities)].float()
            else:
                found[group] = values[rows].float()
        return found

    def inputs(self, presence: Tensor | None = None) -> tuple[Tensor, ...]:
        """What `Fusion` takes for all clips: features of each group, and the presence."""
        shown = self.presence if presence is None else self.presence & presence
        return (*self.features(torch.arange(len(self)), shown).values(), shown)

    def widths(self) -> dict[str, int]:
        """Feature width of each group."""
        return {group: values.shape[-1] for group, values in self.groups.items()}

    def save(self, folder: Path) -> None:
        """Writes `features.safetensors` and, last, `clips.json`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {stored_name(group): values for group, values in self.groups.items()}
        tensors |= {"labels": self.labels, "presence": self.presence, "valence": self.valence}
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(plain, folder / "features.safetensors.tmp")
        (folder / "features.safetensors.tmp").replace(folder / "features.safetensors")
        texts: dict[str, Sequence[str]] = {name: getattr(self, name) for name in TEXTS}
        if others := [group for group in self.groups if group not in STORED]:
            texts["groups"] = others  # in order, which safetensors does not keep
        (folder / "clips.json.tmp").write_text(json.dumps(texts, ensure_ascii=False), "utf-8")
        (folder / "clips.json.tmp").replace(folder / "clips.json")


TEXTS = ("names", "identities", "subsets")


def from_stored(tensors: Mapping[str, Tensor], **texts: Sequence[str]) -> FeatureSet:
    """The set whose tensors have their names on disk: STORED's, `labels`, `presence`, `valence`.

    `texts` are TEXTS and, where there are any, the foreign `groups` in order.
    """
    names = {name: group for group, name in STORED.items()}
    names |= {FOREIGN + group: group for group in texts.get("groups", ())}
    return FeatureSet(
        **{name: tuple(texts[name]) for name in TEXTS},
        labels=tensors["labels"],
        presence=tensors["presence"],
        groups={group: tensors[name] for name, group in names.items() if name in tensors},
        valence=tensors.get("valence", torch.zeros(0)),
    )


def joint_view(presence: Tensor, modalities: Sequence[str]) -> Tensor:
    """The view of JOINT_VIEWS [n] that each clip's joint feature is of, by its presence."""
    audio, text = (presence[:, modalities.index(name)] for name in ("audio", "text"))
    return torch.where(audio & text, 0, torch.where(audio, 1, 2))


def read_features(folder: Path) -> FeatureSet:
    """Reads what `FeatureSet.save` wrote.

    Raises:
        InvalidInputError: nothing lies there.
        BundleCorruptError: what lies there is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / "clips.json").is_file():
        raise InvalidInputError(
            f"{folder} holds no features",
            "features.safetensors and clips.json",
            "run the stage 'features' first",
        )
    texts, path = read_json(folder / "clips.json"), folder / "features.safetensors"
    try:
        return from_stored(load_file(path), **texts)
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise BundleCorruptError(
            f"{path} and clips.json are damaged ({type(error).__name__}: {error})",
            "the features of one set of clips",
            f"remove {folder} and extract them again",
        ) from None


def classes_in(run: Path, corpus: Path | None = None) -> tuple[str, ...]:
    """The classes of a run's labels: those of `corpus` if it is given, else as the run states
    them, else MER's six."""
    if corpus is not None:
        return classes_of(corpus)
    stated = _fusion_facts(run).get("labels")
    return tuple(stated) if stated else classes_of(run / "corpus")


def is_own_data(run: Path) -> bool:
    """Whether the run's fusion stage says that its data are somebody's own, and not drawn."""
    return bool(_fusion_facts(run).get("data"))


def _fusion_facts(run: Path) -> dict[str, Any]:
    path = run / "fusion" / "config.json"
    return read_json(path) if path.is_file() else {}


def test_splits(run: Path) -> tuple[str, ...]:
    """The test splits whose features lie in a run; there may be none."""
    found = [path.parent.name for path in (run / "features").glob("test*/clips.json")]
    return in_split_order(found)


def ranking_clips(run: Path, rank_on: str) -> FeatureSet | None:
    """The clips that rank the voters (`FusionConfig.rank_on`); None: out-of-fold predictions do.

    Raises:
        InvalidInputError: the run has no test split to rank on.
    """
    if rank_on == "out_of_fold":
        return None
    splits = ("val",) if rank_on == "validation" else test_splits(run)
    if not splits:
        raise InvalidInputError(
            "[fusion] rank_on is 'test', and the data has no test split",
            "labelled test clips",
            "set rank_on to 'out_of_fold' or 'validation'",
        )
    return join([read_features(run / "features" / split) for split in splits])


def join(parts: list[FeatureSet]) -> FeatureSet:
    """The clips of all parts, in order."""
    texts = {name: tuple(v for p in parts for v in getattr(p, name)) for name in TEXTS}
    groups = {g: torch.cat([part.groups[g] for part in parts]) for g in parts[0].groups}
    labels, presence, valence = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("labels", "presence", "valence")
    )
    return FeatureSet(**texts, labels=labels, presence=presence, groups=groups, valence=valence)
