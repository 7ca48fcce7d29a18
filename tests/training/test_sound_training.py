"""Each sound and word stage learns, leaves a step that loads to the same features, and repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_corpus import write_tiny_corpus

from merkit.errors import BundleCorruptError, BundleNotFoundError
from merkit.pipeline import GROUPS, standard_contract
from merkit_training.encoders.audio import train as audio
from merkit_training.encoders.audio.config import AudioConfig
from merkit_training.encoders.audio.encoder import AudioEncoder
from merkit_training.encoders.audio.encoder import load as load_audio
from merkit_training.encoders.audio.front import Front
from merkit_training.encoders.joint import train as joint
from merkit_training.encoders.joint.config import JointConfig
from merkit_training.encoders.text import tokenizer
from merkit_training.encoders.text import train as text
from merkit_training.encoders.text.config import TextConfig
from merkit_training.encoders.text.encoder import load as load_text
from merkit_training.encoders.utterances import Utterances, batched
from merkit_training.labels import MER6
from merkit_training.preprocess import Preprocess
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.steps import load_step

SIZES: Mapping[str, Mapping[str, Any]] = {
    "text_encoder": {
        "vocabulary": 330, "hidden": 32, "layers": 2, "heads": 2, "intermediate": 48,
        "epochs": 8, "batch_size": 16, "lr": 3e-3, "finetune_lr": 3e-3, "threads": 1,
    },
    "audio_encoder": {
        "conv_channels": [24, 24],
        "conv_kernels": [200, 2], "conv_strides": [160, 2],
        "hidden": 32, "layers": 1, "heads": 2, "intermediate": 48,
        "position_groups": 4, "front_epochs": 2, "epochs": 14, "lr": 5e-3, "batch_size": 16,
        "threads": 1,
    },
    "joint_encoder": {
        "hidden": 32, "layers": 1, "heads": 2, "intermediate": 48, "tower_epochs": 2,
        "tower_lr": 3e-3, "epochs": 4, "lr": 2e-3, "batch_size": 16, "threads": 1,
    },
}  # fmt: skip
RECIPE: Recipe = recipe_from(SIZES)
STAGES = {"text_encoder": text, "audio_encoder": audio, "joint_encoder": joint}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = write_tiny_corpus(tmp_path_factory.mktemp("sounds"), train=128, val=32)
    return folder


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for stage in (tokenizer, *STAGES.values()):
        scores = stage.train(RECIPE, corpus, folder)
        assert all(np.isfinite(value) for value in scores.values())
    return folder


@pytest.mark.parametrize("step", STAGES)
def test_a_stage_learns_far_above_chance_and_cleans_up(run: Path, step: str) -> None:
    card = json.loads((run / step / "card.json").read_text("utf-8"))
    assert card["scores"]["probe_accuracy"] > 3 / len(MER6)
    assert sorted(p.name for p in (run / step).iterdir()) == [
        "card.json",
        "config.json",
        "fits.json",
        "model.safetensors",
    ]


@torch.no_grad()
def test_a_loaded_step_takes_what_preprocessing_makes(run: Path, corpus: Path) -> None:
    """One batch through the real steps: the widths are the recipe's, nothing depends on order."""
    data = Utterances.read(corpus, "val")
    waveform, length = batched([data.wave(i) for i in range(3)])
    ids, lengths = tokenizer.encode(tokenizer.load(run), data.texts[:3], 64)
    prompted = tokenizer.encode(tokenizer.load(run), data.texts[:3], 64, "What is felt?")
    tensors = dict(zip(("text_ids", "text_length"), map(torch.from_numpy, (ids, lengths)),
                       strict=True))  # fmt: skip
    tensors |= dict(zip(("joint_ids", "joint_length"), map(torch.from_numpy, prompted),
                        strict=True))  # fmt: skip
    made = Preprocess()(
        torch.zeros(3, 0, 64, 64, 3, dtype=torch.uint8), torch.zeros(3, 1).long(), waveform, length,
        tensors["text_length"],
    )  # fmt: skip
    contract = standard_contract(MER6, dict.fromkeys(GROUPS, 32))
    tensors |= dict(zip(contract.step("preprocess").outputs, made, strict=True))
    for step in STAGES:
        module, inputs = load_step(run, step), [tensors[n] for n in contract.step(step).inputs]
        features = module(*inputs)
        assert features.shape == (3, 32) and features.isfinite().all()
        turned = module(*(t.flip(0) for t in inputs)).flip(0)
        torch.testing.assert_close(features, turned, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_weights(run: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").symlink_to(run / "tokenizer")
    text.train(RECIPE, corpus, tmp_path)
    weights = Path("text_encoder", "model.safetensors")
    assert (tmp_path / weights).read_bytes() == (run / weights).read_bytes()


def test_silent_utterances_are_left_out(corpus: Path, tmp_path: Path) -> None:
    copied = write_tiny_corpus(tmp_path, train=8, val=4)
    waves = np.load(copied / "utterances" / "waveforms.npy")
    waves[2] = 0
    np.save(copied / "utterances" / "waveforms.npy", waves)
    assert len(Utterances.read(copied, "train")) == 7
    assert len(Utterances.read(corpus, "train")) == 128


def test_babble_changes_a_sound_but_not_its_length_and_repeats(corpus: Path) -> None:
    data = Utterances.read(corpus, "train")
    clean, noisy = data.take(0, 0, seed=1), data.take(0, 1, seed=1)
    assert noisy.shape == clean.shape and noisy.dtype == np.float32
    assert np.abs(noisy).max() <= 1 and not np.allclose(noisy, clean, atol=0.01)
    assert np.array_equal(noisy, data.take(0, 1, seed=1))
    assert not np.array_equal(noisy, data.take(0, 2, seed=1))


def test_a_step_that_was_not_trained_or_does_not_fit_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        load_audio(tmp_path)
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((run / "text_encoder" / name).read_bytes())
    load_text(tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hidden": 64}), "utf-8")
    with pytest.raises(BundleCorruptError, match="does not fit"):
        load_text(tmp_path)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (TextConfig(), {"heads": 3}),
        (AudioConfig(), {"hidden": 130}),
        (AudioConfig(), {"conv_channels": (8, 8)}),
        (JointConfig(), {"heads": 5}),
    ],
)
def test_impossible_sizes_are_refused(config: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        replace(config, **changes)


def test_the_first_layer_begins_as_waves_that_answer_alike() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(RECIPE.audio_encoder)
    front = Front(encoder, RECIPE.audio_encoder, RECIPE.preprocessing)
    some = torch.randn(12, 8000), torch.full((12, 1), 8000)
    front.start_as_waves(*some, 16_000)
    layer = encoder.model.feature_extractor.conv_layers[0].conv
    cos, opposite, *_ = layer.weight[:, 0].chunk(4)
    torch.testing.assert_close(cos, -opposite)
    values = front.sound(*some)[0][:, None]
    power = (layer(values) - layer.bias[:, None]).square().mean((0, 2))
    torch.testing.assert_close(power, torch.ones_like(power), atol=1e-3, rtol=0)
    peaks = torch.fft.rfft(cos).abs().argmax(1)
    assert (peaks.diff() >= 0).all() and peaks[-1] > 10 * peaks[0].clamp(min=1)
