"""Official HuBERT checkpoints: their config.json, their names, and what they expect to hear.

TencentGameMate/chinese-hubert-large (the seed's) and facebook/hubert-* share one layout with
three dialects: the model alone or inside one with a head, weight norm as `weight_g`/`weight_v` or
as a parametrisation, and waveforms z-normed or not. wav2vec 2.0 has the same architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.checkpoints import Checkpoint, LoadReport, load_into, open_checkpoint
from merkit_training.encoders.audio.config import SIZES, AudioConfig

if TYPE_CHECKING:
    from merkit_training.encoders.audio.encoder import AudioEncoder

KEYS = {
    "conv_dim": "conv_channels",
    "conv_kernel": "conv_kernels",
    "conv_stride": "conv_strides",
    "conv_bias": "conv_bias",
    "feat_extract_norm": "norm",
    "feat_proj_layer_norm": "projection_norm",
    "do_stable_layer_norm": "stable",
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
    "num_conv_pos_embeddings": "position_kernel",
    "num_conv_pos_embedding_groups": "position_groups",
}
"""Keys of an official config.json and ours."""
BASE: Mapping[str, Any] = {
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "do_stable_layer_norm": False,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
"""What a key that an official config.json leaves out means: HuBERT-base."""
FIXED: Mapping[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
}
"""What all published checkpoints have in common, and this encoder builds in."""
KINDS = ("hubert", "wav2vec2")
PREFIXES = ("hubert.", "wav2vec2.", "model.")  # of models with a head, and of our own steps
OTHERS = (
    "lm_head.", "project_hid.", "project_q.", "quantizer.",
    "projector.", "classifier.", "layer_weights",
)  # fmt: skip
"""Tensors for pre-training or for other heads: deliberately unused."""
WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0",
               "weight_v": "parametrizations.weight.original1"}  # fmt: skip
MASK_VECTOR = "model.masked_spec_embed"
SAMPLE_RATE = 16_000


def sizes_of(config: AudioConfig, *, hub: bool) -> tuple[Checkpoint, AudioConfig]:
    """The checkpoint that `config` names, and `config` with the sizes that it states.

    Raises:
        BundleError: it is missing or damaged.
        InvalidInputError: it is of another architecture.
    """
    checkpoint = open_checkpoint(config.checkpoint, hub=hub)
    stated = checkpoint.config
    if "conv_channels" in stated:  # of our own audio_pretraining or audio_encoder
        found = {name: stated[name] for name in SIZES if name in stated}
    else:
        _refuse_others(checkpoint, stated)
        found = {ours: stated.get(key, BASE[key]) for key, ours in KEYS.items()}
        shares = (stated.get("mask_time_prob", 0.05), stated.get("mask_feature_prob", 0.0))
        found["mask_vector"] = any(share > 0 for share in shares)
    try:
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in found.items()
        }
        return checkpoint, replace(config, **plain)
    except (TypeError, ValueError) as error:
        raise BundleCorruptError(
            f"{checkpoint.folder / 'config.json'} states impossible sizes ({error})",
            "the sizes of a HuBERT",
            "fetch the checkpoint again",
        ) from None


def fill(encoder: AudioEncoder, checkpoint: Checkpoint) -> LoadReport:
    """Copies the checkpoint's weights into `encoder`; errors as of `load_into`."""
    keys = encoder.state_dict().keys()
    named = {name: rename(name) for name in checkpoint.names()}
    if MASK_VECTOR not in keys:
        named = {name: None if key == MASK_VECTOR else key for name, key in named.items()}
    return load_into(encoder, checkpoint, named.__getitem__, optional=(MASK_VECTOR,))


def rename(name: str) -> str | None:
    """The encoder's key for a checkpoint's; None for what another head needs."""
    plain = name
    for prefix in PREFIXES:
        plain = plain.removeprefix(prefix)
    if plain.startswith(OTHERS):
        return None
    stem, dot, last = plain.rpartition(".")
    return f"model.{stem}{dot}{WEIGHT_NORM.get(last, last)}"


def hearing_note(checkpoint: Checkpoint) -> str:
    """How the sound that the checkpoint learnt from differs from the pipeline's; "" if it does
    not, or if no preprocessor_config.json says.

    Raises:
        InvalidInputError: another sample rate, which no weight can make up for.
    """
    path = checkpoint.folder / "preprocessor_config.json"
    if not path.is_file():
        return ""
    try:
        stated = json.loads(path.read_text("utf-8"))
        rate, normal = stated.get("sampling_rate", SAMPLE_RATE), stated.get("do_normalize", True)
    except (ValueError, AttributeError) as error:
        raise BundleCorruptError(f"{path} is no JSON object ({error})", "JSON") from None
    if rate != SAMPLE_RATE:
        raise InvalidInputError(
            f"{path} states {rate} samples a second",
            f"{SAMPLE_RATE}, as the pipeline gives them",
            "choose a checkpoint for 16 kHz",
        )
    if normal:
        return ""
    if checkpoint.config.get("feat_extract_norm", "group") == "group":
        return (
            "the checkpoint learnt from waveforms that were not z-normed; its group norm makes"
            " the pipeline's z-norm the same to it"
        )
    return (
        "the checkpoint learnt from waveforms that were not z-normed, the pipeline z-norms them:"
        " take its features as they are only after comparing, or fine-tune"
    )


def _refuse_others(checkpoint: Checkpoint, stated: Mapping[str, Any]) -> None:
    kind = stated.get("model_type")
    if kind not in KINDS:
        raise InvalidInputError(
            f"{checkpoint.folder} is of the kind {kind!r}",
            f"one of {', '.join(KINDS)}",
            "give the folder of a HuBERT; other encoders of sound: merkit-train features --as",
        )
    for key, value in FIXED.items():
        if stated.get(key, value) != value:
            raise InvalidInputError(
                f"{checkpoint.folder / 'config.json'} states {key} = {stated[key]!r}",
                f"{value!r}, as all published HuBERT checkpoints",
                "choose another checkpoint",
            )
