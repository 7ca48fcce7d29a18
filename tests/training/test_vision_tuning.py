"""Each row of Table 2 changes exactly what it says: parts, frames, classes, optimiser, start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_corpus import write_tiny_corpus
from torch import Tensor, nn
from transformers import InternVLVisionConfig, InternVLVisionModel

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.encoders.vision import train as vision
from merkit_training.encoders.vision.config import FaceEncoderConfig
from merkit_training.encoders.vision.encoder import (
    FaceEncoder,
    encode_images,
    normalised,
    tile_positions,
    tiled,
    untiled,
)
from merkit_training.encoders.vision.faces import FaceSets, numbers_of
from merkit_training.encoders.vision.layouts import load_checkpoint
from merkit_training.fit import FitConfig
from merkit_training.labels import FACE3, FACE8, MER6, TO_FACE3
from merkit_training.preprocess import FaceGrid
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.runs import rounded, write_json
from merkit_training.steps import load_step

P = Preprocessing()
LARGE: dict[str, Any] = {
    "architecture": "internvit", "hidden": 40, "layers": 3, "heads": 2, "patch": 16,
    "single_epochs": 1, "grid_epochs": 1, "grid_singles": 8, "batch_size": 16, "lr": 5e-3,
    "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"), train=96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random InternViT whose position table is of a face's side."""
    folder = tmp_path_factory.mktemp("internvit")
    torch.manual_seed(0)
    sizes = InternVLVisionConfig(
        hidden_size=40, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        image_size=[64, 64], patch_size=[16, 16], norm_type="rms_norm", use_qk_norm=True,
    )  # fmt: skip
    model = InternVLVisionModel(sizes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return str(folder)


def _recipe(**table: Any) -> Recipe:
    return recipe_from({"face_encoder_large": LARGE | table})


def _trained(recipe: Recipe, corpus: Path, run: Path) -> tuple[dict[str, Any], FaceEncoder]:
    vision.train_face_encoder_large(recipe, corpus, run)
    card = json.loads((run / "face_encoder_large" / "card.json").read_text("utf-8"))
    encoder = load_step(run, "face_encoder_large")
    assert isinstance(encoder, FaceEncoder)
    return card, encoder


def _changed(checkpoint: str, encoder: FaceEncoder) -> set[str]:
    """Names of what differs from the checkpoint, its saving's rounding apart."""
    config = replace(encoder.config, checkpoint=checkpoint)
    start = FaceEncoder(config, 64)
    load_checkpoint(start)
    state = tile_positions(start.state_dict(), 2)
    found = encoder.state_dict()
    frozen = {k for k in state if torch.equal(rounded(state[k], "float16").float(), found[k])}
    return {name for name in found if name not in frozen}


def _names(encoder: FaceEncoder, *prefixes: str) -> set[str]:
    return {name for name in encoder.state_dict() if name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("table", "prefixes"),
    [
        ({"blocks": [1, 2]}, ("backbone.encoder.layer.1.", "backbone.encoder.layer.2.")),
        ({"blocks": [0, 0]}, ("backbone.encoder.layer.0.",)),
        ({"projector": True, "train_projector": True}, ("projector.",)),
        (
            {"projector": True, "train_projector": True, "blocks": [2, 2]},
            ("projector.", "backbone.encoder.layer.2."),
        ),
        ({}, ()),
    ],
    ids=["blocks", "first block", "projector", "projector and block", "head alone"],
)
def test_parts_train_exactly_what_they_name(
    table: dict[str, Any], prefixes: tuple[str, ...], corpus: Path, checkpoint: str, tmp_path: Path
) -> None:
    recipe = _recipe(checkpoint=checkpoint, tune="parts", **table)
    card, encoder = _trained(recipe, corpus, tmp_path)
    expected = _names(encoder, *prefixes) if prefixes else set()
    assert _changed(checkpoint, encoder) == expected
    assert card["trained"] == sum(encoder.state_dict()[name].numel() for name in expected)
    assert card["start"] == checkpoint


def test_full_training_moves_everything(corpus: Path, checkpoint: str, tmp_path: Path) -> None:
    _, encoder = _trained(_recipe(checkpoint=checkpoint, projector=True), corpus, tmp_path)
    assert _changed(checkpoint, encoder) == set(encoder.state_dict())


def test_no_epochs_take_a_checkpoint_as_it_is(
    corpus: Path, checkpoint: str, tmp_path: Path
) -> None:
    recipe = _recipe(checkpoint=checkpoint, single_epochs=0, grid_epochs=0)
    card, encoder = _trained(recipe, corpus, tmp_path)
    whole = FaceEncoder(encoder.config, 128).eval()
    load_checkpoint(whole)
    images = torch.randn(2, 3, 128, 128)
    torch.testing.assert_close(encoder(images), whole(images), atol=5e-3, rtol=5e-3)
    assert card["scores"] == {} and card["start"] == checkpoint


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tune": "parts", "blocks": [2, 2]}, "starts from random weights"),
        ({"tune": "parts", "blocks": [2, 3], "checkpoint": "yes"}, "numbers from 0 to 2"),
        (
            {"tune": "parts", "blocks": [2, 2], "checkpoint": "yes", "projector": True},
            "the projector is frozen",
        ),
        ({"single_epochs": 0, "grid_epochs": 0}, "trains for no epoch"),
        ({"blocks": [1, 2]}, "need tune = 'parts'"),
        ({"tune": "parts", "train_projector": True}, "needs projector = true"),
        ({"tune": "parts", "blocks": [2, 1]}, "not a first and a last"),
    ],
)
def test_what_would_mean_nothing_is_refused(
    table: dict[str, Any], message: str, corpus: Path, checkpoint: str, tmp_path: Path
) -> None:
    if "checkpoint" in table:
        table = table | {"checkpoint": checkpoint}
    with pytest.raises(InvalidInputError, match=message):
        vision.train_face_encoder_large(_recipe(**table), corpus, tmp_path)


@pytest.mark.parametrize("epochs", [(1, 1), (0, 1), (1, 0)], ids=["both", "clips", "faces"])
@pytest.mark.parametrize("frames", ["single", "multi"])
def test_any_choice_of_epochs_and_frames_ends_in_an_encoder_of_grids(
    frames: str, epochs: tuple[int, int], corpus: Path, checkpoint: str, tmp_path: Path
) -> None:
    table = {"frames": frames, "single_epochs": epochs[0], "grid_epochs": epochs[1]}
    card, encoder = _trained(_recipe(checkpoint=checkpoint, **table), corpus, tmp_path)
    assert ("single_waf" in card["scores"], "grid_waf" in card["scores"]) == tuple(
        map(bool, epochs)
    )
    assert encoder.tile == (64 if frames == "single" else 128)
    assert encoder(torch.zeros(1, 3, 128, 128)).shape == (1, 40)


def test_a_reader_of_single_frames_averages_over_the_tiles() -> None:
    torch.manual_seed(0)
    config = FaceEncoderConfig(**LARGE | {"projector": True})
    encoder = FaceEncoder(config, 128, tiles=2).eval()
    images = torch.randn(3, 4, 3, 64, 64)
    apart = torch.stack([encoder(images[:, i]) for i in range(4)]).mean(0)
    torch.testing.assert_close(encoder(tiled(images, 2)), apart, atol=1e-5, rtol=1e-5)
    assert torch.equal(untiled(tiled(images, 2), 64), images)


def test_single_frames_are_learnt_from_and_grids_never_seen(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[int, bool]] = set()
    read = FaceEncoder.forward

    def forward(self: FaceEncoder, images: Tensor) -> Tensor:
        seen.add((images.shape[-1], self.training))
        return read(self, images)

    monkeypatch.setattr(FaceEncoder, "forward", forward)
    vision.train_face_encoder_large(_recipe(frames="single"), corpus, tmp_path)
    assert seen == {(64, True), (64, False), (128, False)}


@pytest.mark.parametrize(("count", "classes"), [(8, FACE8), (6, MER6), (3, FACE3)])
def test_the_number_of_classes_chooses_the_labels_of_faces_and_clips(
    count: int, classes: tuple[str, ...], corpus: Path
) -> None:
    plain = FaceSets.read(corpus)
    taught = plain.taught(count)
    assert taught.face_classes == classes
    assert taught.classes == (MER6 if count > 3 else FACE3)
    names = [FACE8[i] for i in plain.singles["train"].labels]
    expected = names if count == 8 else [n for n in names if n in MER6]
    expected = [TO_FACE3[n] for n in names] if count == 3 else expected
    assert [classes[i] for i in taught.singles["train"].labels] == expected
    clips = [MER6[i] for i in plain.sequences["val"].labels]
    expected = [TO_FACE3[n] for n in clips] if count == 3 else clips
    assert [taught.classes[i] for i in taught.sequences["val"].labels] == expected


@pytest.mark.parametrize("count", [6, 3])
def test_fewer_classes_train(count: int, corpus: Path, tmp_path: Path) -> None:
    card, _ = _trained(_recipe(classes=count), corpus, tmp_path)
    assert {"single_waf", "grid_waf"} <= set(card["scores"])


def test_a_corpus_with_classes_of_its_own_trains(tmp_path: Path) -> None:
    root = write_tiny_corpus(tmp_path / "corpus", train=64, units=False)
    for name in ("faces", "sequences"):
        labels = np.load(root / name / "labels.npy") % 3
        labels[:2] = -1  # nobody has said
        np.save(root / name / "labels.npy", labels)
    names = ["calm", "cross", "glad"]
    write_json(root / "card.json", {"labels": names, "face_labels": names})
    card, _ = _trained(_recipe(), root, tmp_path / "run")
    assert "grid_waf" in card["scores"]
    with pytest.raises(InvalidInputError, match="positive, negative, neutral"):
        FaceSets.read(root).taught(3)
    write_json(root / "card.json", {"labels": names[:2], "face_labels": names})
    with pytest.raises(InvalidInputError, match="has the label 2"):
        FaceSets.read(root)
    np.save(root / "faces" / "labels.npy", np.full(len(labels), -1))
    with pytest.raises(InvalidInputError, match="no labelled samples in the split 'train'"):
        FaceSets.read(root)
    (root / "card.json").write_text("{", "utf-8")
    with pytest.raises(InvalidInputError, match=r"card\.json is damaged"):
        FaceSets.read(root)


def test_gathered_faces_teach_beside_the_corpus_own(corpus: Path, tmp_path: Path) -> None:
    more = write_tiny_corpus(tmp_path / "more", train=40, val=8, seed=1)
    names = ["contempt", "Happiness", "angry"]
    labels = np.arange(48) % 3
    labels[0] = -1
    np.save(more / "faces" / "labels.npy", labels)
    write_json(more / "card.json", {"face_labels": names})
    plain, joined = FaceSets.read(corpus), FaceSets.read(corpus, [more])
    assert joined.face_classes == (*FACE8, "contempt") and joined.classes == MER6
    assert plain.units and not joined.units
    own = len(plain.singles["train"].labels)
    told = [joined.face_classes[i] for i in joined.singles["train"].labels[own:]]
    assert told[:3] == ["happy", "angry", "contempt"] and len(told) == 39
    first = np.load(more / "faces" / "images.npy")[1]
    assert np.array_equal(joined.singles["train"].images[own], first)
    assert len(joined.singles["val"].labels) == len(plain.singles["val"].labels) + 8
    card, _ = _trained(_recipe(sources=[str(more)]), corpus, tmp_path / "run")
    assert "single_waf" in card["scores"]
    np.save(more / "faces" / "images.npy", np.zeros((48, 32, 32, 3), np.uint8))
    with pytest.raises(InvalidInputError, match="have 32 pixels"):
        FaceSets.read(corpus, [more])
    np.save(more / "faces" / "labels.npy", np.full(48, -1))
    with pytest.raises(InvalidInputError, match="no labelled samples in the split 'train'"):
        FaceSets.read(corpus, [more])


def test_the_head_for_clips_keeps_what_it_knew_of_shared_classes() -> None:
    assert numbers_of(MER6, FACE8).tolist() == [FACE8.index(name) for name in MER6]
    assert numbers_of(("glad", "sad"), FACE8).tolist() == [-1, FACE8.index("sad")]


def test_the_optimiser_of_the_recipe_is_used(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedules: list[FitConfig] = []

    def fit(*arguments: Any, **_: Any) -> dict[str, float]:
        schedules.append(arguments[3])
        return {}

    monkeypatch.setattr(vision, "fit", fit)
    table = {"optimizer": "sgd", "momentum": 0.8, "lr": 2e-5, "batch_size": 512, "grid_lr": 1e-5}
    vision.train_face_encoder_large(_recipe(**table), corpus, tmp_path)
    assert [(s.optimizer, s.momentum, s.lr, s.batch_size) for s in schedules] == [
        ("sgd", 0.8, 2e-5, 512), ("sgd", 0.8, 1e-5, 512),
    ]  # fmt: skip


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        encoder = FaceEncoder(FaceEncoderConfig(**LARGE | {"recompute": recompute}), 64).train()
        encoder(torch.ones(1, 3, 64, 64)).sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("tiles", [1, 2], ids=["multi", "single"])
def test_the_export_with_a_projector_equals_the_module(tiles: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = LARGE | {"projector": True, "layers": 1}
    encoder = FaceEncoder(FaceEncoderConfig(**table), 128, tiles).eval()
    program = torch.onnx.export(
        encoder, (torch.randn(2, 3, 128, 128),), dynamo=True, opset_version=20, verbose=False,
        input_names=["face_grid"], output_names=["features"], dynamic_shapes=({0: "batch"},),
    )  # fmt: skip
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = torch.randn(3, 3, 128, 128)
    alone = []
    for batch in (images, *images.split(1)):
        (found,) = session.run(None, {"face_grid": batch.numpy()})
        np.testing.assert_allclose(found, encoder(batch).detach().numpy(), atol=1e-5)
        alone.append(found)
    np.testing.assert_allclose(alone[0], np.concatenate(alone[1:]), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 3, 4, 9])
def test_images_are_encoded_as_the_pipeline_does(frames: int) -> None:
    torch.manual_seed(0)
    encoder = FaceEncoder(FaceEncoderConfig(**LARGE), 128).eval()
    crops = np.random.default_rng(0).integers(0, 256, (5, frames, 64, 64, 3), dtype=np.uint8)
    grid = FaceGrid(P)(torch.from_numpy(crops), torch.full((5, 1), frames))
    found = encode_images(encoder, crops, P, batch=2)
    np.testing.assert_allclose(found, encoder(grid).detach().numpy(), atol=1e-5)
    if frames == 1:
        np.testing.assert_array_equal(encode_images(encoder, crops[:, 0], P, batch=2), found)


def test_an_encoder_of_one_face_encodes_faces() -> None:
    torch.manual_seed(0)
    encoder = FaceEncoder(FaceEncoderConfig(**LARGE), 64).eval()
    faces = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    expected = encoder(normalised(faces, P)).detach().numpy()
    np.testing.assert_allclose(encode_images(encoder, faces, P), expected, atol=1e-5)
    assert encode_images(encoder, faces[:0], P).shape == (0, 40)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 60, 60, 3), np.uint8), np.zeros((2, 64, 32, 3), np.uint8),
        np.zeros((2, 0, 64, 64, 3), np.uint8), np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((2, 256, 256, 3), np.uint8),
    ],
)  # fmt: skip
def test_other_images_are_refused(images: Any) -> None:
    with pytest.raises(InvalidInputError, match="the images"):
        encode_images(FaceEncoder(FaceEncoderConfig(**LARGE), 128), images, P)


def test_old_configurations_still_describe_the_same_encoder(tmp_path: Path) -> None:
    """A run made before checkpoints, projectors and tiles has none of their keys."""
    encoder = FaceEncoder(FaceEncoderConfig(hidden=32, layers=1, heads=2), 128)
    table: Mapping[str, Any] = {"encoder": {"hidden": 32, "layers": 1, "heads": 2}, "side": 128}
    from merkit_training.runs import save_step

    save_step(tmp_path, "face_encoder", table, encoder.state_dict(), {})
    loaded = load_step(tmp_path, "face_encoder")
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {
        k: v.shape for k, v in encoder.state_dict().items()
    }
