"""Fusion over any groups: the same numbers as the pipeline's own, and bad input is named."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from foreign_features import ABSENT, LABELS, SPLITS, WIDTHS, write_folders, write_table
from safetensors.torch import load_file
from synthetic_features import make_features

from merkit.errors import InvalidInputError
from merkit_training.cli import main
from merkit_training.data.config import DataConfig
from merkit_training.fusion.config import BranchConfig, FusionConfig
from merkit_training.fusion.dataset import FeatureSet, join, read_features
from merkit_training.fusion.folders import find_groups, read_groups
from merkit_training.fusion.fuse import from_labels
from merkit_training.fusion.groups import all_and_each_without_one, modalities_of
from merkit_training.fusion.label_files import read_label_file
from merkit_training.fusion.model import load
from merkit_training.fusion.stage import train
from merkit_training.fusion.tables import subsets
from merkit_training.fusion.train import fit_fusion, speaker_folds
from merkit_training.labels import MER6
from merkit_training.recipe import recipe_from
from merkit_training.runs import write_json

RECIPE = """[fusion]
epochs = 40
batch_size = 30
lr = 1e-2
folds = 3
table_seeds = 1
bootstrap = 20
[fusion.branch]
hidden = 8
dropout = 0.1
"""
SEEN = {"v": "face", "a": "sound", "t": "words"}
"""The pipeline's groups of one modality each, in the order of the columns of presence."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature folders, labels and a recipe."""
    root = tmp_path_factory.mktemp("made")
    write_folders(root)
    (root / "quick.toml").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def fused(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of them, by the command."""
    out = tmp_path_factory.mktemp("fused") / "run"
    assert main(command(made, out)) == 0
    return out


def command(made: Path, out: Path, *more: str) -> list[str]:
    options = ["--labels", str(made / "labels.csv"), "--recipe", str(made / "quick.toml")]
    return ["fuse", "--features", str(made), *options, "--out", str(out), *more]


def refused(told: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says; it must end as every error does."""
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
    return said


def test_the_signal_is_found_and_leads_the_ranking(fused: Path) -> None:
    facts = json.loads((fused / "fusion" / "config.json").read_text())
    assert facts["widths"] == {g: WIDTHS[g] for g in ("noise", "signal", "static")}
    assert facts["labels"] == list(LABELS) and facts["data"] == "own data"
    assert "signal" in facts["voters"][0]["groups"]
    assert facts["voters"][-1]["name"] == "noise+static", "the voter without the signal is last"
    tables = json.loads((fused / "fusion" / "tables.json").read_text())
    assert tables["systems"]["signal"]["test"]["waf"] > 0.85
    assert tables["systems"]["noise"]["test"]["waf"] < 0.6
    page = (fused / "fusion" / "tables.md").read_text()
    assert "| signal |" in page and "| noise+static |" in page and "synthetic" not in page


def test_a_row_of_zeros_is_absence(fused: Path) -> None:
    data = read_features(fused / "features" / "test")
    assert data.modalities == ("noise", "signal", "static")
    row = data.names.index(ABSENT)
    assert data.presence[row].tolist() == [True, False, True]
    assert data.presence.sum() == 3 * len(data) - 1
    model = load(fused)
    scores, shares = model.judge(*data.select(torch.tensor([row])).inputs())
    assert torch.isfinite(scores).all() and not shares[0, :, 1].any()
    poisoned = data.groups["signal"].clone()
    poisoned[row] = torch.nan
    again = replace(data, groups={**data.groups, "signal": poisoned})
    assert torch.equal(model.judge(*again.inputs())[0], model.judge(*data.inputs())[0])


def test_features_over_time_are_averaged(made: Path) -> None:
    (folder,) = find_groups(made, ["static"])
    found = read_groups([folder], ["train_0003"])["static"][0]
    series = np.load(made / "static-FRA" / "train_0003.npy")
    assert series.shape == (4, WIDTHS["static"])
    np.testing.assert_allclose(found, series.mean(axis=0), rtol=1e-6)


def write_own_run(run: Path) -> dict[str, FeatureSet]:
    """A run's features as its own encoders would have made them, and its fusion."""
    sets = {}
    for number, (split, count) in enumerate({"train": 120, "val": 60, "test_semi": 60}.items()):
        data = make_features(count, seed=number, width=6)
        sets[split] = replace(data, names=tuple(f"{split}_{i}" for i in range(count)))
        sets[split].save(run / "features" / split)
    config = FusionConfig(
        branch=BranchConfig(hidden=8, dropout=0.2), voters=("v+a+t", "a+t", "v"), epochs=3,
        batch_size=40, folds=2, table_seeds=1, bootstrap=20,
    )  # fmt: skip
    plain = recipe_from({})
    own = replace(plain.preprocessing, silence_dbfs=-50.0)
    recipe = replace(plain, fusion=config, preprocessing=own)
    write_json(run / "recipe.json", recipe.to_json())
    write_json(run / "corpus" / "card.json", {"kind": "own data"})
    train(recipe, run / "corpus", run)
    return sets


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, FeatureSet]]:
    run = tmp_path_factory.mktemp("own") / "run"
    return run, write_own_run(run)


def write_as_mertools(root: Path, sets: dict[str, FeatureSet]) -> None:
    """The features of the pipeline's groups as folders, and the labels beside them."""
    rows = []
    for split, data in sets.items():
        for i, name in enumerate(data.names):
            rows.append([name, MER6[int(data.labels[i])], data.identities[i], split])
            for group, called in SEEN.items():
                (root / f"{called}-UTT").mkdir(parents=True, exist_ok=True)
                np.save(root / f"{called}-UTT" / f"{name}.npy", data.groups[group][i].numpy())
    write_table(root / "labels.csv", rows, ("name", "discrete", "speaker", "split"))


def same_fusion(one: Path, other: Path) -> None:
    for file in ("model", "out_of_fold"):
        ours, theirs = (load_file(run / "fusion" / f"{file}.safetensors") for run in (one, other))
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file
    found = [json.loads((run / "fusion" / "config.json").read_text()) for run in (one, other)]
    assert [v["waf"] for v in found[0]["voters"]] == [v["waf"] for v in found[1]["voters"]]


def test_a_runs_own_features_fused_as_folders_give_the_same_bits(
    own: tuple[Path, dict[str, FeatureSet]], tmp_path: Path
) -> None:
    """Presence read off zeros, folds, draws, weights, temperatures: nothing depends on names."""
    run, sets = own
    write_as_mertools(tmp_path, sets)
    arguments = ["fuse", "--features", str(tmp_path), "--labels", str(tmp_path / "labels.csv")]
    table = json.loads((run / "recipe.json").read_text())["fusion"]
    lines = [f"{k} = {json.dumps(table[k])}" for k in ("epochs", "batch_size", "folds")]
    branch = [f"{k} = {table['branch'][k]}" for k in ("hidden", "dropout")]
    options = ["table_seeds = 1", "bootstrap = 20", "[fusion.branch]"]
    recipe = tmp_path / "same.toml"
    recipe.write_text("\n".join(["[fusion]", *lines, *options, *branch]))
    voters = ["face+sound+words", "sound+words", "face"]
    more = ["--groups", *SEEN.values(), "--voters", *voters, "--recipe", str(recipe)]
    assert main([*arguments, *more, "--out", str(tmp_path / "fused")]) == 0
    same_fusion(run, tmp_path / "fused")


def test_a_run_fused_with_nothing_else_is_that_run_again(
    own: tuple[Path, dict[str, FeatureSet]], tmp_path: Path
) -> None:
    run, _ = own
    (run / "audio_encoder").mkdir(exist_ok=True)
    (run / "audio_encoder" / "model.safetensors").write_bytes(b"weights")
    assert main(["fuse", "--run", str(run), "--out", str(tmp_path / "again")]) == 0
    same_fusion(run, tmp_path / "again")
    assert (tmp_path / "again" / "audio_encoder" / "model.safetensors").read_bytes() == b"weights"


def test_a_recipe_for_a_runs_features_changes_nothing_of_what_made_them(
    own: tuple[Path, dict[str, FeatureSet]], tmp_path: Path
) -> None:
    run, _ = own
    (tmp_path / "quick.toml").write_text(
        '[run]\nname = "quick"\n[fusion]\nepochs = 1\nbatch_size = 40\nfolds = 2\n'
        'voters = ["v"]\ntable_seeds = 1\nbootstrap = 20\n'
    )
    options = ["--recipe", str(tmp_path / "quick.toml"), "--out", str(tmp_path / "other")]
    assert main(["fuse", "--run", str(run), *options]) == 0
    was, now = (json.loads((f / "recipe.json").read_text()) for f in (run, tmp_path / "other"))
    assert now["fusion"]["epochs"] == 1 and now["run"]["name"] == "quick"
    left = ("fusion", "run", "data")
    assert {k: v for k, v in now.items() if k not in left} == {
        k: v for k, v in was.items() if k not in left
    }


def test_a_runs_groups_take_part_beside_foreign_ones(
    own: tuple[Path, dict[str, FeatureSet]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sets = own
    (tmp_path / "oracle-UTT").mkdir()
    for data in sets.values():
        for name, label in zip(data.names, data.labels.tolist(), strict=True):
            np.save(tmp_path / "oracle-UTT" / f"{name}.npy", 3 * np.eye(6, dtype=np.float32)[label])
    arguments = ["fuse", "--run", str(run), "--features", str(tmp_path), "--groups"]
    voters = ["--voters", "a+oracle", "t+v"]
    assert main([*arguments, "oracle", *voters, "--out", str(tmp_path / "mixed")]) == 0
    facts = json.loads((tmp_path / "mixed" / "fusion" / "config.json").read_text())
    assert list(facts["widths"]) == ["a", "t", "v", "j", "V", "oracle"]
    assert facts["voters"][0]["name"] == "a+oracle"
    data = read_features(tmp_path / "mixed" / "features" / "test_semi")
    assert data.modalities == ("video", "audio", "text", "oracle")
    joined = join([data.select(torch.arange(5)), data.select(torch.arange(5, len(data)))])
    assert all(torch.equal(joined.groups[g], data.groups[g]) for g in data.groups)
    (tmp_path / "oracle-UTT").rename(tmp_path / "audio-UTT")
    told = "a group is called 'audio'"
    refused(told, [*arguments, "audio", "--out", str(tmp_path / "x")], capsys)
    trained = tmp_path / "trained"
    write_json(trained / "run.json", {"stages": {}})
    again = ["fuse", "--run", str(tmp_path / "mixed"), "--out"]
    refused("holds a run that was trained on clips", [*again, str(trained)], capsys)
    assert not (trained / "corpus").exists()
    assert main([*again, str(tmp_path / "again"), "--voters", "v+oracle"]) == 0
    stated = json.loads((tmp_path / "again" / "features" / "groups.json").read_text())
    assert list(stated["groups"]) == ["oracle"] and len(stated["all"]) == 6


def test_a_killed_or_repeated_command_goes_on_and_other_data_are_refused(
    made: Path, fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (fused / "fusion" / "model.safetensors").stat().st_mtime_ns
    assert main(command(made, fused)) == 0
    assert "done before" in capsys.readouterr().out
    assert (fused / "fusion" / "model.safetensors").stat().st_mtime_ns == before
    refused("begun with another [fusion]", command(made, fused, "--voters", "signal"), capsys)
    card = (fused / "corpus" / "card.json").read_bytes()
    with (made / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    other = tmp_path / "labels.csv"
    exchanged = {"angry": "sad", "sad": "angry"}
    write_table(other, [[row[0], exchanged.get(row[1], row[1]), *row[2:]] for row in rows[1:]])
    arguments = [str(other) if a == str(made / "labels.csv") else a for a in command(made, fused)]
    refused("begun with other", arguments, capsys)
    assert (fused / "corpus" / "card.json").read_bytes() == card


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("missing", "noise-UTT has no file of 2 of 180 clips: train_0003, val_0004"),
        ("nan", "train_0003 is not finite"),
        ("width", "train_0003 is 9 wide"),
        ("zeros", "noise-UTT are zeros or missing"),
    ],
)
def test_features_that_do_not_fit_are_named(
    harm: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path)
    (tmp_path / "quick.toml").write_text(RECIPE)
    path = tmp_path / "noise-UTT" / "train_0003.npy"
    if harm == "missing":
        path.unlink()
        (tmp_path / "noise-UTT" / "val_0004.npy").unlink()
    elif harm == "zeros":
        for each in (tmp_path / "noise-UTT").iterdir():
            np.save(each, np.zeros(5, np.float32))
    else:
        np.save(path, np.full(9 if harm == "width" else 5, np.nan if harm == "nan" else 1.0))
    refused(told, command(tmp_path, tmp_path / "run"), capsys)
    assert not (tmp_path / "run").exists()
    if harm == "missing":
        labels = read_label_file(tmp_path / "labels.csv")
        folders = find_groups(tmp_path, ["noise", "signal"])
        material = from_labels(folders, labels, DataConfig(), missing_is_absent=True)
        assert not material.sets["train"].presence[3, 0] and material.sets["train"].presence[3, 1]
        found = read_groups(folders, ["nobody"], WIDTHS, missing_is_absent=True)
        assert not found["noise"].any() and found["noise"].shape == (1, WIDTHS["noise"])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--groups", "clip"], "has no features of 'clip'; expected one of noise-UTT, signal-UTT"),
        (["--groups", "a=noise"], "'a' cannot be a group's name"),
        (["--groups", "vote=noise"], "'vote' cannot be a group's name"),
        (["--groups", "presence=noise"], "'presence' cannot be a group's name"),
        (["--groups", "x+y=noise"], "'x+y' is no group's name"),
        (["--groups", "noise", "noise"], "'noise' cannot be a group's name: it is twice"),
        (["--voters", "noise+clip"], "the voter 'noise+clip' is not made of"),
        (["--run", "x"], "do not fit together"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_wrong_arguments_are_named(
    more: list[str], told: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(told, command(made, tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run").exists()


def test_label_files_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = [
        *([f"c{i}", LABELS[i % 3], "0.5", "s", "train", "x"] for i in range(9)),
        ["c0", "sad", "", "s", "", ""],
        ["../c", "sad", "", "s", "", ""],
        ["d", "sad", "much", "s", "", ""],
        ["e", "sad", "", "s", "elsewhere", ""],
        ["f", "", "-10", "s", "", ""],
    ]
    write_table(path, rows)
    found = read_label_file(path)
    assert [p.kind for p in found.problems] == [
        "duplicate name", "bad name", "bad value", "unknown split"
    ]  # fmt: skip
    assert found.classes == LABELS and found.records[-1].valence is None
    assert found.facts["c0"]["room"] == "x"
    for text, told in (
        ("name,feeling\na,sad\n", "has the columns 'feeling', 'name'"),
        ("name,discrete\na,\n", "labels no clip"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match=told):
            read_label_file(path)
    with pytest.raises(InvalidInputError, match=r"no\.csv cannot be read"):
        read_label_file(tmp_path / "no.csv")
    with pytest.raises(InvalidInputError, match=r"there is no .*labels; expected MERTools'"):
        read_label_file(tmp_path / "labels")


def test_mertools_label_files_are_read(tmp_path: Path) -> None:
    corpora = {
        "train_corpus": {f"n{i}": {"emo": ("anger", "sad")[i % 2], "val": -10} for i in range(6)},
        "test1_corpus": {"m": {"emo": "happy", "val": 1.5}},
    }
    path = tmp_path / "label-6way.npz"
    np.savez(path, **{k: np.array(v, dtype=object) for k, v in corpora.items()})
    found = read_label_file(path)
    assert found.classes == MER6 and len(found.records) == 7
    assert {r.split for r in found.records} == {"train", "test_multi"}
    assert found.records[0].label == "angry" and found.records[0].valence is None
    assert found.records[-1].valence == 1.5


def test_stated_folds_are_the_folds(made: Path, tmp_path: Path) -> None:
    with (made / "labels.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file)]
    stated = {
        r["name"]: str(i * 4 // SPLITS["train"]) for i, r in enumerate(rows[: SPLITS["train"]])
    }
    header = ("name", "discrete", "split", "fold")
    lines = [[r["name"], r["discrete"], r["split"], stated.get(r["name"], "")] for r in rows]
    write_table(tmp_path / "labels.csv", lines, header)
    folders = find_groups(made, ["signal"])
    material = from_labels(folders, read_label_file(tmp_path / "labels.csv"), DataConfig())
    data = material.sets["train"]
    assert material.folds == 4
    fold = speaker_folds(data, material.folds, 0)
    pairs = {(stated[name], int(number)) for name, number in zip(data.names, fold, strict=True)}
    assert len(pairs) == 4, "each stated fold is one of the folds"
    lines[0][3] = ""
    write_table(tmp_path / "labels.csv", lines, header)
    with pytest.raises(InvalidInputError, match="have no fold, as train_0000"):
        from_labels(folders, read_label_file(tmp_path / "labels.csv"), DataConfig())


def test_one_class_teaches_nothing(made: Path) -> None:
    folders, labels = find_groups(made, ["signal"]), read_label_file(made / "labels.csv")
    sad = tuple(record for record in labels.records if record.label == "sad")
    with pytest.raises(InvalidInputError, match="every labelled clip is sad"):
        from_labels(folders, replace(labels, records=sad), DataConfig())


def test_without_test_clips_nothing_is_measured(made: Path, tmp_path: Path) -> None:
    """The column `fold` needs no split beside it; then val is divided off, and there is no test."""
    rows = [[f"train_{i:04d}", LABELS[i % 3], str(i % 2)] for i in range(SPLITS["train"])]
    write_table(tmp_path / "labels.csv", rows, ("name", "discrete", "fold"))
    (tmp_path / "quick.toml").write_text(RECIPE.replace("epochs = 40", "epochs = 1"))
    options = ["--groups", "signal", "--labels", str(tmp_path / "labels.csv")]
    options += ["--recipe", str(tmp_path / "quick.toml"), "--out", str(tmp_path / "run")]
    assert main(["fuse", "--features", str(made), *options]) == 0
    assert "no test split" in (tmp_path / "run" / "fusion" / "tables.md").read_text("utf-8")


def test_voters_and_patterns_of_any_number_of_groups() -> None:
    assert all_and_each_without_one(["x"]) == ("x",)
    assert all_and_each_without_one(["x", "y"]) == ("x+y", "x", "y")
    assert all_and_each_without_one(["x", "y", "z"]) == ("x+y+z", "x+y", "x+z", "y+z")
    assert modalities_of(("a", "clip")) == ("video", "audio", "text", "clip")
    assert modalities_of(("clip", "wavlm")) == ("clip", "wavlm")
    assert len(subsets("abcd")) == 15 and len(subsets("abcdef")) == 13
    assert all(any(flags) for flags in subsets("abcdef").values())


def test_the_stage_refuses_groups_that_are_not_there(tmp_path: Path) -> None:
    data = make_features(60)
    for split in ("train", "val"):
        data.save(tmp_path / "features" / split)
    config = FusionConfig(voters=("a+clip",), groups=("clip",))
    recipe: Any = SimpleNamespace(fusion=config, run=SimpleNamespace(seed=0))
    with pytest.raises(InvalidInputError, match="the voters read clip, and"):
        train(recipe, tmp_path, tmp_path)


def test_one_group_is_enough(made: Path) -> None:
    folders = find_groups(made, ["signal"])
    sets = from_labels(folders, read_label_file(made / "labels.csv"), DataConfig()).sets
    config = FusionConfig(
        branch=BranchConfig(hidden=8), groups=("signal",), voters=("signal",), epochs=2, folds=2
    )
    model, _, _ = fit_fusion(sets["train"], sets["val"], config, 0, len(LABELS))
    scores, shares = model.judge(*sets["test"].inputs())
    there = sets["test"].presence[:, 0]
    torch.testing.assert_close(scores.sum(dim=2)[:, 0], there.float())
    assert torch.equal(shares[:, 0, 0] > 0, there)
