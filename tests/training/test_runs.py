"""The run card: what it keeps, and which recipes it takes for the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from merkit.errors import InvalidInputError
from merkit_training.costs import keep_costs
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.runs import RunCard, write_json


def _finished(run: Path, recipe: Recipe) -> RunCard:
    (run / "corpus").mkdir(parents=True)
    write_json(run / "corpus" / "card.json", {})
    card = RunCard(run, recipe, run / "corpus")
    keep_costs(_folder(run), "joint", {"samples_per_second": 3.0})
    card.record("joint_encoder", {"waf": 0.5}, 1.25)
    return card


def _folder(run: Path) -> Path:
    (run / "joint_encoder").mkdir(exist_ok=True)
    return run / "joint_encoder"


def test_the_card_keeps_what_made_the_run(tmp_path: Path) -> None:
    _finished(tmp_path, recipe_from({}))
    kept = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert len(kept["data"]) == 64 and kept["packages"]["accelerate"]
    assert kept["hardware"]["cores"] >= 1 and kept["hardware"]["memory_gb"] > 0
    stage = kept["stages"]["joint_encoder"]
    assert stage["scores"] == {"waf": 0.5} and stage["seconds"] == 1.2
    assert stage["fits"] == {"joint": {"samples_per_second": 3.0}}


def test_a_key_added_since_has_its_default(tmp_path: Path) -> None:
    recipe = recipe_from({})
    _finished(tmp_path, recipe)
    for name in ("run.json", "recipe.json"):
        content = json.loads((tmp_path / name).read_text("utf-8"))
        if name == "run.json":
            del content["stages"]["joint_encoder"]["recipe"]["noise_share"]
        else:
            del content["preprocessing"]["grid"]
        write_json(tmp_path / name, content)
    RunCard(tmp_path, recipe, tmp_path / "corpus")
    threads = replace(recipe.joint_encoder, threads=7)
    RunCard(tmp_path, replace(recipe, joint_encoder=threads), tmp_path / "corpus")
    joint = replace(recipe.joint_encoder, noise_share=0.25)
    with pytest.raises(InvalidInputError, match=r"joint_encoder.*0\.5.*not .*0\.25") as caught:
        RunCard(tmp_path, replace(recipe, joint_encoder=joint), tmp_path / "corpus")
    assert "prosody" not in str(caught.value)  # only what differs is told
    other = replace(recipe, preprocessing=replace(recipe.preprocessing, grid=3))
    with pytest.raises(InvalidInputError, match=r"\[preprocessing\].*'grid': 2.*'grid': 3"):
        RunCard(tmp_path, other, tmp_path / "corpus")


def test_a_stage_under_way_keeps_its_table(tmp_path: Path) -> None:
    recipe = recipe_from({})
    (tmp_path / "corpus").mkdir()
    RunCard(tmp_path, recipe, tmp_path / "corpus")
    other = replace(recipe, joint_encoder=replace(recipe.joint_encoder, modality_dropout=0.3))
    RunCard(tmp_path, other, tmp_path / "corpus")  # nothing has begun
    (_folder(tmp_path) / "joint.checkpoint").touch()
    RunCard(tmp_path, other, tmp_path / "corpus")
    with pytest.raises(InvalidInputError, match=r"joint_encoder.*0\.3.*not .*0\.1"):
        RunCard(tmp_path, recipe, tmp_path / "corpus")


def test_noise_that_was_trained_with_is_part_of_the_stage(tmp_path: Path) -> None:
    recipe = recipe_from({"recognizer": {"epochs": 1, "augment": "noise"}})
    (tmp_path / "corpus").mkdir()
    card = RunCard(tmp_path, recipe, tmp_path / "corpus")
    louder = replace(recipe, noise=replace(recipe.noise, ambient_snr=(0.0, 5.0)))
    (tmp_path / "recognizer").mkdir()
    (tmp_path / "recognizer" / "recognizer.checkpoint").touch()
    with pytest.raises(InvalidInputError, match=r"\[noise\].*ambient_snr.*5\.0, 12\.0.*0\.0, 5\.0"):
        RunCard(tmp_path, louder, tmp_path / "corpus")
    card.record("recognizer", {"cer": 0.5}, 1.0)
    RunCard(tmp_path, recipe, tmp_path / "corpus")
    with pytest.raises(InvalidInputError, match=r"\[noise\].*ambient_snr"):
        RunCard(tmp_path, louder, tmp_path / "corpus")
    content = json.loads((tmp_path / "run.json").read_text("utf-8"))
    del content["stages"]["recognizer"]["tables"]  # as written before it was kept
    write_json(tmp_path / "run.json", content)
    RunCard(tmp_path, louder, tmp_path / "corpus")


def test_noise_that_nobody_hears_may_change(tmp_path: Path) -> None:
    recipe = recipe_from({"recognizer": {"epochs": 1}, "separator": {"noise_share": 0.0}})
    (tmp_path / "corpus").mkdir()
    card = RunCard(tmp_path, recipe, tmp_path / "corpus")
    for stage in ("recognizer", "separator"):
        (tmp_path / stage).mkdir()
        card.record(stage, {"cer": 0.5}, 1.0)
    other = replace(recipe, noise=replace(recipe.noise, rooms=3))
    RunCard(tmp_path, other, tmp_path / "corpus")


def test_features_of_clips_without_words_follow_from_what_wrote_them(tmp_path: Path) -> None:
    recipe = recipe_from({"recognizer": {"epochs": 1}})
    (tmp_path / "corpus").mkdir()
    card = RunCard(tmp_path, recipe, tmp_path / "corpus")
    for stage in ("recognizer", "features"):
        (tmp_path / stage).mkdir()
    card.record("recognizer", {"cer": 0.5}, 1.0)
    card.record("features", {"wordless": 3}, 1.0)
    RunCard(tmp_path, recipe, tmp_path / "corpus")
    wider = replace(recipe, hearing=replace(recipe.hearing, beam=20))
    with pytest.raises(InvalidInputError, match=r"\[hearing\].*beam"):
        RunCard(tmp_path, wider, tmp_path / "corpus")
    (tmp_path / "separator").mkdir()
    card.record("separator", {"si_sdri": 0.5}, 1.0)
    with pytest.raises(InvalidInputError, match=r"what features had been trained on"):
        RunCard(tmp_path, recipe, tmp_path / "corpus")
    content = json.loads((tmp_path / "run.json").read_text("utf-8"))
    content["stages"]["features"] |= {"on": {}, "tables": {}}  # as where all clips had words
    write_json(tmp_path / "run.json", content)
    RunCard(tmp_path, wider, tmp_path / "corpus")


def test_what_was_trained_on_something_else_is_refused(tmp_path: Path) -> None:
    recipe = recipe_from({})
    (tmp_path / "corpus").mkdir()
    card = RunCard(tmp_path, recipe, tmp_path / "corpus")
    for stage in ("tokenizer", "text_encoder", "audio_encoder", "features", "fusion"):
        (tmp_path / stage).mkdir()
        card.record(stage, {"waf": 0.5}, 1.0)
    RunCard(tmp_path, recipe, tmp_path / "corpus")
    write_json(tmp_path / "audio_encoder" / "card.json", {"scores": {"waf": 0.6}})
    with pytest.raises(InvalidInputError, match=r"what features and fusion had been") as caught:
        RunCard(tmp_path, recipe, tmp_path / "corpus")
    assert str(tmp_path / "fusion") in str(caught.value)
    for stage in ("features", "fusion"):
        (tmp_path / stage / "card.json").unlink()
    RunCard(tmp_path, recipe, tmp_path / "corpus")
    (tmp_path / "tokenizer" / "card.json").unlink()
    with pytest.raises(InvalidInputError, match=r"what text_encoder had been"):
        RunCard(tmp_path, recipe, tmp_path / "corpus")


def test_a_stage_that_was_killed_before_it_was_noted_is_noted(tmp_path: Path) -> None:
    card = _finished(tmp_path, recipe_from({}))
    content = json.loads((tmp_path / "run.json").read_text("utf-8"))
    write_json(tmp_path / "run.json", content | {"stages": {}})
    card = RunCard(tmp_path, recipe_from({}), tmp_path / "corpus")
    card.adopt("joint_encoder")
    kept = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert kept["stages"]["joint_encoder"]["scores"] == {"waf": 0.5}


def test_a_key_that_is_gone_counts_as_another_recipe(tmp_path: Path) -> None:
    recipe = recipe_from({})
    _finished(tmp_path, recipe)
    content = json.loads((tmp_path / "run.json").read_text("utf-8"))
    content["stages"]["joint_encoder"]["recipe"]["old"] = 1
    write_json(tmp_path / "run.json", content)
    with pytest.raises(InvalidInputError, match="'old': 1"):
        RunCard(tmp_path, recipe, tmp_path / "corpus")
