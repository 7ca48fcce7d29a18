"""A run without encoders is evaluated, submitted, searched, ablated and mined like any other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_features import ABSENT, LABELS, SPLITS, WIDTHS, write_folders

from merkit.errors import InvalidInputError
from merkit_training.cli import main
from merkit_training.evaluation.measure import patterns_asked
from merkit_training.fusion.dataset import read_features
from merkit_training.fusion.model import load
from merkit_training.fusion.tables import VOTE, voted
from merkit_training.metrics import waf
from merkit_training.mining.extract import read_pool

RECIPE = """[fusion]
epochs = 30
batch_size = 30
lr = 1e-2
folds = 2
table_seeds = 1
bootstrap = 20
voters = ["noise+signal+static", "signal+static", "signal"]
groups = ["noise", "signal", "static"]
[fusion.branch]
hidden = 8
valence = true
"""
UNLABELLED = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature folders of labelled clips and of some that no file labels, and a fused run."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("made")
    _, labels = write_folders(root)
    rng = np.random.default_rng(9)
    for i in range(UNLABELLED):
        like = f"train_{i:04d}.npy"
        for folder in ("signal-UTT", "noise-UTT", "static-FRA"):
            value = np.load(root / folder / like)
            again = value + 0.3 * rng.standard_normal(value.shape).astype(np.float32)
            np.save(root / folder / f"pool_{i:04d}.npy", again)
    (root / "quick.toml").write_text(RECIPE)
    options = ["--labels", str(labels), "--recipe", str(root / "quick.toml")]
    assert main(["fuse", "--features", str(root), *options, "--out", str(root / "run")]) == 0
    return root


def report_of(out: Path, *arguments: str) -> dict[str, Any]:
    options = ["--resamples", "20", "--out", str(out), "--threads", "1"]
    assert main(["evaluate", *arguments, *options]) == 0
    found: dict[str, Any] = json.loads((out / "report.json").read_text("utf-8"))
    return found


def test_the_recipe_names_groups_and_voters(made: Path) -> None:
    voters = json.loads((made / "run" / "fusion" / "config.json").read_text())["voters"]
    assert {v["name"] for v in voters} == {"noise+signal+static", "signal+static", "signal"}


def test_a_report_on_features(made: Path, tmp_path: Path) -> None:
    run = made / "run"
    report = report_of(tmp_path / "own", str(run), "--split", "test", "--by", "room")
    data = read_features(run / "features" / "test")
    labels = voted(load(run), data, 0)[VOTE]
    expected = waf(data.labels.numpy(), labels, len(LABELS))
    assert report["overall"]["waf"]["value"] == pytest.approx(expected, abs=1e-5)
    assert np.sum(report["confusion"]) == SPLITS["test"]
    names = ["noise+signal+static", "signal", "signal+static", "mean probability"]
    assert sorted(b["name"] for b in report["branches"]) == sorted(names)
    assert [g["value"] for g in report["groups"]["room"]] == ["a", "b"]
    robust = report["robustness"]
    assert robust["curves"] == {} and len(robust["rates"]) == 4
    patterns = {p["condition"]: p for p in robust["patterns"]}
    assert len(patterns) == 7 and patterns["only:noise+static"]["waf"]["value"] < 0.6
    assert patterns["only:signal"]["clips"] == SPLITS["test"] - 1, "one clip has no signal"
    page = (tmp_path / "own" / "report.html").read_text("utf-8")
    assert "noise+signal+static" in page and not (tmp_path / "own" / "clips").exists()

    files = ["--data", str(made / "labels.csv"), "--features", str(made), "--split", "test"]
    again = report_of(tmp_path / "files", str(run), *files)
    assert again["data"]["unlabelled"] == 0, "clips of other splits have labels"
    for part in ("overall", "confusion", "clips", "robustness"):
        left = {"facts"} if part == "clips" else set()
        ours, theirs = (
            [{k: v for k, v in row.items() if k not in left} for row in r[part]]
            if left
            else r[part]
            for r in (report, again)
        )
        assert ours == theirs, part


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--split", "elsewhere"], "the split is 'elsewhere'"),
        (["--split", "train"], "expected one of val, test"),
        (["--data", "labels.csv"], "--data was given alone"),
        (["--split", "test", "--by", "shoe"], "no clip has a column 'shoe'"),
    ],
)
def test_reports_that_cannot_be_made(
    arguments: list[str], told: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "report")
    assert main(["evaluate", str(made / "run"), *arguments, "--out", out]) == 2
    assert told in capsys.readouterr().err


def test_the_challenges_file_from_features(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.csv"
    assert main(["submit", str(made / "run"), "--features", str(made), "--out", str(out)]) == 0
    with out.open(encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == sum(SPLITS.values()) + UNLABELLED and ABSENT in rows
    data = read_features(made / "run" / "features" / "test")
    expected = [LABELS[i] for i in voted(load(made / "run"), data, 0)[VOTE]]
    assert [rows[name]["discrete"] for name in data.names] == expected
    errors = [
        abs(float(rows[n]["valence"]) - v)
        for n, v in zip(data.names, data.valence.tolist(), strict=True)
    ]
    assert np.mean(errors) < 0.6, "valence was learnt"
    assert main(["submit", str(made / "run"), "--data", str(made), "--out", str(out)]) == 2
    empty = tmp_path / "empty"
    for folder in ("signal-UTT", "noise-UTT", "static-FRA"):
        (empty / folder).mkdir(parents=True)
    nothing = ["--features", str(empty), "--out", str(tmp_path / "nothing.csv")]
    assert main(["submit", str(made / "run"), *nothing]) == 2
    assert not (tmp_path / "nothing.csv").exists(), "no clip, no file"
    (tmp_path / "names.txt").write_text(ABSENT)  # nothing of one group, and nobody else beside
    options = ["--features", str(made), "--names", str(tmp_path / "names.txt"), "--overwrite"]
    assert main(["submit", str(made / "run"), *options, "--out", str(out)]) == 0
    assert out.read_text("utf-8").splitlines()[1].startswith(f"{ABSENT},")


def test_searching_and_ablating_take_the_runs_own_groups_and_classes(
    made: Path, tmp_path: Path
) -> None:
    run, page = str(made / "run"), tmp_path / "page.md"
    for sampler in ("mertools", "optuna"):
        options = ["--sampler", sampler, "--trials", "1", "--epochs", "1"]
        assert main(["tune", run, *options, "--out", str(tmp_path / "tuning")]) == 0
    options = ["--seeds", "1", "--epochs", "1", "--page", str(page)]
    assert main(["ablate", run, "--out", str(tmp_path / "cells"), *options]) == 0
    text = page.read_text("utf-8")
    assert "noise+signal+static" in text
    assert "the 6 incomplete subsets of noise, signal, static" in text and "synthetic" not in text
    assert main(["ablate", run, "--groups", "a+t", "--out", str(tmp_path / "x"), *options]) == 2


def test_mining_learns_from_feature_folders(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "mined"
    command = ["mine", str(made / "run"), "--pool", str(made), "--rounds", "1", "--out", str(out)]
    assert main([*command, "--agree", "2"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["pool"][0]["asked"] == UNLABELLED, "labelled clips are left out by name"
    adopted = report["rounds"][0][1]["adopted"]
    assert 0 < adopted <= UNLABELLED
    learners = {
        v["name"] for v in json.loads((out / "run/fusion/config.json").read_text())["voters"]
    }
    text = (out / "report.md").read_text()
    assert all(f"| {name} |" in text for name in learners), "each learner's WAF by round"
    mined = report_of(tmp_path / "report", str(out / "run"), "--split", "test")
    assert mined["data"]["answered"] == SPLITS["test"]


def test_a_pool_of_folders_that_has_changed_is_refused(made: Path, tmp_path: Path) -> None:
    """What was read of it is kept, and would hide the clips that came since."""
    for folder in ("signal-UTT", "noise-UTT", "static-FRA"):
        for name in ("pool_0000", "pool_0001"):
            (tmp_path / "more" / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(
                made / folder / f"{name}.npy", tmp_path / "more" / folder / f"{name}.npy"
            )
    given = (made / "run", tmp_path / "more", tmp_path / "pool")
    assert read_pool(*given) == read_pool(*given)
    for folder in ("signal-UTT", "noise-UTT", "static-FRA"):
        path = tmp_path / "more" / folder / "pool_0000.npy"
        path.rename(path.with_name("pool_0002.npy"))
    with pytest.raises(InvalidInputError, match="other clips"):
        read_pool(*given)


def test_of_many_groups_all_but_one_and_single_ones_are_asked() -> None:
    many = [f"g{i}" for i in range(8)]
    kept = [len(c.keep) for c in patterns_asked(many)]
    assert sorted(kept) == [1] * 8 + [7] * 8 + [8]
    assert len(patterns_asked(list(WIDTHS))) == 7
