"""Studies: their files are checked, cells share what they may, and pages say what figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_run import write_random_run
from tiny_corpus import write_tiny_corpus

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit.pipeline import GROUPS
from merkit_training.fusion.features import Decoded, Encoder
from merkit_training.recipe import Recipe
from merkit_training.runs import read_json, write_json
from merkit_training.studies import cells as running
from merkit_training.studies.cells import cells_of, run_study
from merkit_training.studies.inputs import Inputs
from merkit_training.studies.measure import TESTS, features_of
from merkit_training.studies.page import study_page
from merkit_training.studies.plan import Study, read_study

STUDIES = sorted((Path(__file__).parents[2] / "training" / "studies").glob("*.toml"))
SMALL = """
name = "small"
title = "A small study"
about = "Two rows."
recipe = "recipe.toml"
stages = ["face_pretraining", "face_encoder"]
shared = ["face_pretraining"]
groups = ["v"]
[[variants]]
name = "adam"
face_encoder = { optimizer = "adamw" }
[[variants]]
name = "sgd"
face_encoder = { optimizer = "sgd" }
[[claims]]
says = "AdamW wins"
better = "adam"
worse = "sgd"
"""
RECIPE = """
[face_pretraining]
epochs = 1
batch_size = 32
decoder_hidden = 16
decoder_heads = 2
decoder_layers = 1
[face_encoder]
hidden = 16
heads = 2
layers = 1
single_epochs = 1
grid_epochs = 1
grid_singles = 0
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return written(tmp_path, SMALL)


def written(folder: Path, text: str) -> Study:
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "study.toml").write_text(text)
    return read_study(folder / "study.toml")


@pytest.mark.parametrize("path", [p for p in STUDIES if "[[variants]]" in p.read_text()])
def test_every_shipped_study_is_sound(path: Path) -> None:
    study = read_study(path)
    assert study.seeds >= 3 and study.claims
    assert set(study.shared) <= set(study.stages)
    assert path.stem == study.name


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"face_pretraining", "face', '"face_training", "face', "face_training"),
        ('groups = ["v"]', 'groups = ["v+x"]', "group 'x'"),
        ('worse = "sgd"', 'worse = "sdg"', "'sdg'"),
        ('optimizer = "sgd"', 'optimiser = "sgd"', "'optimiser'"),
        ('name = "sgd"', 'name = "adam"', "no name twice"),
        ("seeds = 3", "seeds = 0", "seeds"),
        ('face_encoder = { optimizer = "sgd" }', "face_encoder = 3", "face_encoder is 3"),
        ('recipe = "recipe.toml"', 'recipe = "missing.toml"', "missing.toml"),
    ],
)
def test_a_wrong_study_is_refused_by_name(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = SMALL.replace('groups = ["v"]', 'groups = ["v"]\nseeds = 3')
    assert old in text
    with pytest.raises(InvalidInputError, match=told):
        written(tmp_path, text.replace(old, new))


def test_cells_share_pre_training_and_train_the_rest(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def note(recipe: Recipe, *_: object) -> dict[str, Any]:
        measured.append(recipe.face_encoder.optimizer)
        return {}

    monkeypatch.setattr(running, "measure", note)
    corpus, out = write_tiny_corpus(tmp_path / "corpus", train=64, val=16), tmp_path / "out"
    cells = cells_of(study, corpus, out, [0, 1])
    assert [(c.seed, c.variant.name) for c in cells] == [
        (0, "adam"), (0, "sgd"), (1, "adam"), (1, "sgd")
    ]  # fmt: skip
    assert cells[0].shared("face_pretraining") == cells[1].shared("face_pretraining")
    assert cells[0].shared("face_pretraining") != cells[2].shared("face_pretraining")
    running._train_all_shared([(cells[0], "face_pretraining")])
    for cell in cells[:2]:
        running._train_cell(cell)
    assert measured == ["adamw", "sgd"]
    weights = [(c.run / "face_pretraining" / "model.safetensors").read_bytes() for c in cells[:2]]
    assert weights[0] == weights[1]
    starts = {read_json(c.run / "face_encoder" / "card.json")["start"] for c in cells[:2]}
    assert starts == {"face_pretraining"}
    run_study(cells[:2], workers=1)  # all done: nothing is decoded or trained
    assert len(measured) == 2
    changed = written(tmp_path, SMALL.replace('"sgd" }', '"sgd", momentum = 0.5 }'))
    other = cells_of(changed, corpus, out, [0])[1]
    assert not other.done
    with pytest.raises(InvalidInputError, match="face_encoder"):  # nothing stale is measured
        running._train_cell(other)


def test_what_encoders_hear_is_part_of_what_figures_follow_from(tmp_path: Path) -> None:
    def marks(hearing: str) -> list[str]:
        text = SMALL.replace('optimizer = "sgd" }', f'optimizer = "sgd" }}\nhearing = {hearing}')
        study = written(tmp_path, text)
        return [cell.mark for cell in cells_of(study, tmp_path, tmp_path / "out", [0])]

    plain = marks("{}")
    assert marks('{ joint_hears = "original", beam = 2 }') == plain  # nobody hears what is cleaned
    cleaned = marks('{ joint_hears = "cleaned" }')
    assert cleaned[0] == plain[0] and cleaned[1] != plain[1]
    assert marks('{ joint_hears = "cleaned", threshold = 0.2 }')[1] != cleaned[1]


def test_features_are_those_of_the_run_s_own_extraction(tmp_path: Path) -> None:
    run, rng = write_random_run(tmp_path / "run"), np.random.default_rng(0)
    texts = ("Leave me alone!", "", "好的。")
    clips = []
    for faces, seconds in ((4, 1.0), (0, 2.0), (3, 0.0)):
        crops = rng.integers(0, 256, (faces, 64, 64, 3)).astype(np.uint8)
        wave = (0.1 * rng.standard_normal(int(16_000 * seconds))).astype(np.float32)
        clips.append(Decoded(crops, wave))
    expected = Encoder(run, Preprocessing())(clips, texts)
    found = features_of(Encoder(run, Preprocessing()), as_inputs(clips, texts))
    for group in "atvV":
        there = expected[GROUPS[group]].abs().sum(dim=1) > 0
        assert there.any()
        torch.testing.assert_close(found.groups[group][there], expected[GROUPS[group]][there])
    views = expected["joint_views"]
    there = views.abs().sum(dim=2) > 0
    torch.testing.assert_close(found.groups["j"][there], views[there])
    assert torch.equal(found.presence, expected["presence"])
    alone = features_of(Encoder(run, Preprocessing(), "v"), as_inputs(clips, texts))
    torch.testing.assert_close(alone.groups["v"], found.groups["v"])
    assert alone.groups["j"].shape == (3, 3, 1) and not alone.presence[:, 1:].any()


def as_inputs(clips: list[Decoded], texts: tuple[str, ...]) -> Inputs:
    count = len(clips)
    arrays: dict[str, Any] = {
        "crops": np.zeros((count, 8, 64, 64, 3), np.uint8),
        "face_count": np.array([[len(c.crops)] for c in clips]),
        "waveform": np.zeros((count, 40_000), np.float32),
        "waveform_length": np.array([[len(c.waveform)] for c in clips]),
    }
    for i, clip in enumerate(clips):
        arrays["crops"][i, : len(clip.crops)] = clip.crops
        arrays["waveform"][i, : len(clip.waveform)] = clip.waveform
    names = tuple(f"c{i}" for i in range(count))
    return Inputs(arrays, names, texts, names, np.zeros(count, np.int64))


def fill(study: Study, out: Path, right: dict[str, float], seeds: range) -> str:
    """Measured cells whose rows are right in a share of clips; the page."""
    truth = np.random.default_rng(0).integers(0, 6, 400)
    cells = cells_of(study, out, out, list(seeds))
    for cell in cells:
        if cell.variant.name not in right:
            continue
        rng = np.random.default_rng([cell.seed, len(cell.variant.name)])
        hit = rng.random(400) < right[cell.variant.name]
        labels = np.where(hit, truth, rng.integers(0, 6, 400)).tolist()
        content = {
            "labels": {"v": dict.fromkeys(TESTS, labels)},
            "truth": dict.fromkeys(TESTS, truth.tolist()),
            "mark": cell.mark,
        }
        write_json(cell.run / "measured.json", content)
    return study_page(study, cells, 6)


def test_a_page_says_what_its_figures_say(study: Study, tmp_path: Path) -> None:
    better = fill(study, tmp_path / "a", {"adam": 0.9, "sgd": 0.5}, range(3))
    assert better.count("**holds**") == len(TESTS) and "reversed**" not in better
    worse = fill(study, tmp_path / "b", {"adam": 0.5, "sgd": 0.9}, range(3))
    assert worse.count("**reversed**") == len(TESTS)
    few = fill(study, tmp_path / "d", {"adam": 0.9, "sgd": 0.5}, range(2))
    assert few.count("too few seeds") == len(TESTS) and "holds**" not in few
    even = fill(study, tmp_path / "c", {"adam": 0.7, "sgd": 0.7}, range(3))
    assert even.count("not decided") == len(TESTS)
    assert "3 seeds (0, 1, 2)" in even and "Synthetic" in even


def test_a_page_leaves_out_what_is_not_measured_and_says_so(study: Study, tmp_path: Path) -> None:
    page = fill(study, tmp_path, {"adam": 0.9}, range(2))
    assert "Not yet measured: sgd." in page and "directions" not in page
    nothing = study_page(study, cells_of(study, tmp_path, tmp_path / "none", [0]), 6)
    assert "Not yet measured: adam; sgd." in nothing


def test_the_command_writes_a_page_and_names_mistakes(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from merkit_training.cli import main

    fill(study, tmp_path / "out" / "small", {"adam": 0.9, "sgd": 0.5}, range(3))
    base = ["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out"), "--corpus"]
    page = tmp_path / "docs" / "small.md"
    corpus = write_tiny_corpus(tmp_path / "corpus")
    assert main([*base, str(corpus), "--only-page", "--page", str(page)]) == 0
    assert page.read_text().startswith("# A small study")
    assert main([*base, str(tmp_path / "nowhere")]) == 2
    assert "there is no corpus" in capsys.readouterr().err
    assert main([*base, str(corpus), "--seeds", "1", "1"]) == 2
    assert main([*base, str(corpus), "--workers", "0"]) == 2
    assert json.loads((corpus / "card.json").read_text())
