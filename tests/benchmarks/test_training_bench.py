"""Training costs are those of every stage, at one epoch each and nothing else changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from merkit_bench.training import TRAINED, one_epoch, table_rows
from merkit_training.recipe import load_recipe
from merkit_training.stages import is_asked

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "tiny.toml"


def test_every_stage_trains_once_on_a_share_of_the_corpus() -> None:
    stated = load_recipe(RECIPE)
    recipe = one_epoch(stated, 10)
    assert all(is_asked(recipe, stage) for stage in TRAINED)
    assert not is_asked(stated, "face_pretraining")
    assert (recipe.face_encoder.single_epochs, recipe.face_encoder.grid_epochs) == (1, 1)
    assert recipe.synth.faces_train * 10 == stated.synth.faces_train
    assert recipe.synth.seed == stated.synth.seed
    assert recipe.fusion == stated.fusion
    kept = replace(recipe.text_encoder, epochs=stated.text_encoder.epochs)
    assert replace(kept, pretrain_epochs=stated.text_encoder.pretrain_epochs) == stated.text_encoder


def test_rows_name_stage_and_fit() -> None:
    costs = {"joint": {"samples_per_second": 1234.5, "peak_memory_mb": 1536.0}}
    assert table_rows("joint_encoder", costs) == ["| joint_encoder | joint | 1,234 | 1.50 |"]
