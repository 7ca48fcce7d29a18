"""Image-text pre-training: what captions tell, what the loss means, what the next stage gets."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from tiny_corpus import write_tiny_corpus
from torch import Tensor

from merkit.errors import InvalidInputError
from merkit_training.encoders.vision import contrastive
from merkit_training.encoders.vision import train as vision
from merkit_training.encoders.vision.captions import NOTHING, read_captions, split
from merkit_training.encoders.vision.config import ContrastiveConfig, FaceEncoderConfig
from merkit_training.encoders.vision.contrastive import ImageText, load_pretrained
from merkit_training.encoders.vision.encoder import FaceEncoder
from merkit_training.labels import FACE8
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.runs import write_json

LARGE: dict[str, Any] = {
    "architecture": "internvit", "hidden": 40, "layers": 2, "heads": 2, "patch": 16,
    "single_epochs": 1, "grid_epochs": 0, "batch_size": 16, "threads": 1, "projector": True,
}  # fmt: skip
WORDS: dict[str, Any] = {
    "epochs": 4, "batch_size": 32, "lr": 3e-3, "text_hidden": 16, "text_layers": 1, "width": 16,
    "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"), train=160)


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose large face encoder has been pre-trained."""
    folder = tmp_path_factory.mktemp("run")
    contrastive.train(_recipe(), corpus, folder)
    return folder


def _recipe(words: dict[str, Any] = WORDS, **large: Any) -> Recipe:
    tables = {"face_large_pretraining": words, "face_encoder_large": LARGE | large}
    return recipe_from(tables)


def _card(run: Path, stage: str) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((run / stage / "card.json").read_text("utf-8"))
    return card


def test_it_learns_which_caption_belongs_to_which_face(run: Path) -> None:
    card = _card(run, contrastive.STAGE)
    assert card["scores"]["probability"] > 0.5 and card["scores"]["recall"] > 0.8
    assert card["scores"]["captions"] == len(FACE8)


def test_the_face_encoder_starts_from_it_and_its_projector_too(corpus: Path, run: Path) -> None:
    recipe = _recipe(tune="parts", train_projector=True)
    vision.train_face_encoder_large(recipe, corpus, run)
    card = _card(run, "face_encoder_large")
    assert card["start"] == contrastive.STAGE
    frozen = FaceEncoder(replace(recipe.face_encoder_large), 64)
    assert load_pretrained(frozen, run) is True
    assert card["trained"] == sum(p.numel() for p in frozen.projector.parameters())  # type: ignore[union-attr]
    images = torch.randn(4, 3, 64, 64)
    saved = contrastive.load_module(
        run, contrastive.STAGE, contrastive.SavedFaceEncoder, contrastive.SavedFaceEncoder.build
    )
    torch.testing.assert_close(frozen.eval()(images), saved(images))


def test_a_projector_that_nobody_taught_must_be_trained(corpus: Path, tmp_path: Path) -> None:
    contrastive.train(_recipe(WORDS | {"epochs": 1}, projector=False), corpus, tmp_path)
    recipe = _recipe(tune="parts", blocks=[1, 1])
    with pytest.raises(InvalidInputError, match="projector is frozen"):
        vision.train_face_encoder_large(recipe, corpus, tmp_path)


def test_other_sizes_and_no_pretraining_are_told_apart(run: Path, tmp_path: Path) -> None:
    assert load_pretrained(FaceEncoder(FaceEncoderConfig(**LARGE), 64), tmp_path) is None
    with pytest.raises(InvalidInputError, match="pre-trained with layers = 2; expected 1"):
        load_pretrained(FaceEncoder(FaceEncoderConfig(**LARGE | {"layers": 1}), 64), run)


def test_processes_must_share_a_batch_equally(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InvalidInputError, match="32 faces is to be shared by 3 processes"):
        contrastive.train(_recipe(), corpus, tmp_path)


def test_the_same_seed_gives_the_same_weights(corpus: Path, tmp_path: Path) -> None:
    found = []
    for name in "ab":
        contrastive.train(_recipe(WORDS | {"epochs": 1}), corpus, tmp_path / name)
        found.append((tmp_path / name / contrastive.STAGE / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def _with_units(root: Path, units: list[list[float]], labels: list[int]) -> Path:
    """A set of faces with these units and labels."""
    folder = root / "faces"
    folder.mkdir(parents=True)
    rows = np.array(units, np.float32)
    np.save(folder / "units.npy", rows)
    np.save(folder / "labels.npy", np.array(labels))
    np.save(folder / "split.npy", np.zeros(len(rows), np.int8))
    np.save(folder / "images.npy", np.zeros((len(rows), 8, 8, 3), np.uint8))
    names = {"face": {"units": ["brow_raise", "mouth_open"]}}
    write_json(root / "card.json", {"model": names})
    return root


def test_captions_tell_what_is_clear_and_only_that(tmp_path: Path) -> None:
    units = [[2.0, 0.0], [-2.0, 0.0], [0.0, 0.0], [2.1, 0.0], [0.0, 5.0]]
    root = _with_units(tmp_path, units, [3, 3, 0, 3, -1])
    told = read_captions(root, "train", "units")
    assert told.texts[0] == (
        "a face with much-brow-raise",
        "a face with little-brow-raise",
        f"a face with {NOTHING}",
        "a face with much-brow-raise",
        "a face with much-mouth-open",
    )
    assert told.facts[0] == told.facts[3] and told.facts[0] != told.facts[1]
    both = read_captions(root, "train", "both")
    assert all("happy" in text[0] and "brow-raise" in text[0] for text in both.texts)
    assert len(set(both.texts)) == len(both.texts)  # wordings differ
    labels = read_captions(root, "train", "labels")
    assert labels.rows.tolist() == [0, 1, 2, 3]  # of the last face nothing is known
    assert not any("brow" in text for texts in labels.texts for text in texts)


def test_captions_of_ones_own_come_first(tmp_path: Path) -> None:
    root = _with_units(tmp_path, [[0.0, 0.0]] * 3, [0, 1, 2])
    path = root / "faces" / "captions.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["caption"], ["A broad smile!"], [""], ["a broad  smile"]])
    told = read_captions(root, "train", "both")
    assert told.rows.tolist() == [0, 2] and told.facts[0] == told.facts[1]
    assert told.vocabulary() == ("<pad>", "<unknown>", "a", "broad", "smile")
    zero = np.zeros(2, np.int64)
    assert told.ids(told.vocabulary(), np.array([0, 1]), zero, 4).tolist() == [[2, 3, 4, 0]] * 2
    assert told.ids(("<pad>", "<unknown>", "smile"), zero[:1], zero[:1], 2).tolist() == [[1, 1]]
    path.write_text("caption\nonly one\n", "utf-8")
    with pytest.raises(InvalidInputError, match="3 rows, one for each image"):
        read_captions(root, "train", "both")
    path.write_text('caption\n""\n""\n""\n', "utf-8")
    with pytest.raises(InvalidInputError, match="tells nothing"):
        read_captions(root, "train", "both")


def test_nothing_to_tell_is_an_error(tmp_path: Path) -> None:
    root = write_tiny_corpus(tmp_path, train=16, val=8, units=False)
    with pytest.raises(InvalidInputError, match="nothing can be told"):
        read_captions(root, "train", "units")


def _model() -> ImageText:
    torch.manual_seed(0)
    config = ContrastiveConfig(**WORDS)
    return ImageText(FaceEncoder(FaceEncoderConfig(**LARGE), 64), config, 12)


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 64, 64, generator=chance)
    ids = torch.randint(1, 12, (6, 32), generator=chance)
    return images, ids, torch.tensor([0, 1, 2, 0, 3, 4])


def test_the_loss_shares_truth_among_equal_facts() -> None:
    """Identical faces of which the same is told cost nothing beyond the toss between them."""
    model = _model().eval()
    images, ids, facts = _batch()
    order = torch.randperm(6)
    whole = model.loss(images, ids, facts)
    torch.testing.assert_close(model.loss(images[order], ids[order], facts[order]), whole)
    twice = [torch.cat((x[:1], x[:1])) for x in (images, ids)]
    same, other = torch.tensor([0, 0]), torch.tensor([0, 1])
    toss = torch.tensor(2.0).log()
    torch.testing.assert_close(model.loss(*twice, same), toss)
    torch.testing.assert_close(model.loss(*twice, other), toss)
    assert model.loss(images[:1], ids[:1], facts[:1]).abs() < 1e-6


def test_padding_and_neighbours_change_no_caption() -> None:
    model = _model().eval()
    ids = torch.zeros(2, 32, dtype=torch.int64)
    ids[0, :3] = torch.tensor([4, 5, 6])
    ids[1] = torch.randint(1, 12, (32,))
    together = model.embed_texts(ids)
    torch.testing.assert_close(together[:1], model.embed_texts(ids[:1]), atol=1e-5, rtol=0)
    ids[0, 3:5] = torch.tensor([7, 8])
    assert not torch.allclose(model.embed_texts(ids)[0], together[0])


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_contrastive import _batch, _model
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.set_num_threads(1)
model = _model().train()
model.loss(*(x[rank::2] for x in _batch())).backward()
gradients = [p.grad for p in model.parameters()]
for gradient in gradients:
    dist.all_reduce(gradient)  # as DDP averages
    gradient /= 2
dist.destroy_process_group()
alone = _model().train()
alone.loss(*_batch()).backward()
for gradient, expected in zip(gradients, (p.grad for p in alone.parameters())):
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
"""


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """Each process's images compete with all processes' captions, not only with its own."""
    code = TWO_PROCESSES.format(tests=str(Path(__file__).parent))
    path = os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")], env=environment,
                         stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors


def test_captions_split_into_words() -> None:
    assert split("It's A well-lit face, 高兴!") == ["it", "s", "a", "well-lit", "face", "高兴"]
