"""The stage `fusion`: fits what is deployed, then measures it, and writes both.

Fitting knows nothing of tables and tables know nothing of run folders' cards; the stage is where
the two meet.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from merkit.errors import InvalidInputError
from merkit_training.fusion.calibration import abstention, calibrated, report
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.dataset import FeatureSet, ranking_clips, read_features
from merkit_training.fusion.tables import OWN, write_tables
from merkit_training.fusion.train import fit_fusion
from merkit_training.labels import classes_of
from merkit_training.runs import read_json, save_step, stage_seed

if TYPE_CHECKING:
    from merkit_training.recipe import Recipe


RANKED_ON = {
    "out_of_fold": "weighted average F1 of out-of-fold predictions on the training clips",
    "validation": "weighted average F1 on the validation clips",
    "test": "weighted average F1 on the TEST clips, as the seed does: its test scores are too high",
}
"""What a run and its bundle say of the ranking, by `FusionConfig.rank_on`."""


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """The stage `fusion`: writes run/fusion with the modality table; returns the scores."""
    started = time.monotonic()
    torch.set_num_threads(1)  # the matrices are small: more threads only wait for one another
    config, seed = recipe.fusion, stage_seed(recipe, "fusion")
    data, validation = (read_features(run / "features" / split) for split in ("train", "val"))
    _refuse_missing(config, data)
    labels = classes_of(corpus)
    ranking = ranking_clips(run, config.rank_on)
    model, held_out, scores = fit_fusion(
        data, validation, config, seed, len(labels), ranking=ranking
    )
    _write_held_out(run / "fusion", held_out, data.names)
    voters = [
        {"name": v.name, "groups": list(v.groups), "waf": score, "temperature": temperature}
        for v, score, temperature in zip(
            model.voters, scores, model.temperatures.tolist(), strict=True
        )
    ]
    facts = {
        "voters": voters,
        "ranked_on": RANKED_ON[config.rank_on],
        "labels": list(labels),
        "widths": data.widths(),
        "branch": asdict(config.branch),
    }
    scores_of = calibrated(held_out, model.temperatures)
    truth = data.labels.numpy()
    if found := abstention(scores_of, truth, config.coverage):
        facts["abstention"] = found
    if read_json(corpus / "card.json").get("kind") == OWN:
        facts["data"] = OWN
    summary = {f"{config.rank_on}_{v['name']}": v["waf"] for v in voters}
    summary |= write_tables(config, corpus, run, model, seed)
    judged = report(scores_of, truth, labels)
    card = {
        "scores": summary,
        "seed": seed,
        "out_of_fold": judged,
        "seconds": round(time.monotonic() - started, 1),
    }
    if unknown := sum(name.startswith("/") for name in data.identities):
        card["warning"] = (
            f"the speakers of {unknown} of {len(data)} training clips are unknown: one may "
            "stand in several folds, and out-of-fold scores may be too high"
        )
        print(f"fusion: {card['warning']}", flush=True)
    save_step(run, "fusion", facts, model.state_dict(), card)
    return summary


def _refuse_missing(config: FusionConfig, data: FeatureSet) -> None:
    asked = dict.fromkeys(g for voter in config.branches() for g in voter.groups)
    if absent := [group for group in asked if group not in data.groups]:
        raise InvalidInputError(
            f"the voters read {', '.join(absent)}, and the features of the run are of "
            f"{', '.join(data.groups)}",
            "voters of groups that are there",
            "correct [fusion] voters, or bring the features: merkit-train fuse",
        )


def _write_held_out(folder: Path, held_out: dict[str, Tensor], names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "out_of_fold.tmp"
    save_file(held_out, temporary, metadata={"names": json.dumps(list(names), ensure_ascii=False)})
    temporary.replace(folder / "out_of_fold.safetensors")
