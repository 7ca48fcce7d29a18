"""What each addition to MERBench's attention is worth, alone and together with the others.

Ours differs from the published network in six ways. Reported only as a whole, a useless one would
hide behind a good one. Each row here is one branch under MERBench's own training, so that a
difference between two rows is the addition and nothing else; the last row is trained our way too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from merkit.errors import InvalidInputError
from merkit_training.fusion.config import MERBENCH_FUSION, FusionConfig
from merkit_training.fusion.dataset import FeatureSet, is_own_data, read_features, test_splits
from merkit_training.fusion.tables import subsets
from merkit_training.fusion.train import fit_branch, labels_of, majority, predict
from merkit_training.metrics import paired_bootstrap, waf
from merkit_training.runs import read_json, write_json

BASE, TOGETHER, OURS = "merbench", "all together", "all together, trained our way"
RESAMPLES = 2000


@dataclass(frozen=True)
class Addition:
    """What one addition changes in the recipe's tables [fusion.branch] and [fusion]."""

    branch: Mapping[str, Any] = field(default_factory=dict)
    fusion: Mapping[str, Any] = field(default_factory=dict)


ADDITIONS = {
    "presence masks": Addition({"masked": True}),
    "normalised gate": Addition({"gate": "softmax"}),
    "standardisation": Addition({"standardise": True}),
    "residual": Addition({"residual": True}),
    "modality dropout": Addition(fusion={"modality_dropout": 0.15}),
    "class balance": Addition(fusion={"balance": 0.5}),
}


def rows(epochs: int) -> dict[str, FusionConfig]:
    """The configuration of each row of the study, MERBench first; all but the last train so long.

    MERBench trains 100 epochs and keeps the best.
    """
    base = replace(MERBENCH_FUSION, epochs=epochs)
    found = {BASE: base}
    found |= {f"+ {name}": _with(base, [one]) for name, one in ADDITIONS.items()}
    found[TOGETHER] = _with(base, list(ADDITIONS.values()))
    own = FusionConfig()
    branch = replace(own.branch, hidden=base.branch.hidden, dropout=base.branch.dropout)
    return found | {OURS: replace(own, branch=branch)}


def _with(base: FusionConfig, additions: Sequence[Addition]) -> FusionConfig:
    for one in additions:
        base = replace(base, **{**one.fusion, "branch": replace(base.branch, **one.branch)})
    return base


def run_ablation(
    run: Path, out: Path, groups: Sequence[str], seeds: Sequence[int], epochs: int, classes: int
) -> None:
    """Trains and measures every row under every seed into `out`; finished ones are kept."""
    torch.set_num_threads(1)
    data, validation = (read_features(run / "features" / s) for s in ("train", "val"))
    tests = {name: read_features(run / "features" / name) for name in test_splits(run)}
    if len(data.modalities) < 2:
        raise InvalidInputError(
            f"{run} has features of {groups[0]} alone",
            "two feature groups or more: the study leaves some away",
            "add features of another encoder",
        )
    todo = [(r, c, seed) for seed in seeds for r, c in rows(epochs).items()]
    for row, config, seed in tqdm(todo, desc="ablation", unit="fit"):
        path = _cell(out, row, seed)
        if path.exists():
            continue
        branch = fit_branch(groups, data, validation, config, seed, classes)
        fallback = majority(data)
        measured: dict[str, Any] = {"labels": {}, "missing": {}}
        for name, test in tests.items():
            measured["labels"][name] = labels_of(*predict(branch, groups, test), fallback).tolist()
            measured["missing"][name] = float(
                np.mean(
                    [
                        _waf(branch, groups, _hidden(test, shown), fallback, classes)
                        for shown in subsets(test.modalities).values()
                        if not all(shown)
                    ]
                )
            )
        write_json(path, measured)


def ablation_page(
    run: Path, out: Path, groups: Sequence[str], seeds: Sequence[int], epochs: int, classes: int
) -> str:
    """Markdown of what has been measured."""
    names = test_splits(run)
    truth = {n: read_features(run / "features" / n).labels.numpy() for n in names}
    cells = {
        row: [read_json(_cell(out, row, seed)) for seed in seeds]
        for row in rows(epochs)
        if all(_cell(out, row, seed).exists() for seed in seeds)
    }
    head = [*(f"`{n}`" for n in names), *(f"`{n}`, missing" for n in names)]
    lines = ["| row | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for row, found in cells.items():
        scores = [[waf(truth[n], np.array(c["labels"][n]), classes) for c in found] for n in names]
        scores += [[c["missing"][n] for c in found] for n in names]
        told = [f"{np.mean(s):.3f} ± {_sd(s):.3f}" for s in scores]
        lines.append(f"| {row} | " + " | ".join(told) + " |")
    verdicts = [
        f"- {row}: " + "; ".join(_against(cells[BASE], found, truth, n, classes) for n in names)
        for row, found in cells.items()
        if row != BASE and BASE in cells
    ]
    parts = [
        "# Each addition to MERBench's attention",
        f"One branch, {'+'.join(groups)}, on a run's features; {epochs} epochs, the best chosen on "
        f"`val`; weighted average F1, mean ± standard deviation over {len(seeds)} seeds. Every row "
        "but the last is trained as MERBench trains (Adam, batches of 32, best epoch by WAF); "
        f"the last by AdamW with a cosine, {FusionConfig().epochs} epochs in batches of "
        f"{FusionConfig().batch_size}. "
        f"*Missing*: mean over {_incomplete(run)}."
        + ("" if is_own_data(run) else " Figures of a synthetic corpus say nothing about people."),
        "\n".join(lines),
        "## Against the published network",
        "Difference in WAF on complete clips, with the 95 % interval of a paired bootstrap over "
        "clips. *Helps* and *hurts*: the interval excludes zero and every seed agrees in sign. "
        "Otherwise the data do not decide.",
        "\n".join(verdicts),
    ]
    return "\n\n".join(parts) + "\n"


def _incomplete(run: Path) -> str:
    """What incomplete clips are, in words."""
    names = read_features(run / "features" / "train").modalities
    every = len(subsets(names)) == 2 ** len(names) - 1
    kind = "incomplete subsets" if every else "subsets without one, or of one alone,"
    return f"the {len(subsets(names)) - 1} {kind} of {', '.join(names)}"


def _against(
    base: Sequence[Mapping[str, Any]],
    row: Sequence[Mapping[str, Any]],
    truth: Mapping[str, np.ndarray],
    name: str,
    classes: int,
) -> str:
    ours, theirs = (np.array([cell["labels"][name] for cell in cells]) for cells in (row, base))
    interval = paired_bootstrap(truth[name], ours, theirs, classes, RESAMPLES)
    each = [
        waf(truth[name], o, classes) - waf(truth[name], t, classes)
        for o, t in zip(ours, theirs, strict=True)
    ]
    verdict = "not decided"
    if interval.low > 0 and min(each) > 0:
        verdict = "**helps**"
    elif interval.high < 0 and max(each) < 0:
        verdict = "**hurts**"
    return (
        f"`{name}` {interval.difference:+.3f} ({interval.low:+.3f} to {interval.high:+.3f}), "
        f"{verdict}"
    )


def _waf(
    branch: Any, groups: Sequence[str], data: FeatureSet, fallback: int, classes: int
) -> float:
    return waf(data.labels.numpy(), labels_of(*predict(branch, groups, data), fallback), classes)


def _hidden(data: FeatureSet, shown: tuple[bool, ...]) -> FeatureSet:
    return replace(data, presence=data.presence & torch.tensor([shown]))


def _cell(out: Path, row: str, seed: int) -> Path:
    return out / f"{row.replace(' ', '-').replace('+', 'plus')}-{seed}.json"


def _sd(scores: Sequence[float]) -> float:
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
