"""What mining leaves behind is a run that the exporter takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from mining_run import clips
from random_run import SMALLEST, write_random_run

from merkit_export.graphs import export_step
from merkit_export.origin import provenance, read_origin
from merkit_export.walk import torch_steps
from merkit_training.fusion.dataset import FeatureSet
from merkit_training.mining.config import MiningConfig
from merkit_training.mining.session import mine


def widened(data: FeatureSet, widths: dict[str, int]) -> FeatureSet:
    """The same clips with features of the widths that a run's encoders make."""
    groups = {}
    for group, width in widths.items():
        own = data.groups[group]
        repeats = [1] * (own.ndim - 1) + [-(-width // own.shape[-1])]
        groups[group] = own.repeat(repeats)[..., :width].contiguous()
    return replace(data, groups=groups)


def test_a_mined_run_exports(tmp_path: Path) -> None:
    run = write_random_run(tmp_path / "run")
    widths = json.loads((run / "fusion" / "config.json").read_text())["widths"]
    for seed, split in enumerate(("train", "val", "test_multi")):
        widened(clips(split, 40, seed), widths).save(run / "features" / split)
    pool = widened(clips("pool", 60, 9), widths)
    pool.save(tmp_path / "pool")
    mine(run, [tmp_path / "pool"], tmp_path / "out", MiningConfig(rounds=1), [0])

    origin = read_origin(tmp_path / "out" / "run")
    assert [v["waf"] for v in origin.voters] == sorted(v["waf"] for v in origin.voters)[::-1]
    before, after = (provenance(read_origin(r))["checkpoints"] for r in (run, origin.run))
    assert {name for name in before if before[name] != after[name]} == {"fusion"}
    assert provenance(origin)["recipe"] == json.loads(json.dumps(SMALLEST.to_json()))

    names = origin.contract.step("fusion").inputs
    given = {name: t.numpy() for name, t in zip(names, pool.inputs(), strict=True)}
    scores = torch_steps(origin.contract, origin.modules)["fusion"](given)["branch_scores"]
    assert np.isfinite(scores).all()
    assert len(np.unique(np.asarray(scores).argmax(axis=2))) > 1
    example = {name: value[:3] for name, value in given.items()}
    model = export_step(
        origin.modules["fusion"], origin.contract.step("fusion"), origin.contract, example
    )
    assert {e.key for e in model.metadata_props} >= {"contract_id"}
