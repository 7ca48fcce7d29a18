"""The paper recipe builds the seed's own encoders, the base recipe an edge product's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from merkit_training.encoders.audio.encoder import from_recipe as audio_encoder
from merkit_training.encoders.joint.start import from_recipe as joint_encoder
from merkit_training.encoders.text.encoder import from_recipe as text_encoder
from merkit_training.encoders.vision.mae import from_recipe as autoencoder
from merkit_training.encoders.vision.train import from_recipe as face_encoder
from merkit_training.preprocess import Preprocess
from merkit_training.recipe import TABLES, Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"


def _recipe(name: str) -> Recipe:
    """A recipe's own shapes: what its checkpoints would say is left out."""
    recipe = load_recipe(RECIPES / f"{name}.toml")
    for table in TABLES:
        value = getattr(recipe, table)
        keys = {key for key in vars(value) if key.endswith("checkpoint")}
        recipe = replace(recipe, **{table: replace(value, **dict.fromkeys(keys, ""))})
    return recipe


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def paper() -> dict[str, tuple[Any, nn.Module]]:
    recipe = _recipe("paper")
    with torch.device("meta"):
        return {
            "mae": autoencoder(recipe),
            "face": face_encoder(recipe),
            "large": face_encoder(recipe, "face_encoder_large"),
            "audio": audio_encoder(recipe),
            "text": text_encoder(recipe),
            "joint": joint_encoder(recipe),
        }


def test_the_papers_encoders_have_the_published_numbers_of_parameters(
    paper: dict[str, tuple[Any, Any]],
) -> None:
    assert _size(paper["mae"][1]) == 111_907_840
    assert _size(paper["face"][1]) == 85_798_656
    assert _size(paper["large"][1].backbone) == 5_902_793_600
    assert _size(paper["audio"][1]) == 315_438_720
    assert _size(paper["text"][1]) == 13_264_901_120
    assert _size(paper["joint"][1].tower) == 636_784_640


def test_the_papers_features_have_the_published_widths(paper: dict[str, tuple[Any, Any]]) -> None:
    assert (paper["face"][0].side, paper["large"][0].side) == (224, 224)
    with torch.device("meta"):
        image = torch.empty(1, 3, 224, 224)
        assert paper["face"][1](image).shape == (1, 768)
        assert paper["large"][1](image).shape == (1, 3200)
    assert paper["audio"][0].hidden == paper["audio"][1].model.config.hidden_size == 1024
    assert paper["text"][0].hidden == 5120
    assert paper["joint"][0].llm.hidden == paper["joint"][1].width == 4096


def test_the_papers_preprocessing_is_the_published_one() -> None:
    p = _recipe("paper").preprocessing
    assert p.face_size * p.grid == 224
    assert (p.sample_rate, p.mel_bins, p.joint_window_seconds) == (16_000, 80, 30.0)
    clip = (
        torch.zeros(1, 4, 112, 112, 3, dtype=torch.uint8),
        torch.tensor([[4]]),
        torch.zeros(1, 16_000),
        torch.tensor([[16_000]]),
        torch.tensor([[1]]),
    )
    shapes = [tuple(value.shape) for value in Preprocess(p)(*clip)]
    assert shapes == [(1, 3, 224, 224), (1, 16_000), (1, 1), (1, 80, 3000), (1, 3)]


def test_the_paper_states_what_the_seed_states() -> None:
    recipe = load_recipe(RECIPES / "paper.toml")
    mae, face, large = recipe.face_pretraining, recipe.face_encoder, recipe.face_encoder_large
    assert (mae.side, mae.batch_size, mae.lr, mae.epochs, mae.accumulate) == (
        224,
        1024,
        2e-4,
        300,
        4,
    )
    assert mae.bf16 and face.bf16
    assert (face.lr, face.grid_lr, face.single_epochs + face.grid_epochs) == (2e-3, 2e-3, 100)
    assert (face.batch_size, face.accumulate, face.optimizer) == (1024, 4, "adamw")
    assert (large.batch_size, large.lr, large.optimizer, large.momentum) == (512, 2e-5, "sgd", 0.9)
    assert large.single_epochs + large.grid_epochs == 50
    assert large.tune == "parts" and large.train_projector and large.blocks is None
    assert recipe.joint_encoder.tune == "full" and not recipe.joint_encoder.freeze_tower
    assert recipe.audio_encoder.pool_layers == recipe.text_encoder.pool_layers == "mean"
    text = (RECIPES / "paper.toml").read_text("utf-8")
    assert 'momentum = 0.9  # read as momentum: "attenuation parameter 0.9"' in text


def test_the_base_recipe_has_an_edge_products_size() -> None:
    recipe = _recipe("base")
    with torch.device("meta"):
        face, large = face_encoder(recipe), face_encoder(recipe, "face_encoder_large")
        audio, text, joint = audio_encoder(recipe), text_encoder(recipe), joint_encoder(recipe)
        autoencoder(recipe)
    assert _size(face[1]) == 85_798_656 and face[0].side == 224
    assert _size(large[1].backbone) == pytest.approx(304e6, rel=0.01)
    assert _size(audio[1]) == pytest.approx(94.4e6, rel=0.01)
    assert audio[0].norm == "layer"  # a group norm's features would depend on padding
    assert _size(text[1]) == 596_049_920  # Qwen3-0.6B's
    assert joint[1].width == 1024
