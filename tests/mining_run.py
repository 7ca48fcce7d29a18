"""A finished run's features and cards, without encoders: all that mining reads of a run."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
from synthetic_features import make_features

from merkit.pipeline import SEED_VOTERS
from merkit_training.fusion.config import BranchConfig, FusionConfig
from merkit_training.fusion.dataset import FeatureSet
from merkit_training.labels import MER6
from merkit_training.recipe import recipe_from
from merkit_training.runs import write_json

FUSION = FusionConfig(
    branch=BranchConfig(hidden=16, dropout=0.1), epochs=10, batch_size=10, lr=1e-2
)
STRONG = dict.fromkeys("atvjV", 1.0)


def named(data: FeatureSet, split: str) -> FeatureSet:
    """The same clips under names of their split, each of a speaker of its own."""
    names = tuple(f"{split}_{i:04d}" for i in range(len(data)))
    return replace(data, names=names, identities=names)


def clips(split: str, count: int, seed: int) -> FeatureSet:
    """Clips of six well separated classes."""
    return named(make_features(count, seed=seed, width=6, strengths=STRONG), split)


def write_mining_run(run: Path, train: int = 60) -> Path:
    """Writes features of train, val and two test splits, the recipe and the fusion's facts."""
    for seed, (split, count) in enumerate(
        {"train": train, "val": 40, "test_multi": 30, "test_semi": 30}.items()
    ):
        clips(split, count, seed).save(run / "features" / split)
    recipe = recipe_from({"run": {"name": "mini"}, "fusion": asdict(FUSION)})
    write_json(run / "recipe.json", recipe.to_json())
    write_json(run / "run.json", {"name": "mini", "seed": 0, "data": None, "stages": {}})
    voters = [{"name": v.name, "groups": list(v.groups)} for v in reversed(SEED_VOTERS)]
    facts = {"voters": voters, "labels": list(MER6), "branch": asdict(FUSION.branch)}
    write_json(run / "fusion" / "config.json", facts)
    return run


def write_pool(folder: Path, count: int = 80, seed: int = 50) -> FeatureSet:
    """Writes a pool whose labels are hidden; returns it with them."""
    data = clips("pool", count, seed)
    replace(data, labels=torch.full_like(data.labels, -1)).save(folder)
    return data
