"""Official ViT and InternViT checkpoints: each weight in its place, the same features out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    InternVLVisionConfig,
    InternVLVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from merkit.errors import InvalidInputError
from merkit_training.encoders.vision.config import FaceEncoderConfig
from merkit_training.encoders.vision.encoder import FaceEncoder
from merkit_training.encoders.vision.layouts import load_checkpoint, resolved
from merkit_training.encoders.vision.train import from_recipe
from merkit_training.recipe import recipe_from

HIDDEN, LAYERS, HEADS, PATCH, SIDE, INNER = 24, 2, 3, 8, 32, 40
CHAT_EXTRAS = {
    "mlp1.0.weight": torch.ones(3),
    "language_model.model.embed_tokens.weight": torch.ones(5, 2),
}


class Rms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class HubAttention(nn.Module):
    def __init__(self, big: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=not big)
        self.proj = nn.Linear(HIDDEN, HIDDEN)
        if big:
            self.q_norm, self.k_norm = Rms(HIDDEN), Rms(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(HIDDEN, dim=-1)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (q, k, v))
        attention = (q @ k.mT / (HIDDEN // HEADS) ** 0.5).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).flatten(2))


class HubLayer(nn.Module):
    def __init__(self, big: bool) -> None:
        super().__init__()
        self.attn = HubAttention(big)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(HIDDEN, INNER), "fc2": nn.Linear(INNER, HIDDEN)})
        self.norm1, self.norm2 = (
            Rms(HIDDEN) if big else nn.LayerNorm(HIDDEN, eps=1e-6) for _ in range(2)
        )
        self.ls1, self.ls2 = (nn.Parameter(torch.randn(HIDDEN)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class HubInternViT(nn.Module):
    """InternViT as OpenGVLab's files have it, stated anew: the 6B's style, or the 300M's."""

    def __init__(self, big: bool = True) -> None:
        super().__init__()
        embeddings, encoder = nn.Module(), nn.Module()
        embeddings.class_embedding = nn.Parameter(torch.randn(1, 1, HIDDEN))
        embeddings.patch_embedding = nn.Conv2d(3, HIDDEN, PATCH, PATCH)
        embeddings.position_embedding = nn.Parameter(
            torch.randn(1, 1 + (SIDE // PATCH) ** 2, HIDDEN)
        )
        encoder.layers = nn.ModuleList(HubLayer(big) for _ in range(LAYERS))
        self.embeddings, self.encoder = embeddings, encoder
        self.config = {
            "model_type": "intern_vit_6b", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "intermediate_size": INNER, "patch_size": PATCH,
            "image_size": SIDE, "qk_normalization": big, "qkv_bias": not big,
            "norm_type": "rms_norm" if big else "layer_norm", "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
        }  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        e: Any = self.embeddings
        patches = e.patch_embedding(images)
        table, n = e.position_embedding[:, 1:], SIDE // PATCH
        plane = table.reshape(1, n, n, HIDDEN).permute(0, 3, 1, 2)
        plane = F.interpolate(plane, size=patches.shape[2:], mode="bicubic", align_corners=False)
        x = (patches + plane).flatten(2).transpose(1, 2)
        first = (e.class_embedding + e.position_embedding[:, :1]).expand(len(images), 1, -1)
        x = torch.cat((first, x), dim=1)
        layers: Any = self.encoder.layers
        for layer in layers:
            x = layer(x)
        return x[:, 1:].mean(1)


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(
        {k: v.detach().contiguous() for k, v in tensors.items()}, folder / "model.safetensors"
    )
    return str(folder)


def _loaded(source: str, architecture: str, side: int) -> FaceEncoder:
    config = FaceEncoderConfig(architecture=architecture, checkpoint=source, hidden=99, heads=1)  # type: ignore[arg-type]
    encoder = FaceEncoder(resolved(config), side).eval()
    load_checkpoint(encoder)
    return encoder


@pytest.mark.parametrize("big", [True, False], ids=["6B", "300M"])
@pytest.mark.parametrize("side", [SIDE, SIDE // 2, 2 * SIDE])
def test_the_hubs_internvit_gives_its_own_features(tmp_path: Path, big: bool, side: int) -> None:
    torch.manual_seed(0)
    hub = HubInternViT(big)
    encoder = _loaded(_write(tmp_path, hub.config, hub.state_dict()), "internvit", side)
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), hub(images), atol=1e-5, rtol=1e-5)


def test_each_tensor_of_the_hub_arrives_bit_by_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hub = HubInternViT()
    encoder = _loaded(_write(tmp_path, hub.config, hub.state_dict()), "internvit", SIDE)
    ours = {k.removeprefix("backbone."): v for k, v in encoder.state_dict().items()}
    for i in range(LAYERS):
        parts = [ours.pop(f"encoder.layer.{i}.attention.{x}_proj.weight") for x in "qkv"]
        assert torch.equal(torch.cat(parts), hub.encoder.layers[i].attn.qkv.weight)  # type: ignore[index, union-attr]
    theirs = {k: v for k, v in hub.state_dict().items() if ".qkv." not in k}
    rest = {v.numpy().tobytes(): k for k, v in theirs.items()}
    assert len(rest) == len(theirs) == len(ours)
    assert set(rest) == {v.numpy().tobytes() for v in ours.values()}


def test_internvl_holds_it_beside_a_language_model(tmp_path: Path) -> None:
    hub = HubInternViT()
    config = {"model_type": "internvl_chat", "vision_config": hub.config}
    tensors = {f"vision_model.{k}": v for k, v in hub.state_dict().items()} | CHAT_EXTRAS
    encoder = _loaded(_write(tmp_path, config, tensors), "internvit", SIDE)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), hub(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [SIDE, SIDE // 2])
def test_transformers_internvit_gives_its_own_features(tmp_path: Path, side: int) -> None:
    torch.manual_seed(0)
    model = InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=INNER, image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH],
            norm_type="layer_norm", use_qk_norm=False, attention_bias=True,
        )
    ).eval()  # fmt: skip
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = model(images).last_hidden_state[:, 1:].mean(1)
        found = _loaded(str(tmp_path), "internvit", side)(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", [False, True], ids=["ViTModel", "ViTForImageClassification"])
@pytest.mark.parametrize("side", [SIDE, SIDE // 2])
def test_transformers_vit_gives_its_own_features(tmp_path: Path, head: bool, side: int) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, image_size=SIDE, patch_size=PATCH, layer_norm_eps=1e-3,
    )  # fmt: skip
    model = (ViTForImageClassification(config) if head else ViTModel(config)).eval()
    model.save_pretrained(tmp_path)
    vit = model.vit if head else model
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        tokens = vit(images, interpolate_pos_encoding=True).last_hidden_state
        found = _loaded(str(tmp_path), "vit", side)(images)
    torch.testing.assert_close(found, tokens[:, 1:].mean(1), atol=1e-5, rtol=1e-5)


def test_the_projector_which_official_files_lack_keeps_its_start(tmp_path: Path) -> None:
    hub = HubInternViT()
    source = _write(tmp_path, hub.config, hub.state_dict())
    config = resolved(
        FaceEncoderConfig(architecture="internvit", checkpoint=source, projector=True)
    )
    encoder = FaceEncoder(config, SIDE)
    assert encoder.projector is not None
    before = {k: v.clone() for k, v in encoder.projector.state_dict().items()}
    load_checkpoint(encoder)
    after = encoder.projector.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip_vision_model"}, "model_type 'clip_vision_model'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_size": None}, "malformed"),
        ({"patch_size": [8, 4]}, "not squares"),
        ({"num_attention_heads": 5}, "multiple of heads"),
        ({"intermediate_size": 41}, r"'encoder.layers.0.mlp.fc1.bias'.*\(40,\).*\(41,\)"),
        ({"num_hidden_layers": 3}, "nothing for 'encoder.layer.2"),
        ({"num_hidden_layers": 1}, "the model has no 'encoder.layer.1"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    hub = HubInternViT()
    source = _write(tmp_path, hub.config | changes, hub.state_dict())
    with pytest.raises(InvalidInputError, match=message):
        _loaded(source, "internvit", SIDE)


def test_a_vit_is_no_internvit(tmp_path: Path) -> None:
    hub = HubInternViT()
    with pytest.raises(InvalidInputError, match="architecture = 'vit'"):
        _loaded(_write(tmp_path, hub.config, hub.state_dict()), "vit", SIDE)


PAPER_VIT = FaceEncoderConfig(hidden=768, layers=12, heads=12, patch=16)
PAPER_INTERN = FaceEncoderConfig(
    architecture="internvit", hidden=3200, layers=48, heads=25, patch=14
)


@pytest.mark.parametrize(
    ("config", "side", "parameters"),
    [
        (PAPER_VIT, 224, 85_798_656),
        (PAPER_INTERN, 224, 5_902_793_600),
        (replace(PAPER_INTERN, layers=45), 448, 5_536_496_000),
    ],
)
def test_the_papers_shapes(config: FaceEncoderConfig, side: int, parameters: int) -> None:
    with torch.device("meta"):
        encoder = FaceEncoder(config, side)
        width = encoder(torch.empty(1, 3, side, side)).shape[-1]
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert width == config.hidden


def test_a_recipes_encoder_has_its_checkpoints_sizes(tmp_path: Path) -> None:
    hub = HubInternViT(big=False)
    source = _write(tmp_path, hub.config, hub.state_dict())
    table = {"architecture": "internvit", "checkpoint": source, "frames": "single"}
    with torch.device("meta"):
        saved, encoder = from_recipe(
            recipe_from({"face_encoder_large": table}), "face_encoder_large"
        )
    assert (saved.encoder.hidden, saved.encoder.layers, saved.encoder.intermediate) == (24, 2, 40)
    assert saved.encoder.qkv_bias and not saved.encoder.rms_norm and not saved.encoder.qk_norm
    assert (saved.side, saved.tiles, encoder.tile) == (128, 2, 64)
    assert all(p.is_meta for p in encoder.parameters())
