"""Published encoders through the one adapter: recognised, pooled as documented, padding-proof."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_published as tiny
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit_training.features.extractor import EncoderSpec, Extractor, make_extractor
from merkit_training.features.material import Material

RNG = np.random.default_rng(0)
NO_IMAGES = np.zeros((0, 1, 1, 3), np.uint8)
NO_SOUND = np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("published")
    made: dict[str, Path] = {}

    def write(name: str, **options: Any) -> Path:
        key = name + "".join(f"-{value}" for value in options.values())
        if key not in made:
            made[key] = getattr(tiny, f"write_{name}")(root / key, **options)
        return made[key]

    return write


def _open(folder: Path, **options: Any) -> Extractor:
    return make_extractor(EncoderSpec(str(folder), **options))


def _seen(count: int, height: int = 40, width: int = 60) -> Material:
    return Material(RNG.integers(0, 255, (count, height, width, 3), np.uint8), NO_SOUND, "", ())


def _heard(samples: int) -> Material:
    return Material(NO_IMAGES, (0.1 * RNG.standard_normal(samples)).astype(np.float32), "", ())


def _said(text: str) -> Material:
    return Material(NO_IMAGES, NO_SOUND, text, ())


def _one(extractor: Extractor, material: Material) -> NDArray[np.float32]:
    (feature,) = extractor.encode([material], frames=False)
    assert feature is not None
    return feature.utterance


KINDS = {
    "clip": ("video", 12, lambda: [_seen(3), _seen(1), _seen(5, 64, 48)]),
    "videomae": ("video", 16, lambda: [_seen(4), _seen(2), _seen(9)]),
    "wav2vec2": ("audio", 16, lambda: [_heard(16_000), _heard(4_000), _heard(9_999)]),
    "whisper": ("audio", 16, lambda: [_heard(16_000), _heard(4_000), _heard(32_000)]),
    "roberta": ("text", 16, lambda: [_said("the cat is not happy today"), _said("sad")]),
    "qwen3": ("text", 16, lambda: [_said("the cat is not happy today"), _said("sad")]),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_recognised_and_neighbours_change_nothing(
    name: str, saved: Callable[..., Path]
) -> None:
    reads, width, clips = KINDS[name]
    extractor = _open(saved(name))
    assert extractor.reads == {reads} and extractor.width == width and extractor.name == name
    materials = clips()
    together = extractor.encode(materials, frames=True)
    for material, feature in zip(materials, together, strict=True):
        assert feature is not None and feature.frames is not None
        assert feature.utterance.shape == (width,) and feature.frames.shape[1] == width
        assert np.abs(feature.utterance - _one(extractor, material)).max() < 1e-5
        assert np.abs(feature.frames.mean(axis=0) - feature.utterance).max() < 1e-5
    first, second = together[0], together[1]
    assert first and second and np.abs(first.utterance - second.utterance).max() > 1e-3


def test_clip_gives_the_embedding_it_shares_with_words(saved: Callable[..., Path]) -> None:
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder, clip = saved("clip"), _seen(2)
    values = CLIPImageProcessorPil.from_pretrained(folder)(list(clip.images), return_tensors="pt")
    with torch.no_grad():
        wanted = CLIPModel.from_pretrained(folder).get_image_features(**values).pooler_output
    assert np.abs(_one(_open(folder), clip) - wanted.mean(0).numpy()).max() < 1e-5


def test_a_vision_tower_alone_gives_its_own_width(saved: Callable[..., Path]) -> None:
    assert _open(saved("clip", vision_only=True)).width == tiny.WIDTH


def test_videos_are_read_in_runs(saved: Callable[..., Path]) -> None:
    extractor = _open(saved("videomae"), images=8)
    assert extractor.preprocessing.frames_per_clip == 8
    clip = _seen(8)
    (feature,) = extractor.encode([clip], frames=True)
    assert feature is not None and feature.frames is not None and len(feature.frames) == 2
    halves = [Material(part, NO_SOUND, "", ()) for part in np.split(clip.images, 2)]
    for half, read in zip(halves, feature.frames, strict=True):
        assert np.abs(_one(extractor, half) - read).max() < 1e-5


def test_sound_is_the_last_four_layers_as_published(saved: Callable[..., Path]) -> None:
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    folder, clip = saved("wav2vec2"), _heard(8_000)
    reader = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    values = reader(clip.waveform, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        out = Wav2Vec2Model.from_pretrained(folder).eval()(values, output_hidden_states=True)
    last = torch.stack([*out.hidden_states[-4:-1], out.last_hidden_state])
    assert (out.hidden_states[-1] - out.last_hidden_state).abs().max() > 1e-3  # the trap
    for layers, wanted in (("mean", last.mean(0)), ("sum", last.sum(0))):
        found = _one(_open(folder, layers=layers), clip)
        assert np.abs(found - wanted.mean(1)[0].numpy()).max() < 1e-5


def test_the_base_style_is_never_padded(saved: Callable[..., Path]) -> None:
    assert _open(saved("wav2vec2", norm="group")).padding == 0
    assert _open(saved("wav2vec2")).padding > 0


def test_whisper_averages_only_what_sounds(saved: Callable[..., Path]) -> None:
    (feature,) = _open(saved("whisper")).encode([_heard(16_000)], frames=True)
    assert feature is not None and feature.frames is not None
    assert len(feature.frames) == 50  # of the 100 positions of its window


def test_words_are_averaged_without_marks(saved: Callable[..., Path]) -> None:
    from transformers import RobertaModel

    folder = saved("roberta", pooler=True)
    (feature,) = _open(folder).encode([_said("the cat is sad")], frames=True)
    with torch.no_grad():
        ids = torch.tensor([[0, 4, 5, 6, 7, 2]])
        model = RobertaModel.from_pretrained(folder).eval()
        states = model(ids, output_hidden_states=True).hidden_states
    wanted = torch.stack(states[-4:]).mean(0)[0, 1:-1]
    assert feature is not None and feature.frames is not None
    assert np.abs(feature.frames - wanted.numpy()).max() < 1e-5
    assert np.abs(feature.utterance - wanted.mean(0).numpy()).max() < 1e-5


def test_long_texts_are_cut_to_what_the_model_takes(saved: Callable[..., Path]) -> None:
    extractor = _open(saved("roberta"))
    long = _said("the cat is sad " * 50)
    assert extractor.length(long) == extractor.preprocessing.max_text_tokens == 32
    assert np.isfinite(_one(extractor, long)).all()


def test_a_bin_checkpoint_is_the_same_encoder(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved("roberta")
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    clip = _said("the cat is sad")
    assert np.array_equal(_one(_open(tmp_path), clip), _one(_open(folder), clip))


def _copy(folder: Path, to: Path) -> Path:
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_missing_weights_are_never_made_up(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = _copy(saved("wav2vec2"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.2.attention.k_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BundleCorruptError, match=r"encoder\.layers\.2\.attention\.k_proj\.weight"):
        _open(folder)


def test_wrong_shapes_are_named(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = _copy(saved("roberta"), tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}), "utf-8")
    with pytest.raises(BundleCorruptError, match=r"has the shape \(.*expected \("):
        _open(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "baichuan"}, "'baichuan', which transformers does not know"),
        ({"model_type": "clip"}, "without preprocessor_config.json"),
        ({"model_type": "roberta"}, "without a tokeniser"),
        ({"model_type": "sew"}, "'sew', whose sound features are not read here"),
        ({}, "type ''"),
    ],
)
def test_unknown_kinds_list_the_known(config: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInputError, match=message) as caught:
        _open(tmp_path)
    assert "wav2vec2" in caught.value.expected and "videomae" in caught.value.expected


def test_another_kind_than_said_is_refused(saved: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInputError, match="an encoder of audio; expected one of text"):
        _open(saved("wav2vec2"), kind="text")


def test_a_name_that_is_nothing_says_what_would_be() -> None:
    with pytest.raises(BundleNotFoundError, match=r"RUN:step.*--hub"):
        make_extractor(EncoderSpec("openai/no-such-model"))


def test_the_identity_follows_weights_and_files(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = _copy(saved("wav2vec2"), tmp_path)
    before = _open(folder).fingerprint
    assert before == _open(saved("wav2vec2")).fingerprint
    assert before != _open(folder, layers="sum").fingerprint
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer_norm.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert _open(folder).fingerprint != before
