"""Masked autoencoding: the published shapes and files, what it learns, what starts from it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_corpus import write_tiny_corpus
from torch import nn
from transformers import ViTMAEForPreTraining

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.checkpoints import open_checkpoint
from merkit_training.encoders.vision.config import FaceEncoderConfig
from merkit_training.encoders.vision.encoder import FaceEncoder
from merkit_training.encoders.vision.mae import (
    from_recipe,
    load_published,
    our_key,
    published_key,
    save_published,
)
from merkit_training.encoders.vision.mae_train import FacePool, crop_at_random, train
from merkit_training.encoders.vision.start import start_encoder
from merkit_training.recipe import Recipe, recipe_from

ENCODER = {"hidden": 32, "layers": 2, "heads": 2, "patch": 16}
MAE = {"epochs": 4, "batch_size": 16, "lr": 4e-3, "decoder_hidden": 16, "decoder_layers": 1,
       "threads": 1}  # fmt: skip
PAPER = {
    "face_encoder": {"hidden": 768, "layers": 12, "heads": 12, "patch": 16},
    "face_pretraining": {
        "epochs": 300, "side": 224, "decoder_hidden": 512, "decoder_layers": 8,
        "decoder_heads": 16,
    },
}  # fmt: skip


def _recipe(encoder: dict[str, Any] | None = None, **mae: Any) -> Recipe:
    return recipe_from({"face_encoder": ENCODER | (encoder or {}), "face_pretraining": MAE | mae})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"), train=160)


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    train(_recipe(), corpus, run)
    return run


def test_the_paper_s_shapes_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        _, model = from_recipe(recipe_from(PAPER))
    assert sum(p.numel() for p in model.parameters()) == 111_907_840
    assert sum(p.numel() for p in model.vit.parameters()) == 85_798_656


def test_it_starts_with_mae_s_positions() -> None:
    """transformers fills its tables with zeros on the way, and a decoder without positions learns
    the mean patch and no more."""
    _, model = from_recipe(_recipe())
    encoder, decoder = model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed
    for table in (encoder, decoder):
        width = table.shape[2]
        for row, column in ((0, 0), (2, 1), (3, 3)):
            expected = []
            for at in (column, row):
                angles = [at / 10_000 ** (4 * k / width) for k in range(width // 4)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            found = table[0, 1 + 4 * row + column].tolist()
            assert found == pytest.approx(expected, abs=1e-6)
        assert not table[0, 0].any() and not table.requires_grad
    assert model.decoder.mask_token.std() > 0


def test_every_key_is_written_as_published_and_read_back(tmp_path: Path) -> None:
    """The names are those of facebook/vit-mae-base, which transformers 5 reads but does not
    write: its own `save_pretrained` calls the decoder's layers decoder_encoder.layer.N."""
    _, model = from_recipe(_recipe())
    save_published(model, tmp_path / "ours")
    names = set(open_checkpoint(str(tmp_path / "ours")).names())
    for key in (
        "vit.encoder.layer.1.attention.attention.query.weight",
        "vit.encoder.layer.0.attention.output.dense.bias",
        "vit.encoder.layer.0.intermediate.dense.weight",
        "vit.encoder.layer.0.output.dense.weight",
        "vit.encoder.layer.1.layernorm_before.weight",
        "vit.layernorm.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
        "decoder.decoder_layers.0.attention.attention.value.bias",
        "decoder.decoder_layers.0.output.dense.weight",
        "decoder.decoder_pred.weight",
        "decoder.mask_token",
    ):
        assert key in names
    for key in model.state_dict():
        assert our_key(published_key(key)) == key
    theirs, told = ViTMAEForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values())
    _assert_equal(theirs, model)
    model.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        _, other = from_recipe(_recipe())
        load_published(other, open_checkpoint(str(tmp_path / folder)))
        _assert_equal(other, model)


def test_it_learns_to_tell_hidden_patches(run: Path, corpus: Path) -> None:
    """A patch of the tiny corpus is noise around the face's colour, which visible patches tell."""
    recipe = _recipe(norm_pixels=False, whitened=False, epochs=10, lr=2e-2)
    scores = train(recipe, corpus, run.parent / "plain")
    assert scores["reconstruction"] < 0.5 * scores["mean_patch"]
    assert scores["explained"] == pytest.approx(1 - scores["reconstruction"] / scores["mean_face"])
    card = json.loads((run.parent / "plain/face_pretraining/card.json").read_text("utf-8"))
    assert card["scores"] == scores
    assert not list((run / "face_pretraining").glob("*.checkpoint"))


def test_the_same_seed_gives_the_same_weights(run: Path, corpus: Path, tmp_path: Path) -> None:
    train(_recipe(), corpus, tmp_path / "again")
    train(_recipe().with_seed(1), corpus, tmp_path / "other")
    file = "face_pretraining/model.safetensors"
    first = (run / file).read_bytes()
    assert (tmp_path / "again" / file).read_bytes() == first
    assert (tmp_path / "other" / file).read_bytes() != first


def test_a_face_encoder_starts_as_the_pre_trained_one(run: Path) -> None:
    """With nothing hidden, the autoencoder's encoder and the face encoder are one function."""
    encoder = FaceEncoder(FaceEncoderConfig(**ENCODER), 64).eval()
    assert start_encoder(encoder, run)
    mae = ViTMAEForPreTraining.from_pretrained(run / "face_pretraining", mask_ratio=0.0).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = mae.vit(images).last_hidden_state[:, 1:].mean(dim=1)  # in a shuffled order
        torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_positions_of_another_side_are_interpolated(run: Path) -> None:
    small, large = (FaceEncoder(FaceEncoderConfig(**ENCODER), side) for side in (64, 128))
    assert start_encoder(small, run) and start_encoder(large, run)
    key = "backbone.embeddings.position_embeddings"
    tables = [e.state_dict()[key][0, 1:].view(n, n, -1) for e, n in ((small, 4), (large, 8))]
    blocks = tables[1].view(4, 2, 4, 2, -1).mean(dim=(1, 3))
    assert torch.nn.functional.cosine_similarity(blocks, tables[0], dim=-1).min() > 0.9


def test_there_may_be_nothing_to_start_from(run: Path, tmp_path: Path) -> None:
    plain = FaceEncoder(FaceEncoderConfig(**ENCODER), 64)
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    assert not start_encoder(plain, tmp_path)
    other = FaceEncoder(FaceEncoderConfig(**ENCODER, architecture="internvit"), 64)
    assert not start_encoder(other, run)
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())


def test_other_sizes_are_named(run: Path, corpus: Path, tmp_path: Path) -> None:
    encoder = FaceEncoder(FaceEncoderConfig(**ENCODER | {"hidden": 40}), 64)
    with pytest.raises(InvalidInputError, match=r"\(1, 1, 32\).*\(1, 1, 40\)"):
        start_encoder(encoder, run)
    recipe = _recipe({"layers": 3}, checkpoint=str(run / "face_pretraining"))
    with pytest.raises(InvalidInputError, match="num_hidden_layers 2; expected 3"):
        train(recipe, corpus, tmp_path)
    with pytest.raises(InvalidInputError, match="internvit"):
        train(_recipe({"architecture": "internvit"}), corpus, tmp_path)


def test_it_goes_on_from_a_checkpoint_with_that_one_s_decoder(
    run: Path, corpus: Path, tmp_path: Path
) -> None:
    recipe = _recipe(checkpoint=str(run / "face_pretraining"), epochs=1, lr=0.0, decoder_hidden=64)
    train(recipe, corpus, tmp_path)
    models = [ViTMAEForPreTraining.from_pretrained(r / "face_pretraining") for r in (run, tmp_path)]
    _assert_equal(*models)


def test_it_learns_from_gathered_faces_alone_even_without_validation(
    corpus: Path, tmp_path: Path
) -> None:
    images = np.load(corpus / "faces/images.npy")[:40, :48, :48]
    folder = tmp_path / "gathered/faces"
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "split.npy", np.zeros(40, np.int8))
    recipe = _recipe(sources=[str(folder.parent)], corpus=False, epochs=1)
    scores = train(recipe, tmp_path / "no corpus", tmp_path / "run")
    assert scores["faces"] == 40
    (folder / "split.npy").unlink()
    with pytest.raises(InvalidInputError, match=r"split\.npy"):
        train(recipe, tmp_path / "no corpus", tmp_path / "other")


def test_a_pool_numbers_faces_through_and_brings_them_to_one_side() -> None:
    dark, light = np.full((5, 8, 8, 3), 10, np.uint8), np.full((4, 16, 16, 3), 200, np.uint8)
    light[2] = 255
    pool = FacePool([(dark, np.array([0, 3])), (light, np.array([1, 2, 3]))])
    assert len(pool) == 5
    found = pool.batch(np.array([3, 0, 4]), 8, Preprocessing())
    assert found.shape == (3, 3, 8, 8)
    levels = (found.mean(dim=(1, 2, 3)) + 1) * 127.5
    torch.testing.assert_close(levels, torch.tensor([255.0, 10.0, 200.0]), atol=0.01, rtol=0)


def test_crops_are_seeded_parts_of_the_image() -> None:
    images = torch.rand(64, 3, 32, 32)
    torch.manual_seed(0)
    first = crop_at_random(images, 0.5)
    torch.manual_seed(0)
    assert torch.equal(crop_at_random(images, 0.5), first)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    slopes = (
        crop_at_random(ramp, 0.5)[:, 0, 0, 20] - crop_at_random(ramp, 0.5)[:, 0, 0, 10]
    ).sign()
    assert {-1.0, 1.0} == set(slopes.tolist())  # some are mirrored


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"mask": 1.0}, "something is hidden, something seen"),
        ({"corpus": False}, "nothing to learn from"),
        ({"epochs": 0, "checkpoint": "x"}, r"belongs into \[face_encoder\]"),
        ({"decoder_heads": 3}, "multiple of heads"),
        ({"least_area": 0.0}, "least_area"),
    ],
)
def test_tables_that_cannot_work_are_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        _recipe(**table)


def test_patch_and_side_must_fit() -> None:
    recipe = _recipe()
    recipe = replace(recipe, face_pretraining=replace(recipe.face_pretraining, side=40))
    with pytest.raises(InvalidInputError, match="divisor of the image's side, 40"):
        from_recipe(recipe)


def _assert_equal(one: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    assert one.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in one.state_dict().items())
