"""Official ViT and InternViT checkpoints: sizes and weights for a `FaceEncoder`.

OpenGVLab's InternViT files keep the names of its own code, with queries, keys and values in one
matrix; transformers' conversions name the same weights otherwise, and InternVL's files hold them
beside a language model. All were trained at another side than a face's, so that the position
table is resized. (The names of ViT files are in `mae`.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from merkit.errors import InvalidInputError
from merkit_training.checkpoints import (
    Checkpoint,
    LoadReport,
    Target,
    load_into,
    open_checkpoint,
)
from merkit_training.encoders.vision.config import FaceEncoderConfig
from merkit_training.encoders.vision.encoder import POSITIONS, FaceEncoder
from merkit_training.encoders.vision.mae import resized_positions
from merkit_training.encoders.vision.start import load_vit

VIT_TYPES, INTERN_TYPES = ("vit", "vit_mae"), ("intern_vit_6b", "internvl_vision")
INTERN_SIZES = {  # defaults of the two InternViT configurations, which files may leave out
    "intern_vit_6b": (3200, 48, 25, 12_800, "rms_norm", True, False),
    "internvl_vision": (1024, 24, 16, 4096, "layer_norm", False, False),
}

INTERN_PREFIX = re.compile(r"^(model\.)?(vision_model|vision_tower)\.")
INTERN_ASIDE = re.compile(
    r"^(model\.)?(language_model|mlp1|multi_modal_projector|lm_head)\b|embeddings\.mask_token$"
)
INTERN_NAMES = (
    (r"class_embedding$", "cls_token"),
    (r"position_embedding$", "position_embeddings"),
    (r"patch_embedding\.", "patch_embeddings.projection."),
    (r"^encoder\.layers\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
)


def resolved(config: FaceEncoderConfig, *, hub: bool = False) -> FaceEncoderConfig:
    """The configuration with its checkpoint's sizes; unchanged where it names no checkpoint.

    Raises:
        InvalidInputError: a checkpoint of another architecture.
        BundleError: as `open_checkpoint`.
    """
    if not config.checkpoint:
        return config
    checkpoint = open_checkpoint(config.checkpoint, hub=hub)
    sizes = _vit_sizes if config.architecture == "vit" else _intern_sizes
    try:
        return replace(config, **sizes(checkpoint))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"config.json in {checkpoint.folder} is malformed ({type(error).__name__}: {error})",
            f"the sizes of a {config.architecture}",
            "fetch the checkpoint again",
        ) from None


def load_checkpoint(encoder: FaceEncoder, *, hub: bool = False) -> LoadReport:
    """Loads the checkpoint that `encoder.config` names into the backbone; the projector, which
    official files lack, keeps its start. Errors as `load_into`."""
    checkpoint = open_checkpoint(encoder.config.checkpoint, hub=hub)
    vit = encoder.config.architecture == "vit"
    return load_vit(encoder, checkpoint) if vit else load_internvit(encoder, checkpoint)


def load_internvit(encoder: FaceEncoder, checkpoint: Checkpoint) -> LoadReport:
    """Fills a face encoder from an InternViT folder, or from an InternVL one that holds it;
    positions of another side are interpolated."""
    count, hidden = encoder.backbone.get_parameter(POSITIONS).shape[1], encoder.config.hidden

    def rename(name: str) -> Target:
        key = intern_name(name)
        if key == POSITIONS:
            return [(key, lambda table: resized_positions(table, count))]
        if key is None or ".qkv." not in key:
            return key
        return [
            (key.replace("qkv", part), slice(i * hidden, (i + 1) * hidden))
            for i, part in enumerate(("q_proj", "k_proj", "v_proj"))
        ]

    return load_into(encoder.backbone, checkpoint, rename)


def intern_name(name: str) -> str | None:
    """The name in `InternVLVisionModel` of a tensor in an InternViT or InternVL checkpoint, with
    `attention.qkv` where it holds three; None if unused here."""
    if INTERN_ASIDE.search(name):
        return None
    name = INTERN_PREFIX.sub("", name)
    for pattern, replacement in INTERN_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _vit_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    table = checkpoint.config
    _check_type(checkpoint, table, VIT_TYPES, "vit")
    if not table.get("qkv_bias", True):
        raise ValueError("qkv_bias is false, which no published ViT has")
    return {
        "hidden": int(table.get("hidden_size", 768)),
        "layers": int(table.get("num_hidden_layers", 12)),
        "heads": int(table.get("num_attention_heads", 12)),
        "patch": _side(table.get("patch_size", 16)),
        "intermediate": int(table.get("intermediate_size", 3072)),
        "norm_eps": float(table.get("layer_norm_eps", 1e-12)),
    }


def _intern_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    table = checkpoint.config.get("vision_config", checkpoint.config)
    kind = _check_type(checkpoint, table, INTERN_TYPES, "internvit")
    hidden, layers, heads, intermediate, norm, qk_norm, bias = INTERN_SIZES[kind]
    return {
        "hidden": int(table.get("hidden_size", hidden)),
        "layers": int(table.get("num_hidden_layers", layers)),
        "heads": int(table.get("num_attention_heads", heads)),
        "patch": _side(table.get("patch_size", 14)),
        "intermediate": int(table.get("intermediate_size", intermediate)),
        "norm_eps": float(table.get("layer_norm_eps", 1e-6)),
        "rms_norm": table.get("norm_type", norm) == "rms_norm",
        "qk_norm": bool(table.get("use_qk_norm", table.get("qk_normalization", qk_norm))),
        "qkv_bias": bool(table.get("attention_bias", table.get("qkv_bias", bias))),
    }


def _check_type(
    checkpoint: Checkpoint, table: Mapping[str, Any], expected: tuple[str, ...], architecture: str
) -> str:
    kind, activation = table.get("model_type"), table.get("hidden_act", "gelu")
    if kind not in expected:
        raise InvalidInputError(
            f"config.json in {checkpoint.folder} has the model_type {kind!r}",
            f"{' or '.join(expected)}, as architecture = {architecture!r} reads",
            "give another checkpoint, or correct the recipe's architecture",
        )
    if activation != "gelu":
        raise ValueError(f"hidden_act is {activation!r}, not 'gelu'")
    return str(kind)


def _side(value: Any) -> int:
    """A patch's side, written as a number or as a pair of equal ones."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ValueError(f"patches are {value}, not squares")
    return int(sides.pop())
