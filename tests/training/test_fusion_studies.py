"""MERBench's own training, each addition apart, searches that resume and never see a test clip."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_features import make_features
from torch import nn

from merkit.errors import InvalidInputError
from merkit.pipeline import SEED_VOTERS
from merkit_training.cli import main
from merkit_training.fusion import ablation, search, tables
from merkit_training.fusion.config import (
    MERBENCH,
    MERBENCH_FUSION,
    BranchConfig,
    FusionConfig,
)
from merkit_training.fusion.dataset import FeatureSet, ranking_clips, read_features
from merkit_training.fusion.model import Branch
from merkit_training.fusion.train import fit_branch, fit_fusion, labels_of, majority, predict
from merkit_training.metrics import waf
from merkit_training.settings import from_table

CLASSES = 6
QUICK = FusionConfig(branch=BranchConfig(hidden=8), epochs=2, batch_size=64, lr=1e-2, folds=2)


@pytest.fixture(scope="module")
def data() -> FeatureSet:
    torch.set_num_threads(1)
    return make_features(150, seed=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    for number, split in enumerate(("train", "val", "test_multi", "test_semi")):
        make_features(120, number).save(root / "features" / split)
    (root / "recipe.json").write_text(json.dumps({"fusion": asdict(QUICK)}))
    return root


def test_merbench_is_trained_as_published(data: FeatureSet) -> None:
    """Restated: torch's Adam with decay in the gradient, all clips each epoch, best WAF kept."""
    config = replace(MERBENCH_FUSION, epochs=3, branch=replace(MERBENCH, hidden=8, dropout=0.0))
    assert MERBENCH_FUSION.epochs == 100 and MERBENCH_FUSION.folds == 5
    validation, groups = make_features(80, seed=1), ("a", "t", "v")
    ours = fit_branch(groups, data, validation, config, 0, CLASSES)

    torch.manual_seed(0)
    net = Branch([16] * 3, CLASSES, config.branch)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-5)
    inputs = [data.groups[g] for g in groups]
    whole = torch.ones(len(data), 3, dtype=torch.bool)
    best, kept = -1.0, {}
    for _ in range(3):
        order = torch.randperm(len(data))
        for rows in order.split(32):
            torch.rand(len(rows), 3)  # the draw of modality dropout
            net.train()
            logits, _ = net([x[rows] for x in inputs], whole[rows])
            heard = _anything(data)[rows]
            loss = nn.functional.cross_entropy(logits[heard], data.labels[rows][heard])
            adam.zero_grad()
            loss.backward()
            adam.step()
        logits, voted = predict(net, groups, validation)
        score = waf(validation.labels.numpy(), labels_of(logits, voted, majority(data)), CLASSES)
        if score > best:
            best, kept = score, {k: v.clone() for k, v in net.state_dict().items()}
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-5, rtol=1e-4)


def _anything(data: FeatureSet) -> torch.Tensor:
    return data.presence.any(dim=1)


@pytest.mark.parametrize("row", ablation.rows(1))
def test_no_row_ever_says_nan_whatever_is_missing(row: str) -> None:
    config = ablation.rows(1)[row].branch
    torch.manual_seed(0)
    branch = Branch([4, 4, 4], CLASSES, replace(config, hidden=8)).eval()
    patterns = torch.tensor(list(itertools.product((False, True), repeat=3)))
    features = [
        torch.full((8, 4), float("nan")).masked_fill(patterns[:, i : i + 1], 1.0) for i in range(3)
    ]
    logits, shares = branch(features, patterns)
    assert torch.isfinite(logits).all() and torch.isfinite(shares).all()
    assert not shares[~patterns].any()
    torch.testing.assert_close(shares.sum(1), patterns.any(1).float())


def test_each_row_differs_from_merbench_by_one_addition_and_the_last_by_all() -> None:
    rows = ablation.rows(7)

    def differences(row: str) -> set[str]:
        base, own = (asdict(rows[r]) for r in (ablation.BASE, row))
        flat = [
            {**{k: v for k, v in t.items() if k != "branch"}, **t["branch"]} for t in (base, own)
        ]
        return {k for k in flat[0] if flat[0][k] != flat[1][k]}

    single = [differences(f"+ {name}") for name in ablation.ADDITIONS]
    assert all(len(one) == 1 for one in single) and len(single) == 6
    assert differences(ablation.TOGETHER) == set().union(*single)
    ours = asdict(rows[ablation.OURS])
    ours["branch"] |= {"hidden": BranchConfig().hidden}
    assert from_table(FusionConfig, ours, "") == FusionConfig()


def test_the_ablation_resumes_and_its_page_says_what_was_measured(
    run: Path, tmp_path: Path
) -> None:
    out, page = tmp_path / "out", tmp_path / "page.md"
    command = ["ablate", str(run), "--out", str(out), "--seeds", "1", "--epochs", "1"]
    assert main([*command, "--page", str(page)]) == 0
    cells = sorted(out.iterdir())
    assert len(cells) == len(ablation.rows(1))
    before = {cell: cell.stat().st_mtime_ns for cell in cells}
    text = page.read_text("utf-8")
    for row in ablation.rows(1):
        assert f"| {row} |" in text
    assert text.count("\n- ") == len(cells) - 1
    cells[0].unlink()
    assert main([*command, "--page", str(page)]) == 0
    assert page.read_text("utf-8") == text, "the same seed gives the same figures"
    assert {c: c.stat().st_mtime_ns for c in cells[1:]} == {c: before[c] for c in cells[1:]}


@pytest.mark.parametrize("sampler", ["mertools", "optuna"])
def test_a_search_goes_on_where_it_stopped(
    sampler: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[FusionConfig] = []

    def worth(_d: object, _v: object, config: FusionConfig, *_: object) -> float:
        seen.append(config)
        return config.branch.dropout

    monkeypatch.setattr(search, "held_out_waf", worth)
    command = ["tune", str(run), "--out", str(tmp_path), "--sampler", sampler, "--trials"]
    assert main([*command, "3"]) == 0 and len(seen) == 3
    assert main([*command, "5"]) == 0 and len(seen) == 5
    assert main([*command, "5"]) == 0 and len(seen) == 5
    assert len({repr(config) for config in seen}) > 3, "no draw is repeated after the stop"
    found = json.loads((tmp_path / f"{sampler}.json").read_text())
    assert found["trials"][0]["waf"] == max(config.branch.dropout for config in seen)
    with sqlite3.connect(tmp_path / f"{sampler}.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (5,)
    if sampler == "mertools":
        assert {c.branch.hidden for c in seen} <= set(search.GRID["hidden"])
        assert all(c.optimizer == "adam" and c.batch_size == 32 for c in seen)
    import tomllib

    best = tomllib.loads((tmp_path / f"{sampler}.toml").read_text())["fusion"]
    assert from_table(FusionConfig, best, "").branch.dropout == found["trials"][0]["dropout"]
    assert main([*command, "6", "--seed", "1"]) == 2, "another search's database"


def test_a_trial_is_judged_without_any_test_clip(run: Path, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    for split in ("train", "val"):
        (tmp_path / "features" / split).symlink_to(run / "features" / split)
    best = search.search(
        tmp_path, tmp_path / "t", replace(QUICK, voters=("a", "t+v")), 1, "optuna", 0, CLASSES
    )
    assert 0 < best["waf"] < 1


def test_voters_are_the_recipes(data: FeatureSet) -> None:
    assert FusionConfig().branches() == SEED_VOTERS
    config = replace(QUICK, voters=("a+V", "j"))
    model, _, _ = fit_fusion(data, data, config, 0, CLASSES)
    assert Counter(v.name for v in model.voters) == {"a+V": 1, "j": 1}
    for wrong in (["a+x"], ["a+a"], [], ["a", "a"]):
        with pytest.raises(InvalidInputError, match="voter"):
            from_table(FusionConfig, {"voters": wrong}, "x.toml [fusion]")


def test_voters_can_be_ranked_on_other_clips(data: FeatureSet, run: Path, tmp_path: Path) -> None:
    assert ranking_clips(run, "out_of_fold") is None
    validation, test = (ranking_clips(run, on) for on in ("validation", "test"))
    assert validation is not None and test is not None
    assert (len(validation), len(test)) == (120, 240)
    model, _, scores = fit_fusion(data, validation, QUICK, 0, CLASSES, ranking=test)
    found = tables.branch_scores(model, test, majority(data), CLASSES)
    np.testing.assert_allclose(found, scores)
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(InvalidInputError, match="no test split"):
        ranking_clips(tmp_path, "test")


def test_the_weighted_vote_is_the_heaviest_label() -> None:
    class Fixed(nn.Module):
        voters = SEED_VOTERS[:3]

        def judge(self, *_: object) -> tuple[torch.Tensor, None]:
            ballots = torch.tensor([[0, 1, 1], [0, 1, 2]])
            return torch.eye(CLASSES)[ballots], None

    two = make_features(2)
    for weights, expected in (((0.9, 0.3, 0.3), [0, 0]), ((0.5, 0.3, 0.6), [1, 2])):
        found = tables.voted(Fixed(), two, 0, weights=np.array(weights))  # type: ignore[arg-type]
        assert found[tables.WEIGHTED].tolist() == expected


def test_valence_is_learnt_where_it_is_labelled_and_changes_no_graph(data: FeatureSet) -> None:
    truth = data.groups["t"][:, 0] * 0.5 + 1
    half = torch.arange(len(data)) % 2 == 0
    labelled = replace(data, valence=torch.where(half, truth, torch.nan))
    branch = BranchConfig(hidden=16, dropout=0.0, valence=True)
    config = replace(QUICK, branch=branch, epochs=40, voters=("t", "t+v"))
    model, _, _ = fit_fusion(labelled, labelled, config, 0, CLASSES)
    held_out = data.presence[:, 2] & ~half
    error = (model.valence(*labelled.inputs()) - truth.numpy())[held_out.numpy()] ** 2
    assert error.mean() < 0.6 * float(truth[held_out].var())
    assert set(tables.valence_errors(model, {"x": labelled, "y": data})) == {"x"}
    assert [len(out) for out in model(*data.inputs())] == [len(data)] * 2
    plain, _, _ = fit_fusion(data, data, replace(QUICK, voters=("t",)), 0, CLASSES)
    assert tables.valence_errors(plain, {"x": labelled}) == {}


def test_valence_survives_the_disk_and_old_features_have_none(
    data: FeatureSet, tmp_path: Path
) -> None:
    assert data.valence.isnan().all() and len(data.valence) == len(data)
    replace(data, valence=torch.ones(len(data))).save(tmp_path)
    again = read_features(tmp_path).select(torch.arange(3))
    assert again.valence.tolist() == [1.0] * 3
