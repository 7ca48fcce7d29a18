"""The modality table: does the vote beat every single modality, and by more than chance?

A system of four branches must earn its cost. Every system here is a head on the same features,
trained and selected alike, repeated over seeds and folds (the encoders stay as they are); the
difference from the best single feature group carries a paired bootstrap interval. Of synthetic
clips the ceilings are known and stand beside.

    python -m merkit_training.fusion.tables RUN > docs/modality-table.md
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from merkit.voting import NOBODY, ranked_mode
from merkit_training.corpus import in_split_order
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.dataset import (
    FeatureSet,
    ranking_clips,
    read_features,
    test_splits,
)
from merkit_training.fusion.model import Fusion
from merkit_training.fusion.page import ON_TEST, page
from merkit_training.fusion.train import (
    fit_branch,
    fit_fusion,
    labels_of,
    majority,
    predict,
)
from merkit_training.labels import classes_of
from merkit_training.metrics import accuracy, brier, ece, paired_bootstrap, waf
from merkit_training.runs import read_json, write_json

WORKERS = 2
OWN = "own data"
"""`kind` in the card of a corpus that merkit_training.data.prepare wrote."""
Labels = NDArray[np.int64]
Predictions = dict[str, dict[str, Labels]]
"""Labels [n] by system and test split."""

VOTE, MEAN, LOGISTIC, MAJORITY = "vote", "mean probability", "logistic regression", "majority class"
WEIGHTED = "weighted vote"
MANY = 4
"""Modalities of which all subsets are looked at; of more, all, all but one, and one."""


def write_tables(
    config: FusionConfig, corpus: Path, run: Path, deployed: Fusion, seed: int
) -> dict[str, float]:
    """Writes run/fusion/tables.json and tables.md; returns the vote's scores and its gain.

    Args:
        config: how the heads are trained, over how many seeds.
        corpus: holds `card.json` with the ceilings.
        run: holds the features.
        deployed: the fusion of the first seed, which is not fitted again.
        seed: the first of `config.table_seeds` seeds.
    """
    names, classes = test_splits(run), len(classes_of(corpus))
    others = range(seed + 1, seed + max(1, config.table_seeds)) if names else ()
    spawn = multiprocessing.get_context("spawn")  # a fork of a threaded torch process may hang
    with ProcessPoolExecutor(WORKERS, mp_context=spawn) as pool:
        pending = [pool.submit(one_seed, run, config, other, classes) for other in others]
        first = [one_seed(run, config, seed, classes, deployed)] if names else []
        runs = [*first, *(p.result() for p in pending)]
    tests = {name: read_features(run / "features" / name) for name in names}
    truth = {name: data.labels.numpy() for name, data in tests.items()}
    fallback = majority(read_features(run / "features" / "train"))
    card = read_json(corpus / "card.json")
    tables: dict[str, Any] = {
        "seeds": len(runs),
        "clips": {name: len(data) for name, data in tests.items()},
        "ceilings": card.get("ceilings", {}),
        "own_data": card.get("kind") == OWN,
        "groups": list(deployed.groups),
        "voters": [v.name for v in deployed.voters],
        "rank_on": config.rank_on,
        "systems": {
            system: spread(truth, [r[system] for r in runs], classes)
            for system in (runs[0] if runs else ())
        },
        "subsets": by_subset(deployed, tests, fallback, classes),
        "evidence": by_evidence(tests, [r[VOTE] for r in runs]),
        "calibration": calibration(deployed, tests),
        "valence": valence_errors(deployed, tests),
    }
    options = (deployed.groups, config.bootstrap, classes)
    tables["gain"] = gains(truth, runs, tables["systems"], *options)
    write_json(run / "fusion" / "tables.json", tables)
    temporary = run / "fusion" / "tables.md.tmp"
    temporary.write_text(page(tables, names), "utf-8")
    temporary.replace(run / "fusion" / "tables.md")
    scores = {f"{name}_vote": tables["systems"][VOTE][name]["waf"] for name in names}
    return scores | {f"{name}_gain": tables["gain"][name]["difference"] for name in names}


def one_seed(
    run: Path, config: FusionConfig, seed: int, classes: int, fusion: Fusion | None = None
) -> Predictions:
    """Every system's labels on every test split under one seed."""
    torch.set_num_threads(1)
    data, validation = (read_features(run / "features" / s) for s in ("train", "val"))
    tests = {name: read_features(run / "features" / name) for name in test_splits(run)}
    if fusion is None:
        ranking = ranking_clips(run, config.rank_on)
        fusion, _, _ = fit_fusion(data, validation, config, seed, classes, ranking=ranking)
    fallback = majority(data)
    found: Predictions = {MAJORITY: {n: np.full(len(t), fallback) for n, t in tests.items()}}
    for group in data.groups:
        branch = fit_branch([group], data, validation, config, seed, classes)
        found[group] = {
            n: labels_of(*predict(branch, [group], t), fallback) for n, t in tests.items()
        }
    found[LOGISTIC] = logistic(data, tests, seed)
    weights = branch_scores(fusion, validation, fallback, classes)
    for name, test in tests.items():
        for system, labels in voted(fusion, test, fallback, weights=weights).items():
            found.setdefault(system, {})[name] = labels
        order = np.argsort(-branch_scores(fusion, test, fallback, classes), kind="stable")
        label, _ = ranked_mode(probabilities(fusion, test)[:, order])
        found.setdefault(ON_TEST, {})[name] = np.where(label == NOBODY, fallback, label)
    return found


def branch_scores(
    fusion: Fusion, data: FeatureSet, fallback: int, classes: int
) -> NDArray[np.float64]:
    """WAF [voters] of each branch."""
    labels, truth = voted(fusion, data, fallback), data.labels.numpy()
    return np.array([waf(truth, labels[voter.name], classes) for voter in fusion.voters])


def voted(
    fusion: Fusion,
    data: FeatureSet,
    fallback: int,
    shown: torch.Tensor | None = None,
    weights: NDArray[np.float64] | None = None,
) -> dict[str, Labels]:
    """Labels of each branch, of their mean probability and of the vote.

    With `weights` [voters] also of the weighted vote: the label whose voters weigh most together.
    """
    scores = probabilities(fusion, data, shown)
    spoke = np.asarray((scores != 0).any(axis=2))
    found = {
        voter.name: np.where(spoke[:, i], scores[:, i].argmax(axis=1), fallback)
        for i, voter in enumerate(fusion.voters)
    }
    someone = spoke.any(axis=1)
    label, _ = ranked_mode(scores)
    found[MEAN] = np.where(someone, scores.sum(axis=1).argmax(axis=1), fallback)
    if weights is not None:
        ballots = (scores == scores.max(axis=2, keepdims=True)) & spoke[..., None]
        heaviest = (ballots * weights[:, None]).sum(axis=1).argmax(axis=1)
        found[WEIGHTED] = np.where(someone, heaviest, fallback)
    found[VOTE] = np.where(label == NOBODY, fallback, label)
    return found


def probabilities(
    fusion: Fusion, data: FeatureSet, shown: torch.Tensor | None = None
) -> NDArray[np.float32]:
    """`branch_scores` [n, voters, classes]."""
    with torch.no_grad():
        scores: NDArray[np.float32] = fusion.judge(*data.inputs(shown))[0].numpy()
    return scores


def logistic(data: FeatureSet, tests: Mapping[str, FeatureSet], seed: int) -> dict[str, Labels]:
    """The plain baseline: logistic regression on all features side by side.

    Each seed fits a random nine tenths of the clips, for the solver has no randomness of its own.
    """

    def rows(part: FeatureSet) -> NDArray[np.float32]:
        return torch.cat(part.inputs()[:-1], dim=1).numpy()

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    chosen = np.random.default_rng(seed).choice(len(data), round(0.9 * len(data)), replace=False)
    labels = data.labels.numpy()[chosen]
    if len(set(labels.tolist())) < 2:  # a handful of clips
        return {name: np.full(len(test), labels[0]) for name, test in tests.items()}
    model.fit(rows(data)[chosen], labels)
    return {name: np.asarray(model.predict(rows(test))) for name, test in tests.items()}


def spread(
    truth: Mapping[str, Labels], runs: Sequence[Mapping[str, Labels]], classes: int
) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds of WAF, and mean accuracy, by split."""
    found = {}
    for name, labels in truth.items():
        scores = [waf(labels, r[name], classes) for r in runs]
        correct = [accuracy(labels, r[name]) for r in runs]
        sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        found[name] = {"waf": float(np.mean(scores)), "sd": sd, "accuracy": float(np.mean(correct))}
    return found


def gains(
    truth: Mapping[str, Labels],
    runs: Sequence[Predictions],
    systems: Mapping[str, Mapping[str, Mapping[str, float]]],
    groups: Sequence[str],
    resamples: int,
    classes: int,
) -> dict[str, dict[str, Any]]:
    """The vote against the group that is best on the very split (the hardest comparison)."""
    found = {}
    for name, labels in truth.items():
        best = max(groups, key=lambda g, n=name: systems[g][n]["waf"])  # type: ignore[misc]
        ours, theirs = (np.stack([r[s][name] for r in runs]) for s in (VOTE, best))
        interval = paired_bootstrap(labels, ours, theirs, classes, resamples)
        noise = systems[VOTE][name]["sd"] + systems[best][name]["sd"]
        found[name] = {
            "best_group": best,
            "difference": interval.difference,
            "low": interval.low,
            "high": interval.high,
            "beyond_spread": interval.difference > noise,
            "beyond_chance": interval.is_gain,
        }
    return found


def by_subset(
    fusion: Fusion, tests: Mapping[str, FeatureSet], fallback: int, classes: int
) -> dict[str, dict[str, float]]:
    """WAF of the deployed vote when only some modalities are given."""
    found = {}
    names = next(iter(tests.values())).modalities if tests else ()
    for subset, flags in subsets(names).items():
        shown = torch.tensor([flags])
        labels = {n: voted(fusion, t, fallback, shown)[VOTE] for n, t in tests.items()}
        found[subset] = {n: waf(t.labels.numpy(), labels[n], classes) for n, t in tests.items()}
    return found


def subsets(modalities: Sequence[str]) -> dict[str, tuple[bool, ...]]:
    """What a caller may give, as masks of presence: every subset of a few modalities; of many all,
    all but one of them, and one alone."""
    number, found = len(modalities), {}
    for flags in (
        itertools.product((True, False), repeat=number) if number <= MANY else _few(number)
    ):
        if any(flags):
            shown = (m for m, is_shown in zip(modalities, flags, strict=True) if is_shown)
            found["+".join(shown)] = flags
    return found


def _few(number: int) -> list[tuple[bool, ...]]:
    one = [tuple(i == k for i in range(number)) for k in range(number)]
    return [(True,) * number, *(tuple(not own for own in flags) for flags in one), *one]


def by_evidence(
    tests: Mapping[str, FeatureSet], runs: Sequence[Mapping[str, Labels]]
) -> dict[str, dict[str, float]]:
    """Accuracy of the vote where the modalities agree, in part, or contradict one another."""
    found: dict[str, dict[str, float]] = {}
    for name, test in tests.items():
        kinds, labels = np.array(test.subsets), test.labels.numpy()
        for kind in sorted(set(test.subsets) - {""}):
            rows = kinds == kind
            correct = [accuracy(labels[rows], r[name][rows]) for r in runs]
            found.setdefault(kind, {})[name] = float(np.mean(correct))
    return found


def calibration(fusion: Fusion, tests: Mapping[str, FeatureSet]) -> dict[str, dict[str, float]]:
    """ECE and Brier score of the deployed vote's scores and of the mean probability."""
    found: dict[str, dict[str, float]] = {VOTE: {}, MEAN: {}}
    for name, test in tests.items():
        scores = probabilities(fusion, test)
        rows = (scores != 0).any(axis=(1, 2))
        if not rows.any():
            continue
        truth = test.labels.numpy()[rows]
        speaking = (scores != 0).any(axis=2).sum(axis=1, keepdims=True)
        means = scores.sum(axis=1) / np.maximum(speaking, 1)
        for system, each in ((VOTE, ranked_mode(scores)[1]), (MEAN, means)):
            found[system][f"{name} ECE"] = ece(truth, each[rows])
            found[system][f"{name} Brier"] = brier(truth, each[rows])
    return found


def valence_errors(fusion: Fusion, tests: Mapping[str, FeatureSet]) -> dict[str, float]:
    """Mean squared error of the valence by split, of those whose clips are labelled with it."""
    found = {}
    for name, test in tests.items():
        truth = test.valence.numpy()
        if fusion.config.valence and not np.isnan(truth).all():
            found[name] = float(np.nanmean((fusion.valence(*test.inputs()) - truth) ** 2))
    return found


if __name__ == "__main__":
    tables_of_run = read_json(Path(sys.argv[1]) / "fusion" / "tables.json")
    print(page(tables_of_run, in_split_order(tables_of_run["clips"])), end="")
