"""HuBERT in both published styles: the same numbers as transformers, in any batch, from official
files, and one sentence for each file that does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import HubertConfig, HubertForCTC, HubertModel

from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit_training.encoders.audio.config import AudioConfig
from merkit_training.encoders.audio.encoder import AudioEncoder, from_recipe
from merkit_training.encoders.audio.official import hearing_note, sizes_of
from merkit_training.recipe import recipe_from

STACK = {"conv_kernels": (10, 3, 3, 3, 3, 2, 2), "conv_strides": (5, 2, 2, 2, 2, 2, 2)}
SMALL = {
    "conv_dim": [16] * 7, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4,
    "intermediate_size": 48, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
STYLES: dict[str, dict[str, Any]] = {"large": LARGE, "base": {}}  # base: transformers' defaults
OLD_NORM = {"original0": "weight_g", "original1": "weight_v"}


def official(folder: Path, style: str, kind: type = HubertModel, **changes: Any) -> Any:
    """A random model of transformers' own, written as published checkpoints are."""
    torch.manual_seed(5)
    model = kind(HubertConfig(**SMALL, **STYLES[style], **changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return model


def encoder_of(folder: Path, **table: Any) -> tuple[AudioConfig, AudioEncoder]:
    recipe = recipe_from({"audio_encoder": {"checkpoint": str(folder), **table}})
    config, encoder = from_recipe(recipe)
    return config, encoder.eval()


def sound(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


def whole(values: Tensor) -> Tensor:
    return torch.full((len(values), 1), values.shape[1])


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_an_official_checkpoint_gives_transformers_own_numbers(style: str, tmp_path: Path) -> None:
    model = official(tmp_path, style)
    config, encoder = encoder_of(tmp_path)
    assert config.norm == STYLES[style].get("feat_extract_norm", "group")
    values = sound(9000)
    expected = model(values, output_hidden_states=True)
    last = (*expected.hidden_states[-4:-1], expected.last_hidden_state)
    frames, mask = encoder.frames(values, whole(values))
    assert mask.all()
    torch.testing.assert_close(frames, torch.stack(last).mean(0), atol=1e-5, rtol=0)
    features = encoder(values, whole(values))
    torch.testing.assert_close(features, torch.stack(last).mean(0).mean(1), atol=1e-5, rtol=0)
    assert features.abs().max() > 0.1


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_neither_style_feels_padding_or_neighbours(style: str, tmp_path: Path) -> None:
    """transformers' base style does: its group norm averages over padding."""
    official(tmp_path, style)
    _, encoder = encoder_of(tmp_path)
    lengths = [1600, 9000, 5555, 401, 0]
    values = torch.full((5, 12_000), 3.0)
    for i, length in enumerate(lengths):
        values[i, :length] = sound(length, i)
    together = encoder(values, torch.tensor(lengths)[:, None])
    for i, length in enumerate(lengths[:4]):
        alone = encoder(sound(length, i), torch.tensor([[length]]))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
    assert together.isfinite().all() and not together[4].any()


@torch.no_grad()
def test_the_base_style_exports_and_stays_the_same_in_a_batch(tmp_path: Path) -> None:
    official(tmp_path, "base")
    _, encoder = encoder_of(tmp_path)
    values, length = torch.randn(2, 6000), torch.tensor([[6000], [2500]])
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    rows_free = {0: torch.export.Dim.DYNAMIC}
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        encoder, (values, length), path, input_names=["values", "length"], opset_version=20,
        dynamic_shapes=(free, rows_free), dynamo=True,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows, size in ((2, 6000), (1, 9000), (3, 4000)):
        values, length = torch.randn(rows, size), torch.full((rows, 1), size)
        length[-1] //= 2
        found = session.run(None, {"values": values.numpy(), "length": length.numpy()})[0]
        np.testing.assert_allclose(found, encoder(values, length).numpy(), atol=1e-4)


@torch.no_grad()
def test_the_sum_of_the_layers_is_four_times_their_mean(tmp_path: Path) -> None:
    official(tmp_path, "large")
    values = sound(4000)
    mean, total = (encoder_of(tmp_path, pool_layers=how)[1] for how in ("mean", "sum"))
    torch.testing.assert_close(total(values, whole(values)), 4 * mean(values, whole(values)))


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_the_dialects_of_the_files_give_one_encoder(style: str, tmp_path: Path) -> None:
    """A model with a head, weight norm in the older spelling, a .bin: chinese-hubert-large has
    the last two."""
    official(tmp_path / "head", style, HubertForCTC, vocab_size=7)
    _, expected = encoder_of(tmp_path / "head")
    weights = load_file(tmp_path / "head" / "model.safetensors")
    assert any(name.startswith("lm_head.") for name in weights)
    old: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        stem, _, last = name.removeprefix("hubert.").rpartition(".")
        if last in OLD_NORM:
            stem, last = stem.removesuffix(".parametrizations.weight"), OLD_NORM[last]
        old[f"{stem}.{last}" if stem else last] = tensor
    assert "encoder.pos_conv_embed.conv.weight_g" in old
    bare = tmp_path / "bare"
    bare.mkdir()
    torch.save({k: v for k, v in old.items() if not k.startswith("lm_head.")},
               bare / "pytorch_model.bin")  # fmt: skip
    (bare / "config.json").write_bytes((tmp_path / "head" / "config.json").read_bytes())
    _, found = encoder_of(bare)
    values = sound(4000)
    assert torch.equal(found(values, whole(values)), expected(values, whole(values)))


def test_the_published_sizes_have_the_published_numbers_of_weights() -> None:
    stack = {"conv_channels": (512,) * 7, **STACK, "position_kernel": 128, "position_groups": 16}
    large = AudioConfig(
        **stack, hidden=1024, layers=24, heads=16, intermediate=4096, mask_vector=True  # type: ignore[arg-type]
    )  # fmt: skip
    base = replace(
        large, hidden=768, layers=12, heads=12, intermediate=3072, norm="group", stable=False,
        conv_bias=False,
    )  # fmt: skip
    with torch.device("meta"):
        counts = [sum(p.numel() for p in AudioEncoder(c).parameters()) for c in (large, base)]
        assert counts[1] == sum(p.numel() for p in HubertModel(HubertConfig()).parameters())
    assert counts[0] == 315_438_720
    assert (large.hop, large.field) == (320, 400)


def test_on_the_meta_device_a_checkpoint_gives_its_sizes_alone(tmp_path: Path) -> None:
    official(tmp_path, "large")
    with torch.device("meta"):
        config, encoder = from_recipe(
            recipe_from({"audio_encoder": {"checkpoint": str(tmp_path), "hidden": 999 * 8}})
        )
    assert (config.hidden, config.layers, config.conv_channels) == (32, 5, (16,) * 7)
    real = {name for name, p in encoder.named_parameters() if not p.is_meta}
    assert real <= {"model.masked_spec_embed"}  # transformers makes it in a way that stays real


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _drop(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.1.final_layer_norm.bias"]
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (_config(model_type="bert"), InvalidInputError, "'bert'.*hubert"),
        (_config(hidden_act="relu"), InvalidInputError, "hidden_act = 'relu'.*gelu"),
        (_config(hidden_size=48), InvalidInputError, r"\(32.*\(48"),
        (_config(num_attention_heads=5), BundleCorruptError, "impossible sizes.*multiple of heads"),
        (_config(conv_dim=7), BundleCorruptError, "impossible sizes"),
        (_drop, InvalidInputError, "layers.1.final_layer_norm.bias"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], said: str
) -> None:
    official(tmp_path, "large")
    damage(tmp_path)
    with pytest.raises(error, match=said):
        encoder_of(tmp_path)


def test_a_checkpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(BundleNotFoundError, match="nowhere/at-all"):
        encoder_of(Path("nowhere/at-all"))


@pytest.mark.parametrize(
    ("style", "stated", "said"),
    [
        ("large", {"do_normalize": True}, "^$"),
        ("large", {"do_normalize": False}, "only after comparing"),
        ("base", {"do_normalize": False}, "the same to it"),
        ("large", None, "^$"),
    ],
)
def test_what_a_checkpoint_expects_to_hear_is_compared(
    tmp_path: Path, style: str, stated: dict[str, Any] | None, said: str
) -> None:
    official(tmp_path, style)
    if stated is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    checkpoint, _ = sizes_of(AudioConfig(checkpoint=str(tmp_path)), hub=False)
    assert re.search(said, hearing_note(checkpoint))


@torch.no_grad()
def test_z_norm_is_indeed_the_same_to_the_base_style(tmp_path: Path) -> None:
    official(tmp_path, "base")
    _, encoder = encoder_of(tmp_path)
    values = sound(8000)
    loud = encoder(0.5 + 3 * values, whole(values))
    torch.testing.assert_close(loud, encoder(values, whole(values)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("content", "error"),
    [('{"sampling_rate": 8000}', InvalidInputError), ("[", BundleCorruptError),
     ("[]", BundleCorruptError)],
)  # fmt: skip
def test_another_sample_rate_or_damage_is_refused(
    tmp_path: Path, content: str, error: type[Exception]
) -> None:
    official(tmp_path, "large")
    (tmp_path / "preprocessor_config.json").write_text(content)
    checkpoint, _ = sizes_of(AudioConfig(checkpoint=str(tmp_path)), hub=False)
    with pytest.raises(error, match="preprocessor_config"):
        hearing_note(checkpoint)
