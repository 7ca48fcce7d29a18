"""The face encoders: what they learn, how grids start, and what is exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_corpus import write_tiny_corpus

from merkit.contract import Preprocessing
from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit_training.encoders.vision import train as vision
from merkit_training.encoders.vision.augment import augment
from merkit_training.encoders.vision.config import FaceEncoderConfig
from merkit_training.encoders.vision.encoder import FaceEncoder, normalised, tile_positions, tiled
from merkit_training.encoders.vision.faces import FaceSets, repeated
from merkit_training.labels import FACE8, MER6
from merkit_training.preprocess import FaceGrid
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.runs import write_json
from merkit_training.steps import LOADERS, load_step

SMALL = FaceEncoderConfig(
    hidden=32, layers=1, heads=2, patch=16, single_epochs=6, grid_epochs=2, grid_singles=20,
    batch_size=16, lr=5e-3, threads=1,
)  # fmt: skip
BOTH = [SMALL, replace(SMALL, architecture="internvit", hidden=40)]
IDS = ["vit", "internvit"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"), train=160)


def _recipe(config: FaceEncoderConfig = SMALL) -> Recipe:
    return replace(recipe_from({}), face_encoder=config, face_encoder_large=BOTH[1])


@pytest.mark.parametrize("config", BOTH, ids=IDS)
def test_it_learns_saves_and_loads(corpus: Path, tmp_path: Path, config: FaceEncoderConfig) -> None:
    scores = vision.train_face_encoder(_recipe(config), corpus, tmp_path)
    assert scores["single_accuracy"] > 0.6 and scores["grid_accuracy"] > 0.6
    folder = tmp_path / "face_encoder"
    files = {"card.json", "config.json", "model.safetensors", "fits.json"}  # and no checkpoint
    assert {f.name for f in folder.iterdir()} == files
    assert json.loads((folder / "card.json").read_text("utf-8"))["scores"] == scores
    encoder = load_step(tmp_path, "face_encoder")
    assert encoder(torch.zeros(2, 3, 128, 128)).shape == (2, config.hidden)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


def test_labels_alone_teach_where_no_units_are_known(tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "corpus", train=160, units=False)
    scores = vision.train_face_encoder(_recipe(), corpus, tmp_path)
    assert scores["grid_accuracy"] > 0.6


def test_repeated_faces_keep_their_class_under_its_mer6_number(corpus: Path) -> None:
    faces = FaceSets.read(corpus)
    singles, grids = faces.singles["train"], repeated(faces, 30, seed=0)
    assert grids.images.shape == (30, 4, 64, 64, 3)
    first = {image.tobytes(): i for i, image in enumerate(singles.images)}
    for tiles, label in zip(grids.images, grids.labels, strict=True):
        assert len({tile.tobytes() for tile in tiles}) == 1
        assert FACE8[singles.labels[first[tiles[0].tobytes()]]] == MER6[label]


def test_the_same_seed_gives_the_same_weights(corpus: Path, tmp_path: Path) -> None:
    quick = replace(SMALL, single_epochs=1, grid_epochs=1)
    digests = set()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        vision.train_face_encoder(_recipe(quick).with_seed(seed), corpus, tmp_path / name)
        digests.add((tmp_path / name / "face_encoder" / "model.safetensors").read_bytes())
    assert len(digests) == 2


@pytest.mark.parametrize("config", BOTH, ids=IDS)
def test_each_tile_starts_as_the_single_face_reader(config: FaceEncoderConfig) -> None:
    """One layer without attention across tiles would see the same face four times over."""
    torch.manual_seed(0)
    single, grid = FaceEncoder(config, 64).eval(), FaceEncoder(config, 128).eval()
    key = "backbone.embeddings.position_embeddings"
    torch.nn.init.normal_(single.state_dict()[key])
    grid.load_state_dict(tile_positions(single.state_dict(), 2))
    face = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        alone = single.backbone.embeddings(face)[:, 1:].view(4, 4, -1)
        tiles = grid.backbone.embeddings(face.tile(1, 1, 2, 2))[:, 1:].view(8, 8, -1)
    for row in (0, 4):
        for column in (0, 4):
            torch.testing.assert_close(tiles[row : row + 4, column : column + 4], alone)


def test_training_lays_tiles_out_as_the_preprocess_step_does() -> None:
    p = Preprocessing()
    crops = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8)
    served = FaceGrid(p)(torch.from_numpy(crops), torch.tensor([[4], [4]]))
    trained = tiled((torch.from_numpy(crops).float() / 127.5 - 1).movedim(-1, -3), 2)
    torch.testing.assert_close(trained, served)


def test_augmentation_distorts_within_range_and_by_seed() -> None:
    faces, p = torch.rand(8, 4, 3, 64, 64) * 2 - 1, Preprocessing()
    torch.manual_seed(0)
    first = augment(faces, p)
    torch.manual_seed(0)
    assert torch.equal(first, augment(faces, p))
    assert not torch.equal(first, augment(faces, p))
    assert first.shape == faces.shape and first.min() >= -1 and first.max() <= 1


def test_augmentation_is_the_same_in_any_normalisation() -> None:
    """ImageNet's mean and deviation put black and white beyond -1..1."""
    imagenet = Preprocessing(face_mean=(0.485, 0.456, 0.406), face_std=(0.229, 0.224, 0.225))
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 64, 64, 3), dtype=np.uint8)
    seen = []
    for p in (Preprocessing(), imagenet):
        torch.manual_seed(0)
        mean, std = (torch.tensor(v)[:, None, None] for v in (p.face_mean, p.face_std))
        seen.append(augment(normalised(images, p), p) * std + mean)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=0)
    assert seen[1].min() < 0.01 and seen[1].max() > 0.99


@pytest.mark.parametrize("config", BOTH, ids=IDS)
def test_the_export_equals_the_module(config: FaceEncoderConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = FaceEncoder(config, 128).eval()
    program = torch.onnx.export(
        encoder, (torch.randn(2, 3, 128, 128),), dynamo=True, opset_version=20, verbose=False,
        input_names=["face_grid"], output_names=["face_features"], dynamic_shapes=({0: "batch"},),
    )  # fmt: skip
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 3):
        images = torch.randn(batch, 3, 128, 128)
        (found,) = session.run(None, {"face_grid": images.numpy()})
        np.testing.assert_allclose(found, encoder(images).detach().numpy(), atol=1e-5)


def test_neighbours_change_nothing() -> None:
    torch.manual_seed(0)
    encoder = FaceEncoder(SMALL, 128).eval()
    images = torch.randn(3, 3, 128, 128)
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(encoder(images), alone, atol=1e-5, rtol=0)


def test_sizes_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="patch"):
        vision.train_face_encoder(_recipe(replace(SMALL, patch=24)), corpus, tmp_path)


def test_steps_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'face' is unknown"):
        load_step(tmp_path, "face")
    with pytest.raises(BundleNotFoundError):
        load_step(tmp_path, "face_encoder")
    table: dict[str, Any] = {"encoder": {"hidden": 32}, "side": 128}
    write_json(tmp_path / "face_encoder" / "config.json", table)
    with pytest.raises(BundleNotFoundError, match=r"model\.safetensors"):
        load_step(tmp_path, "face_encoder")
    (tmp_path / "face_encoder" / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(BundleCorruptError):
        load_step(tmp_path, "face_encoder")


def test_the_preprocess_step_follows_the_runs_recipe(tmp_path: Path) -> None:
    recipe = replace(recipe_from({}), preprocessing=Preprocessing(face_mean=(0.1, 0.2, 0.3)))
    write_json(tmp_path / "recipe.json", recipe.to_json())
    assert load_step(tmp_path, "preprocess").faces.mean.flatten()[0] == pytest.approx(25.5)


def test_there_is_a_loader_for_every_onnx_step() -> None:
    from merkit.contract import Hearing
    from merkit.pipeline import GROUPS, Chain, standard_contract

    chain = Chain(Hearing(), 4, separated=True, marks=2)
    contract = standard_contract("ab", dict.fromkeys(GROUPS, 4), chain=chain)
    assert set(LOADERS) == {step.name for step in contract.steps if step.kind == "onnx"}
