"""The masked autoencoder behind Emotion ViT, and its checkpoints in the published layout.

transformers 5 names the layers anew and, when it saves, writes decoder keys that neither the
published checkpoints nor its own version 4 know. So both directions go through one table of names
here: what is read and written is the layout of `facebook/vit-mae-base`, key by key.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from merkit.errors import InvalidInputError
from merkit_training.checkpoints import (
    Checkpoint,
    LoadReport,
    Target,
    load_into,
    open_checkpoint,
)
from merkit_training.encoders.vision.encoder import MLP_RATIO, NORM_EPS
from merkit_training.recipe import Recipe
from merkit_training.runs import CONFIG, MODEL, write_bytes, write_json

PUBLISHED = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Parts of a layer: our key (transformers 5's) and the published one."""
OURS = {published: ours for ours, published in PUBLISHED.items()}
POSITIONS = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
LAYER = re.compile(r"(?P<stem>.*?)(?:encoder\.layer|layers)\.(?P<n>\d+)\.(?P<part>.+)")


def from_recipe(recipe: Recipe) -> tuple[ViTMAEConfig, ViTMAEForPreTraining]:
    """The autoencoder that a recipe describes, at random weights; works on the meta device.

    Raises:
        InvalidInputError: [face_encoder] is no plain ViT, its sizes are not the checkpoint's, or
            the patch does not divide the side.
    """
    encoder, config = recipe.face_encoder, recipe.face_pretraining
    if encoder.architecture != "vit":
        raise InvalidInputError(
            f"[face_encoder] has the architecture {encoder.architecture!r}",
            "'vit', which masked autoencoding pre-trains",
            "set epochs = 0 in [face_pretraining], or the architecture to 'vit'",
        )
    side = config.side or recipe.preprocessing.face_size
    if side % encoder.patch:
        raise InvalidInputError(
            f"patch is {encoder.patch}", f"a divisor of the image's side, {side} pixels"
        )
    sizes = {
        "hidden_size": encoder.hidden,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.intermediate or MLP_RATIO * encoder.hidden,
        "image_size": side,
        "patch_size": encoder.patch,
        "decoder_hidden_size": config.decoder_hidden,
        "decoder_num_hidden_layers": config.decoder_layers,
        "decoder_num_attention_heads": config.decoder_heads,
        "decoder_intermediate_size": MLP_RATIO * config.decoder_hidden,
    }
    if config.checkpoint:
        sizes = _of_checkpoint(sizes, open_checkpoint(config.checkpoint, hub=recipe.run.hub))
    shape = ViTMAEConfig(
        **sizes,
        layer_norm_eps=encoder.norm_eps or NORM_EPS["vit"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        mask_ratio=config.mask,
        norm_pix_loss=config.norm_pixels,
    )
    model = ViTMAEForPreTraining(shape)
    _initialise(model)
    return shape, model


@torch.no_grad()
def _initialise(model: ViTMAEForPreTraining) -> None:
    """MAE's start of positions, tokens and patches. transformers (5.23) means to give it and
    leaves zeros in the end: a decoder that knows no positions cannot tell what is hidden where."""
    embeddings, decoder = model.vit.embeddings, model.decoder
    for table in (embeddings.position_embeddings, decoder.decoder_pos_embed):
        n = math.isqrt(table.shape[1] - 1)
        table[0, 0], table[0, 1:] = 0, sine_positions(n, table.shape[2]).to(table.device)
    for token in (embeddings.cls_token, decoder.mask_token):
        nn.init.normal_(token, std=model.config.initializer_range)
    nn.init.xavier_uniform_(embeddings.patch_embeddings.projection.weight.flatten(1))


def sine_positions(n: int, width: int) -> Tensor:
    """MAE's fixed table for n x n patches, row by row: [n * n, width], a multiple of 4; a half
    for the column, then one for the row."""
    rates = 1 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    at = torch.arange(n, dtype=torch.float64)
    row, column = torch.meshgrid(at, at, indexing="ij")
    angles = [place.reshape(-1, 1) * rates for place in (column, row)]
    return torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], dim=1).float()


def _of_checkpoint(sizes: dict[str, int], checkpoint: Checkpoint) -> dict[str, int]:
    """The sizes with the checkpoint's decoder; the encoder's must be [face_encoder]'s already."""
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        found = checkpoint.config.get(key)
        if found != sizes[key]:
            raise InvalidInputError(
                f"{checkpoint.folder / CONFIG} has {key} {found}",
                f"{sizes[key]}, as [face_encoder] says",
                "give both tables the same sizes",
            )
    decoder = (key for key in sizes if key.startswith("decoder_"))
    return sizes | {key: int(checkpoint.config[key]) for key in decoder if key in checkpoint.config}


def load_published(model: ViTMAEForPreTraining, checkpoint: Checkpoint) -> LoadReport:
    """Fills `model` from a ViTMAE folder; positions of another side are interpolated.

    Raises:
        InvalidInputError: a missing or unknown key, or another shape, by name.
    """
    places = model.state_dict()

    def rename(name: str) -> Target:
        key = our_key(name)
        if key not in POSITIONS:
            return key
        count = places[key].shape[1]
        return [(key, lambda table: resized_positions(table, count))]

    return load_into(model, checkpoint, rename)


def save_published(model: ViTMAEForPreTraining, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` as `facebook/vit-mae-base` has them, so that
    any tool of the field loads them; float32, since training may go on from here."""
    facts = model.config.to_diff_dict() | {"architectures": ["ViTMAEForPreTraining"]}
    write_json(folder / CONFIG, facts | {"model_type": "vit_mae"})
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    named = {published_key(k): v for k, v in state.items()}
    write_bytes(folder / MODEL, save(named, metadata={"format": "pt"}))


def our_key(name: str) -> str:
    """The key in the module of a published key; keys of transformers 5 stay as they are."""
    match = LAYER.fullmatch(name)
    if not match:
        return name
    part, _, leaf = match["part"].rpartition(".")
    return f"{match['stem']}layers.{match['n']}.{OURS.get(part, part)}.{leaf}"


def published_key(key: str) -> str:
    """The inverse of `our_key`."""
    match = LAYER.fullmatch(key)
    if not match:
        return key
    part, _, leaf = match["part"].rpartition(".")
    layers = "layers" if match["stem"].startswith("decoder.") else "encoder.layer"
    return f"{match['stem']}{layers}.{match['n']}.{PUBLISHED.get(part, part)}.{leaf}"


def resized_positions(table: Tensor, count: int) -> Tensor:
    """A position table [1, 1 + n * n, width] for `count` = 1 + m * m tokens, interpolated."""
    if table.shape[1] == count:
        return table
    first, grid = table[:, :1], table[:, 1:]
    n, m = math.isqrt(grid.shape[1]), math.isqrt(count - 1)
    if n * n != grid.shape[1] or m * m != count - 1:
        return table  # no square: the caller's comparison of shapes names it
    image = grid.view(1, n, n, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=(m, m), mode="bicubic", align_corners=False)
    grid = image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat((first, grid), dim=1)
