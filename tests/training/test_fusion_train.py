"""Fusion training: honest folds, repeatable, better together, and a table that says when not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from synthetic_features import make_features

from merkit.contract import Voter
from merkit.errors import BundleNotFoundError, InvalidInputError
from merkit.pipeline import GROUPS, SEED_VOTERS
from merkit_training.fusion import tables
from merkit_training.fusion.config import BranchConfig, FusionConfig
from merkit_training.fusion.dataset import JOINT_VIEWS, FeatureSet, join, read_features
from merkit_training.fusion.model import load
from merkit_training.fusion.page import page
from merkit_training.fusion.stage import train
from merkit_training.fusion.train import (
    class_weights,
    fit_branch,
    fit_fusion,
    hide_modalities,
    labels_of,
    out_of_fold,
    predict,
    speaker_folds,
)
from merkit_training.labels import MER6
from merkit_training.metrics import waf
from merkit_training.settings import from_table

CLASSES = 6
TESTS = ("test_multi", "test_semi", "test_noise")
CONFIG = FusionConfig(
    branch=BranchConfig(hidden=16, dropout=0.1), epochs=15, batch_size=64, lr=1e-2, folds=3,
    table_seeds=2, bootstrap=50,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> FeatureSet:
    return make_features(400, seed=0)


@pytest.fixture(scope="module")
def validation() -> FeatureSet:
    return make_features(150, seed=1)


def test_features_survive_the_disk_and_keep_their_order(data: FeatureSet, tmp_path: Path) -> None:
    parts = [data.select(torch.arange(0, 150)), data.select(torch.arange(150, 400))]
    join(parts).save(tmp_path / "all")
    again = read_features(tmp_path / "all")
    assert again.names == data.names and again.subsets == data.subsets
    for mine, theirs in zip(again.inputs(), data.inputs(), strict=True):
        assert torch.equal(mine, theirs)
    assert [p.name for p in sorted((tmp_path / "all").iterdir())] == [
        "clips.json", "features.safetensors"
    ]  # fmt: skip


def test_missing_features_are_an_error_that_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="stage 'features'"):
        read_features(tmp_path)


def test_hiding_a_modality_swaps_the_joint_feature(data: FeatureSet) -> None:
    whole = data.presence.all(dim=1).nonzero()[:1, 0]
    for shown, view in (([1, 1, 1], "both"), ([0, 1, 0], "audio"), ([1, 0, 1], "text")):
        features = data.features(whole, torch.tensor([shown], dtype=torch.bool))
        expected = data.groups["j"][whole, JOINT_VIEWS.index(view)]
        assert torch.equal(features["j"], expected)


def test_no_speaker_is_in_two_folds(data: FeatureSet) -> None:
    fold = speaker_folds(data, 3, seed=0)
    by_speaker: dict[str, set[int]] = {}
    for identity, number in zip(data.identities, fold.tolist(), strict=True):
        by_speaker.setdefault(identity, set()).add(number)
    assert all(len(folds) == 1 for folds in by_speaker.values())
    assert set(fold.tolist()) == {0, 1, 2}


def test_out_of_fold_predictions_never_saw_their_clip() -> None:
    """Random labels can be learnt by heart; only held-out predictions stay at chance."""
    noise = make_features(200, seed=5, strengths=dict.fromkeys(GROUPS, 0.0))
    config = FusionConfig(
        branch=BranchConfig(hidden=64, dropout=0.0), epochs=60, batch_size=50, lr=5e-3, folds=4,
        modality_dropout=0.0, label_smoothing=0.0, balance=0.0, weight_decay=0.0,
    )  # fmt: skip
    groups, truth = ("a", "t", "v"), noise.labels.numpy()
    logits, votes = out_of_fold(groups, noise, noise, config, 0, CLASSES)
    held_out = waf(truth, labels_of(logits, votes, 0), CLASSES)
    by_heart = waf(
        truth,
        labels_of(*predict(fit_branch(groups, noise, noise, config, 0), groups, noise), 0),
        CLASSES,
    )
    assert by_heart > 0.8 and held_out < 0.45


def test_the_same_seed_gives_the_same_weights(data: FeatureSet, validation: FeatureSet) -> None:
    first, again, other = (
        fit_branch(("a", "v"), data, validation, CONFIG, seed).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_hidden_modalities_never_take_all_a_clip_has() -> None:
    torch.manual_seed(0)
    presence = torch.tensor([[True, False, False], [True, True, True]]).repeat(500, 1)
    shown = hide_modalities(presence, 0.5)
    assert shown.any(dim=1).all() and not (shown & ~presence).any()
    assert 0.3 < shown[1::2].float().mean() < 0.8


@pytest.mark.parametrize(("balance", "share"), [(0.0, 0.9), (1.0, 0.5)])
def test_class_weights_balance_what_they_should(balance: float, share: float) -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)  # the other classes have no clip
    weights = class_weights(labels, balance, CLASSES)[labels]
    assert weights.mean() == pytest.approx(1.0)
    assert float(weights[:90].sum() / weights.sum()) == pytest.approx(share)


def test_voters_come_in_the_order_of_their_held_out_scores() -> None:
    strengths = {"a": 0.1, "t": 0.5, "v": 0.1, "j": 0.1, "V": 0.1}
    data = make_features(400, seed=0, strengths=strengths)
    voters = [Voter("weak", ("a",)), Voter("strong", ("t", "v"))]
    model, held_out, scores = fit_fusion(data, data, CONFIG, 0, CLASSES, voters)
    assert [voter.name for voter in model.voters] == ["strong", "weak"]
    assert scores == sorted(scores, reverse=True)
    logits, votes = held_out["logits"], held_out["voted"]
    truth = data.labels.numpy()
    found = waf(truth, labels_of(logits[:, 0], votes[:, 0], 0), CLASSES)
    assert found == pytest.approx(scores[0], abs=0.02)
    assert (model.temperatures > 0).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The stage, run once on synthetic features."""
    root = tmp_path_factory.mktemp("fusion")
    for number, split in enumerate(("train", "val", *TESTS)):
        make_features(400 if split == "train" else 200, number).save(root / "features" / split)
    corpus = root / "corpus"
    corpus.mkdir()
    bounds = {name: {"all": 0.99, "video": 0.9, "words": 0.9, "sound": 0.9} for name in TESTS}
    (corpus / "card.json").write_text(json.dumps({"ceilings": bounds}), "utf-8")
    recipe: Any = SimpleNamespace(fusion=CONFIG, run=SimpleNamespace(seed=0))
    return root, train(recipe, corpus, root)


def test_the_stage_leaves_a_fusion_that_loads_and_predicts(
    run: tuple[Path, dict[str, float]],
) -> None:
    root, _ = run
    model = load(root)
    config = json.loads((root / "fusion" / "config.json").read_text("utf-8"))
    assert [v["name"] for v in config["voters"]] == [v.name for v in model.voters]
    assert {v.name for v in model.voters} == {v.name for v in SEED_VOTERS}
    assert [v["waf"] for v in config["voters"]] == sorted(
        (v["waf"] for v in config["voters"]), reverse=True
    )
    assert [v["temperature"] for v in config["voters"]] == pytest.approx(
        model.temperatures.tolist()
    )
    test = read_features(root / "features" / "test_multi")
    labels = tables.voted(model, test, 0)["vote"]
    written = json.loads((root / "fusion" / "tables.json").read_text("utf-8"))
    assert waf(test.labels.numpy(), labels, CLASSES) == pytest.approx(
        written["subsets"]["video+audio+text"]["test_multi"]
    )


def test_out_of_fold_predictions_are_kept_with_their_names(
    run: tuple[Path, dict[str, float]],
) -> None:
    root, _ = run
    with safe_open(root / "fusion" / "out_of_fold.safetensors", "pt") as file:
        names = json.loads(file.metadata()["names"])
        assert file.get_slice("logits").get_shape() == [len(names), 4, CLASSES]
    assert tuple(names) == read_features(root / "features" / "train").names


def test_the_card_judges_the_out_of_fold_vote_and_sets_a_threshold(
    run: tuple[Path, dict[str, float]],
) -> None:
    root, _ = run
    judged = json.loads((root / "fusion" / "card.json").read_text("utf-8"))["out_of_fold"]
    table = np.array(judged["confusion"])
    assert table.sum() == judged["clips"] == 400 and judged["unanswered"] == 0
    assert judged["accuracy"] == pytest.approx(np.trace(table) / 400)
    assert list(judged["f1"]) == list(MER6) and 0 < judged["ece"] < judged["brier"] < 1
    stated = json.loads((root / "fusion" / "config.json").read_text("utf-8"))["abstention"]
    assert stated["coverage"] == pytest.approx(CONFIG.coverage, abs=0.01)
    assert stated["accuracy"] > judged["accuracy"] and 0 < stated["threshold"] < 1


def test_the_vote_beats_every_group_where_the_evidence_is_shared_out(
    run: tuple[Path, dict[str, float]],
) -> None:
    root, scores = run
    written = json.loads((root / "fusion" / "tables.json").read_text("utf-8"))
    for test in TESTS:
        vote = written["systems"]["vote"][test]["waf"]
        assert all(vote > written["systems"][group][test]["waf"] for group in GROUPS)
        assert scores[f"{test}_vote"] == vote
        assert written["gain"][test]["low"] > 0


def test_the_page_claims_no_more_than_was_measured(run: tuple[Path, dict[str, float]]) -> None:
    root, _ = run
    written = json.loads((root / "fusion" / "tables.json").read_text("utf-8"))
    text = page(written, TESTS)
    assert text == (root / "fusion" / "tables.md").read_text("utf-8")
    assert "synthetic" in text and "of 0.990" in text
    assert "`test_noise` is of the clean parameters" in text
    for gain in written["gain"].values():
        gain["beyond_spread"] = gain["beyond_chance"] = False
    written["systems"]["logistic regression"] = written["systems"]["vote"]
    humbled = page(written, TESTS)
    assert humbled.count("**No.**") == 3
    (rival,) = [line for line in humbled.splitlines() if line.startswith("- over logistic")]
    assert rival.count("+0.000") == rival.count("within the spread") == 3


def test_an_untrained_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        load(tmp_path)


def test_recipes_refuse_one_fold() -> None:
    with pytest.raises(InvalidInputError, match="folds is 1"):
        from_table(FusionConfig, {"folds": 1}, "tiny.toml [fusion]")
    config = from_table(FusionConfig, {"branch": {"hidden": 8}}, "tiny.toml [fusion]")
    assert config.branch.hidden == 8 and np.isclose(config.balance, 0.5)
