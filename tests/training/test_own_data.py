"""From a table of one's own clips and a checkpoint to answers in one's own classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from own_clips import CLASSES, write_faulty, write_own_clips, write_table
from transformers import HubertConfig, HubertModel

import merkit
from merkit_export.build import OWN_NOTICE, build
from merkit_training.cli import main
from merkit_training.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"
RECIPE = """
[run]
name = "own"
[data]
workers = 1
[face_encoder]
hidden = 32
layers = 1
heads = 2
patch = 16
single_epochs = 2
grid_epochs = 1
[face_encoder_large]
architecture = "internvit"
hidden = 32
layers = 1
heads = 2
patch = 16
single_epochs = 1
grid_epochs = 1
[audio_encoder]
checkpoint = "{checkpoint}"
epochs = 0
[text_encoder]
vocabulary = 400
hidden = 32
layers = 1
heads = 2
intermediate = 32
epochs = 1
[joint_encoder]
hidden = 32
layers = 1
heads = 2
intermediate = 32
tower_epochs = 1
epochs = 1
[fusion]
epochs = 20
folds = 3
table_seeds = 1
bootstrap = 100
"""


def write_checkpoint(folder: Path) -> Path:
    """A HuBERT of the large style at random weights, as its authors publish it."""
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 8, 4),
        conv_stride=(5, 8, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
    )
    HubertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documented command, on a miniature."""
    root = tmp_path_factory.mktemp("own")
    rows = write_own_clips(root)
    table = write_table(root / "my.csv", [*rows, *write_faulty(root)])
    recipe = root / "recipe.toml"
    recipe.write_text(RECIPE.format(checkpoint=write_checkpoint(root / "hubert")), "utf-8")
    command = ["run", str(recipe), "--clips", str(table), "--out", str(root / "run")]
    assert main(command) == 0
    return root / "run"


def test_every_stage_ran_and_speaks_of_own_classes(run: Path) -> None:
    facts = json.loads((run / "fusion" / "config.json").read_text("utf-8"))
    assert facts["labels"] == sorted(CLASSES) and facts["widths"]["a"] == 24
    tables = json.loads((run / "fusion" / "tables.json").read_text("utf-8"))
    assert list(tables["clips"]) == ["test"] and not tables["ceilings"]
    page = (run / "fusion" / "tables.md").read_text("utf-8")
    assert "synthetic" not in page and "ceiling" not in page.lower()


def test_the_command_goes_on_where_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = run.parent
    command = ["run", str(root / "recipe.toml"), "--clips", str(root / "my.csv")]
    assert main([*command, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.count("done before, skipped") >= 8 and "corrupt: 1" in said


def test_the_bundle_answers_in_own_classes(run: Path, tmp_path: Path) -> None:
    bundle = build(run, tmp_path / "bundle", say=lambda _line: None)
    assert (
        bundle.manifest["notice"] == OWN_NOTICE
        and "corpus" not in bundle.manifest["provenance"]["stages"]
    )
    clip = run.parent / "media" / "clip001.mp4"
    with merkit.load(bundle.root, providers=["cpu"]) as client:
        answer = client.predict(clip, text="number 1 feels bright")
    assert answer.label in CLASSES and set(answer.scores) == set(CLASSES)


def test_the_example_recipe_is_one() -> None:
    recipe = load_recipe(RECIPES / "own-data.toml")
    assert recipe.run.name == "own" and recipe.data.encoder_share == 0.5
