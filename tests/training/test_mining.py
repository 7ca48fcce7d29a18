"""The loop as a whole: bit for bit repeatable, resumable anywhere, honest, and it ends in a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from mining_run import FUSION, clips, write_mining_run, write_pool
from safetensors.numpy import load_file

from merkit.errors import BundleNotFoundError, InvalidInputError
from merkit.voting import NOBODY
from merkit_training.cli import main
from merkit_training.fusion.dataset import FeatureSet, read_features
from merkit_training.fusion.model import load
from merkit_training.mining import learners as learning
from merkit_training.mining.config import MiningConfig
from merkit_training.mining.ledger import Ledger, read_decisions
from merkit_training.mining.loop import best_round
from merkit_training.mining.report import verdict
from merkit_training.mining.session import mine, trace

CONFIG = MiningConfig(rounds=2)
TIMES = {"seconds", "cpu_seconds", "cpu_seconds_voting"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mining_run(tmp_path_factory.mktemp("mining") / "run")


@pytest.fixture(scope="module")
def pool(run: Path) -> Path:
    write_pool(run.parent / "pool")
    return run.parent / "pool"


@pytest.fixture(scope="module")
def truth(run: Path) -> Path:
    path = run.parent / "truth.jsonl"
    data = clips("pool", 80, 50)
    names = ("neutral", "angry", "happy", "sad", "worried", "surprise")
    rows = zip(data.names, data.labels.tolist(), strict=True)
    path.write_text("".join(json.dumps({"name": n, "discrete": names[i]}) + "\n" for n, i in rows))
    return path


@pytest.fixture(scope="module")
def mined(run: Path, pool: Path, truth: Path) -> Path:
    out = run.parent / "mined"
    mine(run, [pool], out, CONFIG, [3], [truth])
    return out


def bits(out: Path) -> dict[str, Any]:
    """Every file of the seeds' folders, without the times in their cards."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("seed-*/**/*")):
        if path.suffix == ".json":
            facts = json.loads(path.read_text())
            found[str(path.relative_to(out))] = {k: v for k, v in facts.items() if k not in TIMES}
        elif path.is_file():
            found[str(path.relative_to(out))] = path.read_bytes()
    return found


def test_each_round_adds_to_what_was_adopted_and_shares_it_out(mined: Path) -> None:
    ledger, excluded = Ledger(mined / "seed-3"), np.zeros(80, bool)
    rounds = ledger.finished()
    assert [r["round"] for r in rounds] == [0, 1, 2]
    first, second = (ledger.state(i, excluded) for i in (1, 2))
    assert len(first.adopted()) == rounds[1]["adopted"] == rounds[1]["total"] > 20
    kept = first.label != NOBODY
    assert (second.label[kept] == first.label[kept]).all()
    assert rounds[2]["asked"] == 80 - rounds[1]["adopted"]
    sizes = [len(second.adopted(i)) for i in range(4)]
    assert rounds[2]["trained_on"] == [60 + size for size in sizes]
    assert max(sizes) - min(sizes) <= 2


def test_at_least_three_learners_said_so(mined: Path) -> None:
    found = read_decisions(mined / "seed-3" / "round-01" / "decisions.safetensors")
    new = found.adopted != NOBODY
    agreeing = (found.votes.ballots == found.adopted[:, None]).sum(axis=1)
    assert (agreeing[new] >= 3).all()
    counts = [np.bincount(b[b >= 0], minlength=6).max() for b in found.votes.ballots[~new]]
    assert max(counts) < 3


def test_the_truth_is_only_measured_with(
    mined: Path, run: Path, pool: Path, tmp_path: Path
) -> None:
    mine(run, [pool], tmp_path / "blind", CONFIG, [3])
    assert bits(tmp_path / "blind") == bits(mined)
    assert "quality" not in json.loads((tmp_path / "blind" / "report.json").read_text())
    quality = json.loads((mined / "report.json").read_text())["quality"][0]
    assert quality[0]["precision"] > 0.5  # a third of the clips are the largest class
    assert quality[1]["recall"] >= quality[0]["recall"]


@pytest.mark.parametrize("fits", [2, 5, 9])
def test_a_killed_run_goes_on_to_the_same_bits(
    mined: Path, run: Path, pool: Path, tmp_path: Path, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = fits
    plain = learning.fit_branch

    def killed(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(learning, "fit_branch", killed)
    with pytest.raises(KeyboardInterrupt):
        mine(run, [pool], tmp_path / "out", CONFIG, [3])
    assert len(list((tmp_path / "out").glob("seed-3/*/learner-*"))) == fits
    left = 99
    mine(run, [pool], tmp_path / "out", CONFIG, [3])
    assert left == 99 - (12 - fits)  # nothing was trained twice
    assert bits(tmp_path / "out") == bits(mined)


def test_more_rounds_continue_and_other_options_are_refused(
    mined: Path, run: Path, pool: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(mined, out)
    before = bits(out)
    facts = json.loads((out / "mining.json").read_text())
    del facts["options"]["drop"]  # as if it had been begun before that option was there
    (out / "mining.json").write_text(json.dumps(facts))
    mine(run, [pool], out, replace(CONFIG, rounds=3), [3])
    after = bits(out)
    assert {k: after[k] for k in before} == before
    with pytest.raises(InvalidInputError, match="another options: agree 3, now 4"):
        mine(run, [pool], out, replace(CONFIG, agree=4), [3])
    write_pool(tmp_path / "other", 20, 99)
    with pytest.raises(InvalidInputError, match="another pool: clips 80, now 20"):
        mine(run, [tmp_path / "other"], out, CONFIG, [3])


def test_a_label_can_be_traced(mined: Path) -> None:
    found = read_decisions(mined / "seed-3" / "round-01" / "decisions.safetensors")
    row = int(np.flatnonzero(found.adopted != NOBODY)[0])
    lines = trace(mined, f"pool_{int(found.votes.rows[row]):04d}")
    assert len(lines) == 2  # not asked again
    assert "round 1: a+t+v " in lines[1]
    assert ": adopted as " in lines[1]
    with pytest.raises(InvalidInputError, match="no clip 'nobody'"):
        trace(mined, "nobody")


def test_the_result_is_a_run_whose_fusion_is_the_mined_learners(mined: Path, run: Path) -> None:
    fusion = load(mined / "run")
    card = json.loads((mined / "run" / "fusion" / "card.json").read_text())
    config = json.loads((mined / "run" / "fusion" / "config.json").read_text())
    report = json.loads((mined / "report.json").read_text())
    scores = report["rounds"][0][2]["waf"]["val"]
    assert [v["waf"] for v in config["voters"]] == sorted(
        (scores[v.name] for v in fusion.voters), reverse=True
    )
    assert card["mining"] == {
        "transductive": False,
        "seed": 3,
        "round": 2,
        "labelled": 60,
        "pseudo_labelled": report["rounds"][0][2]["total"],
    }
    best = fusion.voters[0].name
    place = [v for v in report["learners"]].index(best)
    weights = load_file(mined / "seed-3" / "round-02" / f"learner-{place}.safetensors")
    own = fusion.branches[0].state_dict()
    assert np.allclose(own["head.weight"].numpy(), weights["head.weight"], atol=1e-3)
    assert (mined / "run" / "features" / "train").is_dir()
    test = read_features(run / "features" / "test_multi")
    with torch.no_grad():
        assert torch.isfinite(fusion(*test.inputs())[0]).all()


def test_the_curve_is_a_picture_with_a_line_for_each_system(mined: Path) -> None:
    root = ElementTree.parse(mined / "report.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == 2 * 5  # two test splits
    words = {text.text for text in root.findall(f"{space}text")}
    assert words >= {"test_multi", "test_semi", "vote", "t+V+j", "round"}


def test_nobody_agrees(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pool(tmp_path / "pool", 20)
    strict = MiningConfig(rounds=3, confidence=1.0)
    report = mine(run, [tmp_path / "pool"], tmp_path / "out", strict, [0])
    assert "on none of 20 clips do 3 learners agree" in report["stopped"][0]
    assert "the round adopts nothing" in capsys.readouterr().out
    assert report["kept"] == [0]
    assert "adopts nothing" in (tmp_path / "out" / "report.md").read_text()
    again = mine(run, [tmp_path / "pool"], tmp_path / "out", strict, [0])
    assert again == report


def test_test_clips_in_the_pool_are_left_out_unless_asked_for(run: Path, tmp_path: Path) -> None:
    parts = [run / "features" / split for split in ("train", "test_multi")]
    write_pool(tmp_path / "pool", 20)
    once = MiningConfig(rounds=1)
    out = tmp_path / "out"
    report = mine(run, [tmp_path / "pool", *parts], out, once, [0])
    counts = {"asked": 20, "labelled clips by name": 60, "test clips by name": 30}
    assert report["pool"] == [counts]
    assert (out / "report.md").read_text().startswith("# Mining")
    assert "takes no part (test clips by name)" in trace(out, "test_multi_0000")[0]
    told = replace(once, transductive=True)
    report = mine(run, [tmp_path / "pool", *parts], tmp_path / "all", told, [0])
    assert report["pool"][0]["asked"] == 50
    assert (tmp_path / "all" / "report.md").read_text().startswith("**Transductive: test clips")
    card = json.loads((tmp_path / "all" / "run" / "fusion" / "card.json").read_text())
    assert card["mining"]["transductive"]


def test_seeds_fewer_labels_and_the_control(run: Path, pool: Path, tmp_path: Path) -> None:
    config = MiningConfig(rounds=1, labels=24, control=True, drop=True, stratified=True)
    parts = [run / "features" / "train", pool]
    report = mine(run, parts, tmp_path / "out", config, [0, 1])
    assert report["labelled"] == 24
    assert [own["asked"] for own in report["pool"]] == [80 + 36] * 2
    assert set(report["gain"]) == {"round 0", "labels alone, trained for as many steps"}
    assert len(report["gain"]["round 0"]["test_semi"]["each"]) == 2
    curve = report["curve"]["test_semi"]["vote"]
    each = [rounds[0]["waf"]["test_semi"]["vote"] for rounds in report["rounds"]]
    assert curve[0]["mean"] == pytest.approx(np.mean(each))
    drawn = [
        load_file(tmp_path / "out" / f"seed-{s}" / "control" / "learner-0.safetensors")
        for s in (0, 1)
    ]
    assert not np.array_equal(drawn[0]["head.weight"], drawn[1]["head.weight"])
    with pytest.raises(InvalidInputError, match="3 labels of 60"):
        mine(run, parts, tmp_path / "few", replace(config, labels=3), [0])


def test_steps_are_the_same_for_every_learner(
    run: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []
    plain = learning.fit_branch

    def counted(groups: Any, data: FeatureSet, validation: Any, config: Any, *rest: Any) -> Any:
        an_epoch = len(data) // config.batch_size
        taken.append((config.epochs * an_epoch, an_epoch))
        return plain(groups, data, validation, config, *rest)

    monkeypatch.setattr(learning, "fit_branch", counted)
    mine(run, [pool], tmp_path / "out", MiningConfig(rounds=1, steps=50), [0])
    assert len(taken) == 8
    assert len({an_epoch for _, an_epoch in taken}) > 1
    assert all(abs(steps - 50) <= an_epoch / 2 for steps, an_epoch in taken)


def test_patience_keeps_the_best_round(run: Path, pool: Path, tmp_path: Path) -> None:
    report = mine(run, [pool], tmp_path / "out", MiningConfig(rounds=9, patience=1), [0])
    scores = [r["waf"]["val"]["vote"] for r in report["rounds"][0] if "waf" in r]
    assert report["kept"][0] == int(np.argmax(scores))
    assert len(scores) < 10
    if "gain on validation" in report["stopped"][0]:
        assert len(scores) == report["kept"][0] + 2


def test_a_stop_needs_a_gain() -> None:
    rounds = [{"waf": {"val": {"vote": score}}} for score in (0.5, 0.6, 0.6, 0.4)]
    assert best_round(rounds) == 1


@pytest.mark.parametrize(
    ("low", "high", "each", "expected"),
    [
        (0.01, 0.05, (0.02, 0.03), "helps"),
        (0.01, 0.05, (-0.01, 0.06), "no difference that the data decide"),
        (-0.01, 0.05, (0.02, 0.03), "no difference that the data decide"),
        (-0.05, -0.01, (-0.02, -0.03), "harms"),
    ],
)
def test_the_verdict_follows_the_figures(
    low: float, high: float, each: tuple[float, ...], expected: str
) -> None:
    assert verdict({"low": low, "high": high, "each": each}) == expected


def test_learners_that_have_nothing_to_go_by_abstain(run: Path, tmp_path: Path) -> None:
    data = replace(clips("pool", 12, 5), presence=torch.tensor([[False, False, True]] * 12))
    data.save(tmp_path / "pool")
    mine(run, [tmp_path / "pool"], tmp_path / "out", MiningConfig(rounds=1), [0])
    found = read_decisions(tmp_path / "out" / "seed-0" / "round-01" / "decisions.safetensors")
    assert (found.votes.ballots >= 0).all()  # words reach every learner, by t or by j


def test_the_command_line_names_what_is_wrong(
    run: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in {
        (): "RUN or --pool is missing",
        (str(run), "--pool", str(tmp_path / "none")): "there is no folder",
        (str(run), "--pool", str(tmp_path)): "neither features nor clips/unlabelled",
        (str(run), "--pool", str(pool), "--agree", "0"): "agree is 0",
        (str(run), "--pool", str(pool), "--confidence", "2"): "confidence is 2.0",
        (str(run), "--pool", str(pool), "--seeds", "0"): "--seeds 0",
        (str(tmp_path), "--pool", str(pool)): "there is no ",
        ("--trace", "x"): "holds no mining",
    }.items():
        assert main(["mine", *arguments, *out]) == 2
        assert message in capsys.readouterr().err
    assert main(["mine", str(run), "--pool", str(pool), "--rounds", "1", *out]) == 0
    assert main(["mine", "--trace", "pool_0000", *out]) == 0
    assert "seed-0: pool_0000" in capsys.readouterr().out


def test_a_run_without_fusion_is_refused(run: Path, pool: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "features", tmp_path / "run" / "features")
    with pytest.raises(BundleNotFoundError, match="fusion"):
        mine(tmp_path / "run", [pool], tmp_path / "out", CONFIG, [0])


def test_more_learners_must_not_be_asked_to_agree_than_there_are(
    run: Path, pool: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="5 of 4 learners"):
        mine(run, [pool], tmp_path / "out", MiningConfig(agree=5), [0])


def test_options_are_recorded(mined: Path) -> None:
    facts = json.loads((mined / "mining.json").read_text())
    assert facts["options"] == asdict(CONFIG)
    assert facts["fusion"] == json.loads(json.dumps(asdict(FUSION)))
