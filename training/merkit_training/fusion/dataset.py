"""Features of clips as they lie in a run, and what they would be with a modality hidden.

The joint encoder reads sound and words together, so hiding the words of a clip changes its joint
feature rather than removing it. A fusion head trained without that never sees the joint feature of
sound alone, which it will meet in use. So three joint features are kept for each clip.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merkit.contract import MODALITIES
from merkit.errors import InvalidInputError
from merkit.pipeline import GROUPS
from merkit_training.corpus import in_split_order

JOINT_VIEWS = ("both", "audio", "text")
"""Second axis of the stored joint features: what the joint encoder was given."""

_AUDIO, _TEXT = MODALITIES.index("audio"), MODALITIES.index("text")


@dataclass(frozen=True)
class FeatureSet:
    """Features of n clips; rows of absent modalities are zeros."""

    names: tuple[str, ...]
    identities: tuple[str, ...]  # of the speakers, "/clip" where unknown; folds never share one
    subsets: tuple[str, ...]  # aligned, mixed or conflicting evidence; "" where unknown
    labels: Tensor  # int64 [n]
    presence: Tensor  # bool [n, 3], columns as in `contract.MODALITIES`
    audio_features: Tensor  # float32 (float16 in large pools) [n, width], like the next three
    text_features: Tensor
    face_features: Tensor
    face_features_large: Tensor
    joint_views: Tensor  # float32 [n, 3, width], second axis as in JOINT_VIEWS
    valence: Tensor = field(default_factory=lambda: torch.zeros(0))  # float32 [n], NaN: unlabelled

    def __post_init__(self) -> None:
        if len(self.valence) != len(self.names):  # sets that were written without
            object.__setattr__(self, "valence", torch.full((len(self.names),), torch.nan))

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: Tensor) -> FeatureSet:
        """The clips numbered `rows` (int64), in that order."""
        order = rows.tolist()
        chosen: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            tensor = isinstance(value, Tensor)
            chosen[f.name] = value[rows] if tensor else tuple(value[i] for i in order)
        return FeatureSet(**chosen)

    def features(self, rows: Tensor, presence: Tensor) -> dict[str, Tensor]:
        """Features by group letter of the clips `rows`, seen with only `presence` [rows, 3]."""
        audio, text = presence[:, _AUDIO], presence[:, _TEXT]
        view = torch.where(audio & text, 0, torch.where(audio, 1, 2))
        given = {g: getattr(self, name)[rows].float() for g, name in GROUPS.items() if g != "j"}
        return given | {"j": self.joint_views[rows, view].float()}

    def inputs(self, presence: Tensor | None = None) -> tuple[Tensor, ...]:
        """What `Fusion.forward` takes for all clips: five features and the presence."""
        shown = self.presence if presence is None else self.presence & presence
        features = self.features(torch.arange(len(self)), shown)
        return (*(features[g] for g in GROUPS), shown)

    def widths(self) -> dict[str, int]:
        """Feature width of each group."""
        own = {g: getattr(self, name).shape[-1] for g, name in GROUPS.items() if g != "j"}
        return {g: own.get(g, self.joint_views.shape[-1]) for g in GROUPS}

    def save(self, folder: Path) -> None:
        """Writes `features.safetensors` and, last, `clips.json`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: v.contiguous() for k, v in values.items() if isinstance(v, Tensor)}
        save_file(tensors, folder / "features.safetensors.tmp")
        (folder / "features.safetensors.tmp").replace(folder / "features.safetensors")
        texts = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
        (folder / "clips.json.tmp").write_text(json.dumps(texts, ensure_ascii=False), "utf-8")
        (folder / "clips.json.tmp").replace(folder / "clips.json")


def read_features(folder: Path) -> FeatureSet:
    """Reads what `FeatureSet.save` wrote; InvalidInputError where nothing lies."""
    from safetensors.torch import load_file

    if not (folder / "clips.json").is_file():
        raise InvalidInputError(
            f"{folder} holds no features",
            "features.safetensors and clips.json",
            "run the stage 'features' first",
        )
    texts = json.loads((folder / "clips.json").read_text("utf-8"))
    values: dict[str, Any] = {k: tuple(v) for k, v in texts.items()}
    return FeatureSet(**values, **load_file(folder / "features.safetensors"))


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
    merged: dict[str, Any] = {}
    for f in fields(FeatureSet):
        values = [getattr(part, f.name) for part in parts]
        tensors = isinstance(values[0], Tensor)
        merged[f.name] = torch.cat(values) if tensors else tuple(v for p in values for v in p)
    return FeatureSet(**merged)
