"""Published joint models compute here what they compute at home, from files of their own format."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from qwen_audio import CONFIG, WINDOW_FRAMES, hear, random_weights, think, write_checkpoint
from torch import Tensor, nn
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    WhisperConfig,
    WhisperModel,
)

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError, MerkitError
from merkit.pipeline import GROUPS, standard_contract
from merkit_training.checkpoints import open_checkpoint
from merkit_training.encoders.joint import published
from merkit_training.encoders.joint.config import JointConfig, JointSizes
from merkit_training.encoders.joint.encoder import JointEncoder
from merkit_training.encoders.joint.markup import QWEN_AUDIO_SPECIAL
from merkit_training.encoders.joint.start import from_recipe
from merkit_training.encoders.joint.tower import sounding
from merkit_training.encoders.pooling import pooled
from merkit_training.encoders.text.config import TextConfig
from merkit_training.encoders.text.vocabularies import QWEN_SPECIAL
from merkit_training.labels import MER6
from merkit_training.recipe import recipe_from

PAPER = Preprocessing(joint_window_seconds=30.0)
SHORT = Preprocessing(joint_window_seconds=4.0)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0], [15, 16, 17, 18, 19, 0]])
LENGTHS = torch.tensor([[6], [4], [5]])
PRESENT = torch.tensor([[False, True, True]] * 3)


def spectra(p: Preprocessing, seconds: tuple[float, ...] = (3.0, 0.7, 60.0)) -> Tensor:
    """Noise with the floor of a spectrogram after each sound's end."""
    frames = round(100 * p.joint_window_seconds)
    mel = torch.rand(len(seconds), p.mel_bins, frames, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor(seconds)[:, None, None] * 100
    return torch.where(torch.arange(frames) < ends, mel, torch.full_like(mel, -1))


def qwen_audio(folder: Path, p: Preprocessing, audio_at: int) -> tuple[JointEncoder, Any]:
    weights = random_weights()
    found = open_checkpoint(str(write_checkpoint(folder, weights)))
    joint = published.joint_sizes(JointConfig(), found, p)
    sizes = replace(JointSizes.of(joint, TextConfig(), p), audio_at=audio_at)
    model = JointEncoder(sizes)
    report = published.load_joint(model, found)
    assert not report.unused and not report.initial
    return model.eval(), weights


@pytest.mark.parametrize(
    ("p", "audio_at"), [(PAPER, 2), (SHORT, 2), (SHORT, 0)], ids=["30 s, 2", "4 s, 2", "4 s, 0"]
)
@torch.no_grad()
def test_qwen_audio_is_what_its_authors_published(
    p: Preprocessing, audio_at: int, tmp_path: Path
) -> None:
    model, weights = qwen_audio(tmp_path, p, audio_at)
    mel = spectra(p)
    found, mask, at_end = model.states(mel, IDS, LENGTHS, PRESENT)
    features, means = pooled(found, at_end), pooled(found, mask)
    logits = model.decoder.logits(model.after_sound(found[-1]))
    for i, length in enumerate(LENGTHS[:, 0].tolist()):
        words = weights["transformer.wte.weight"][IDS[i, :length]]
        heard = hear(weights, mel[i], int(sounding(mel)[i]))
        states = think(weights, torch.cat((words[:audio_at], heard, words[audio_at:])))
        last = torch.stack(states[-4:]).mean(0)
        torch.testing.assert_close(features[i], last[-1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(means[i], last.mean(0), atol=1e-4, rtol=1e-4)
        scores = states[-1][-1] @ weights["lm_head.weight"].T
        torch.testing.assert_close(logits[i, length - audio_at - 1], scores, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_qwen_audio_exports_with_other_batches_and_lengths(tmp_path: Path) -> None:
    model, _ = qwen_audio(tmp_path / "checkpoint", SHORT, 1)
    contract = standard_contract(MER6, dict.fromkeys(GROUPS, 32), SHORT)
    spec, path = contract.step("joint_encoder"), tmp_path / "model.onnx"
    tensors = (spectra(SHORT), IDS, LENGTHS, PRESENT)
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, d in enumerate(contract.tensors[n].shape)
         if isinstance(d, str)}
        for n in spec.inputs
    )  # fmt: skip
    torch.onnx.export(
        model, tensors, path, input_names=list(spec.inputs), output_names=list(spec.outputs),
        dynamic_shapes=dynamic, opset_version=20, dynamo=True,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows, cut in ((slice(0, 3), 6), (slice(1, 2), 4)):
        given = [t[rows] for t in tensors]
        given[1] = given[1][:, :cut]
        feeds = {n: t.numpy() for n, t in zip(spec.inputs, given, strict=True)}
        np.testing.assert_allclose(session.run(None, feeds)[0], model(*given), atol=1e-4)


def qwen2_audio_config() -> Qwen2AudioConfig:
    return Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 80, "encoder_layers": 2, "encoder_attention_heads": 3,
            "encoder_ffn_dim": 40, "d_model": 24, "max_source_positions": WINDOW_FRAMES // 2,
        },
        text_config={
            "model_type": "qwen2", "vocab_size": 70, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
        },
        audio_token_id=69,
    )  # fmt: skip


@pytest.mark.parametrize("spelling", ["transformers 5", "hub"])
@torch.no_grad()
def test_qwen2_audio_is_what_transformers_computes(spelling: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    home = Qwen2AudioForConditionalGeneration(qwen2_audio_config()).eval()
    for weight in home.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    home.save_pretrained(tmp_path)
    if spelling == "hub":
        hub = {
            n.removeprefix("model.").replace("language_model.", "language_model.model."): w.clone()
            for n, w in home.state_dict().items()
        }
        hub["language_model.lm_head.weight"] = hub.pop("lm_head.weight")
        write_checkpoint(tmp_path / "hub", hub, home.config.to_dict())
    found = open_checkpoint(str(tmp_path / "hub" if spelling == "hub" else tmp_path))
    joint = published.joint_sizes(JointConfig(), found, PAPER)
    sizes = replace(JointSizes.of(joint, TextConfig(), PAPER), audio_at=2)
    model = JointEncoder(sizes).eval()
    published.load_joint(model, found)
    mel = spectra(PAPER)
    features = model(mel, IDS, LENGTHS, PRESENT)
    for i, length in enumerate(LENGTHS[:, 0].tolist()):
        frames = int(sounding(mel)[i])
        marks = torch.full((frames // 2,), 69)
        ids = torch.cat((IDS[i, :2], marks, IDS[i, 2:length]))[None]
        heard = torch.arange(WINDOW_FRAMES)[None] < 2 * frames
        found_ = home(
            input_ids=ids, input_features=mel[i : i + 1], attention_mask=torch.ones_like(ids),
            feature_attention_mask=heard.long(), output_hidden_states=True,
        )  # fmt: skip
        last = torch.stack(found_.hidden_states[-4:]).mean(0)[0, -1]
        torch.testing.assert_close(features[i], last, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_whisper_becomes_the_tower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=24, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=40,
        decoder_layers=1, decoder_attention_heads=3, decoder_ffn_dim=24, vocab_size=60,
        num_mel_bins=80, max_source_positions=1500, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    home = WhisperModel(config).eval()
    home.save_pretrained(tmp_path)
    recipe = recipe_from(
        {
            "preprocessing": {"joint_window_seconds": 30.0},
            "text_encoder": {"hidden": 32, "layers": 1, "heads": 2},
            "joint_encoder": {"tower_checkpoint": str(tmp_path)},
        }
    )
    sizes, model = from_recipe(recipe)
    assert (sizes.joint.hidden, sizes.joint.layers, sizes.joint.intermediate) == (24, 2, 40)
    report = published.load_tower(model.tower, open_checkpoint(str(tmp_path)))
    assert report.unused and all("decoder" in name for name in report.unused)
    mel = spectra(PAPER)
    expected = home.encoder(mel).last_hidden_state
    torch.testing.assert_close(model.tower(mel), expected, atol=1e-5, rtol=1e-5)


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_the_papers_shapes_have_the_published_numbers_of_parameters(tmp_path: Path) -> None:
    large = copy.deepcopy(CONFIG) | {
        "hidden_size": 4096, "intermediate_size": 22016, "kv_channels": 128,
        "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 155_947,
    }  # fmt: skip
    large["audio"] |= {"n_state": 1280, "n_head": 20, "n_layer": 32, "output_dim": 4096}
    found = open_checkpoint(str(write_checkpoint(tmp_path, random_weights(), large)))
    joint = published.joint_sizes(JointConfig(), found, PAPER)
    with torch.device("meta"):
        seed = JointEncoder(JointSizes.of(joint, TextConfig(), PAPER))
    assert parameters(seed.tower) == 636_784_640 and seed.width == 4096
    assert parameters(seed) == 8_396_222_464
    second = {
        "model_type": "qwen2_audio",
        "audio_config": {
            "model_type": "qwen2_audio_encoder", "num_mel_bins": 128, "encoder_layers": 32,
            "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "d_model": 1280,
        },
        "text_config": {
            "model_type": "qwen2", "vocab_size": 156_032, "intermediate_size": 11_008,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        },
    }  # fmt: skip
    found = open_checkpoint(str(write_checkpoint(tmp_path / "second", random_weights(), second)))
    p = replace(PAPER, mel_bins=128)
    joint = published.joint_sizes(JointConfig(), found, p)
    with torch.device("meta"):
        successor = JointEncoder(JointSizes.of(joint, TextConfig(), p))
    assert parameters(successor) == 8_397_094_912 and successor.width == 4096


def test_qwen_audios_tokens_have_its_ids() -> None:
    tokens = (*QWEN_SPECIAL, *QWEN_AUDIO_SPECIAL)
    assert 151_643 + tokens.index("<audio>") == 155_163
    assert len(set(tokens)) == len(tokens)


def test_a_sound_with_markers_of_its_own_gets_no_others(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_weights())
    tables = {"joint_encoder": {"checkpoint": str(tmp_path)}}
    sizes, _ = from_recipe(recipe_from(tables))
    assert sizes.joint.markers and sizes.joint.llm is not None
    doubled = {"prompt": "Audio 1: <audio>{audio}</audio> Felt?"}
    with pytest.raises(InvalidInputError, match="markers of its own"):
        from_recipe(recipe_from(tables | {"preprocessing": doubled}))


@pytest.mark.parametrize(
    ("change", "p", "message"),
    [
        ({"model_type": "llama"}, PAPER, "model type 'llama'"),
        ({"no_bias": False}, PAPER, "no biases"),
        ({"vocab_size": None}, PAPER, "config.json"),
        ({"audio": {}}, PAPER, "config.json"),
        ({}, replace(PAPER, joint_window_seconds=31.0), "at most 30 s"),
        ({}, replace(PAPER, mel_bins=128), "80 bins"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], p: Preprocessing, message: str, tmp_path: Path
) -> None:
    found = open_checkpoint(str(write_checkpoint(tmp_path, random_weights(), CONFIG | change)))
    with pytest.raises(InvalidInputError, match=message):
        published.joint_sizes(JointConfig(), found, p)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("transformer.h.3.attn.c_attn.bias"), r"decoder\.h\.3\.attn\.c_attn\.bias"),
        (lambda w: w.update({"transformer.h.3.extra": torch.zeros(2)}), r"h\.3\.extra"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(70, 31)}), r"\(70, 31\).*\(70, 32\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(damage: Any, message: str, tmp_path: Path) -> None:
    weights = random_weights()
    damage(weights)
    found = open_checkpoint(str(write_checkpoint(tmp_path, weights)))
    model = JointEncoder(
        JointSizes.of(published.joint_sizes(JointConfig(), found, SHORT), TextConfig(), SHORT)
    )
    with pytest.raises(MerkitError, match=message):
        published.load_joint(model, found)
