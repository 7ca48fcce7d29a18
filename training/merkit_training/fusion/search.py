"""Search for a head's options, judged by out-of-fold predictions and never by a test clip.

MERTools draws from a small grid and reports the best draw's test score; chosen on what it is then
reported on, more draws alone would raise it. Here a trial's worth is the WAF of clips that its
fits did not see. The trials lie in a database beside the run, so that a killed search goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from merkit.errors import InvalidInputError
from merkit.voting import NOBODY, ranked_mode
from merkit_training.fusion.config import MERBENCH_FUSION, BranchConfig, FusionConfig
from merkit_training.fusion.dataset import FeatureSet, read_features
from merkit_training.fusion.train import labels_of, majority, out_of_fold
from merkit_training.metrics import waf
from merkit_training.runs import write_bytes, write_json

Sampler = Literal["mertools", "optuna"]
GRID: Mapping[str, tuple[float, ...]] = {
    "hidden": (64, 128, 256),
    "dropout": (0.2, 0.3, 0.4, 0.5),
    "lr": (1e-3, 1e-4),
}
"""MERTools' `toolkit/model-tune.yaml` for `attention`; the rest is as MERBench trains."""
WIDTHS = (32, 64, 128, 256)
RANGES: Mapping[str, tuple[float, float, bool]] = {
    "dropout": (0.0, 0.6, False),
    "lr": (1e-4, 1e-2, True),
    "weight_decay": (1e-6, 1e-1, True),
    "modality_dropout": (0.0, 0.4, False),
    "balance": (0.0, 1.0, False),
    "label_smoothing": (0.0, 0.2, False),
}
"""Lowest and highest value, and whether in logarithmic steps, of what Optuna's TPE varies."""


def search(
    run: Path,
    out: Path,
    base: FusionConfig,
    trials: int,
    sampler: Sampler,
    seed: int,
    classes: int,
) -> dict[str, Any]:
    """Runs trials until there are `trials` finished ones; writes and returns the best.

    Args:
        run: with the features of `train` and `val`.
        out: for SAMPLER.db, SAMPLER.json (all trials, best first) and SAMPLER.toml (the best as
            tables of a recipe).
        base: options that are not varied; with `mertools` only its voters and folds count.
        trials: how many in all, those of earlier calls included.
        sampler: random draws from MERTools' grid, or Optuna's TPE.
        seed: of draws, folds and weights.
        classes: number of classes.

    Raises:
        InvalidInputError: the run has no features, or the database is another search's.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    data, validation = (read_features(run / "features" / s) for s in ("train", "val"))
    out.mkdir(parents=True, exist_ok=True)
    if sampler == "mertools":
        kept = {name: getattr(base, name) for name in ("voters", "groups", "folds", "epochs")}
        base = replace(MERBENCH_FUSION, **kept)
    study = _study(out / f"{sampler}.db", sampler, seed, base)

    def trial(trial: Any) -> float:
        config = config_of(base, _draw(trial, sampler))
        return held_out_waf(data, validation, config, seed, classes)

    complete = optuna.trial.TrialState.COMPLETE
    left = trials - len(study.get_trials(deepcopy=False, states=(complete,)))
    if left > 0:
        study.optimize(trial, n_trials=left)
    done = sorted(study.get_trials(states=(complete,)), key=lambda t: -t.value)
    best = done[0]
    found = {
        "sampler": sampler,
        "judged_by": "WAF of out-of-fold predictions on the training clips; no test clip was used",
        "trials": [{"waf": t.value, "number": t.number, **t.params} for t in done],
    }
    write_json(out / f"{sampler}.json", found)
    write_bytes(out / f"{sampler}.toml", _toml(best.params, sampler, best.value).encode())
    return {"waf": best.value, **best.params}


def held_out_waf(
    data: FeatureSet, validation: FeatureSet, config: FusionConfig, seed: int, classes: int
) -> float:
    """WAF of the ranked vote of all voters on clips that their fits did not see."""
    truth, fallback = data.labels.numpy(), majority(data)
    judged = []
    for voter in config.branches():
        logits, voted = out_of_fold(voter.groups, data, validation, config, seed, classes)
        score = waf(truth, labels_of(logits, voted, fallback), classes)
        judged.append((score, (logits.softmax(dim=1) * voted[:, None]).numpy()))
    judged.sort(key=lambda pair: -pair[0])
    label, _ = ranked_mode(np.stack([scores for _, scores in judged], axis=1))
    return waf(truth, np.where(label == NOBODY, fallback, label), classes)


def config_of(base: FusionConfig, drawn: Mapping[str, Any]) -> FusionConfig:
    """`base` with the values of a draw, each in the table it belongs to."""
    branch = {k: v for k, v in drawn.items() if k in _names(BranchConfig)}
    rest = {k: v for k, v in drawn.items() if k not in branch}
    return replace(base, branch=replace(base.branch, **branch), **rest)


def _draw(trial: Any, sampler: Sampler) -> dict[str, Any]:
    if sampler == "mertools":
        return {name: trial.suggest_categorical(name, list(c)) for name, c in GRID.items()}
    drawn = {n: trial.suggest_float(n, lo, hi, log=log) for n, (lo, hi, log) in RANGES.items()}
    return {"hidden": trial.suggest_categorical("hidden", list(WIDTHS)), **drawn}


def _study(path: Path, sampler: Sampler, seed: int, base: FusionConfig) -> Any:
    """The study in the database, new or continued; a stranger's is refused."""
    import optuna

    logging.getLogger("alembic").setLevel(logging.WARNING)
    study = optuna.create_study(
        study_name=sampler, storage=f"sqlite:///{path}", direction="maximize", load_if_exists=True
    )
    # A killed search must not draw again what it has drawn: the seed moves on with the trials.
    moved = seed + len(study.get_trials(deepcopy=False))
    study.sampler = (
        optuna.samplers.RandomSampler(moved)
        if sampler == "mertools"
        else optuna.samplers.TPESampler(seed=moved)
    )
    about = repr((base, seed))
    if study.user_attrs.get("about", about) != about:
        raise InvalidInputError(
            f"{path} holds a search with other options or another seed",
            "the same recipe, voters and seed",
            "remove the file, or choose another --out",
        )
    study.set_user_attr("about", about)
    return study


def _toml(drawn: Mapping[str, Any], sampler: Sampler, score: float) -> str:
    """A draw as tables of a recipe."""
    branch = {k: v for k, v in drawn.items() if k in _names(BranchConfig)}
    rest = {k: v for k, v in drawn.items() if k not in branch}
    lines = [f"# out-of-fold WAF {score:.4f} ({sampler})", "[fusion]"]
    lines += [f"{name} = {value!r}" for name, value in rest.items()]
    lines += ["", "[fusion.branch]", *(f"{name} = {value!r}" for name, value in branch.items())]
    return "\n".join(lines) + "\n"


def _names(table: type[Any]) -> Sequence[str]:
    return [f.name for f in fields(table)]
