"""The two face encoders: the seed's Emotion ViT and InternViT-6B, of any size (2.2.1).

What a clip's faces look like to an encoder is fixed here alone, for training and export alike: a
grid of four frames, of which the feature is the mean over the last layer's patch tokens, through
the projector where there is one. An encoder taught on single frames reads each tile of the grid
by itself and averages, so that the pipeline's one tensor serves both (Table 2, single and multi).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import InternVLVisionConfig, InternVLVisionModel, ViTConfig, ViTModel

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.encoders.store import load_module
from merkit_training.encoders.vision.config import FaceEncoderConfig
from merkit_training.settings import Count

MLP_RATIO = 4  # of both architectures
NORM_EPS = {"vit": 1e-12, "internvit": 1e-6}
LAYER_SCALE = 0.1  # InternViT-6B's initial value of ls1 and ls2
WHITENING_FLOOR = 3e-3  # added to variances, so that mere noise is not blown up
WAVE_BASE, WAVE_HEIGHT = 100.0, 0.5  # of the initial position table
POSITIONS = "embeddings.position_embeddings"  # both architectures': [1, 1 + n * n, hidden]
EVALUATION_BATCH = 200


class FaceEncoder(nn.Module):
    """A vision transformer over square images of `side` pixels.

    Args:
        config: sizes; a `checkpoint` in it is not read (`layouts.resolved` does).
        side: of the image, in pixels.
        tiles: in a row of the image, if each is to be read by itself and their features averaged.
    """

    def __init__(self, config: FaceEncoderConfig, side: int, tiles: int = 1) -> None:
        super().__init__()
        self.config, self.side, self.tile = config, side, side // tiles
        if self.tile % config.patch:
            raise InvalidInputError(
                f"patch is {config.patch}",
                f"a divisor of the image's side, {self.tile} pixels",
                "correct the recipe",
            )
        self.backbone = (_vit if config.architecture == "vit" else _internvit)(config, self.tile)
        if config.recompute:
            self.backbone.activation_checkpointing_enable()  # type: ignore[operator]
        self.projector = _projector(config.hidden) if config.projector else None

    def forward(self, face_grid: Tensor) -> Tensor:
        """float32 [b, 3, side, side], or one tile of it, normalised -> features [b, hidden]."""
        if face_grid.shape[-1] == self.tile:
            return self._read(face_grid)
        features = self._read(untiled(face_grid, self.tile).flatten(0, 1))
        return features.view(len(face_grid), -1, self.config.hidden).mean(dim=1)

    def _read(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.backbone(images).last_hidden_state
        feature = tokens[:, 1:].mean(dim=1)
        return feature if self.projector is None else self.projector(feature)

    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, first to last."""
        vit = self.config.architecture == "vit"
        blocks = self.backbone.get_submodule("layers" if vit else "encoder.layer")
        assert isinstance(blocks, nn.ModuleList)
        return blocks


@dataclass(frozen=True)
class SavedFaceEncoder:
    """`config.json` of a trained face encoder."""

    encoder: FaceEncoderConfig
    side: Count  # of the grid image, in pixels
    tiles: Count = 1  # in a row of it, if each is read by itself

    def build(self) -> FaceEncoder:
        """The encoder at random weights."""
        return FaceEncoder(self.encoder, self.side, self.tiles)


def load(run: Path, step: str = "face_encoder") -> FaceEncoder:
    """The trained encoder of a run; errors as `load_module`."""
    return load_module(run, step, SavedFaceEncoder, SavedFaceEncoder.build)


def load_large(run: Path) -> FaceEncoder:
    """The trained `face_encoder_large` of a run."""
    return load(run, "face_encoder_large")


@torch.no_grad()
def encode_images(
    encoder: FaceEncoder,
    images: NDArray[np.uint8],
    p: Preprocessing,
    batch: int = EVALUATION_BATCH,
) -> NDArray[np.float32]:
    """Features of faces as the pipeline would compute them.

    Args:
        encoder: in eval mode, on any device.
        images: uint8 RGB [n, s, s, 3], or [n, f, s, s, 3] of f >= 1 frames in time order, where s
            is the side of one tile of the encoder's image, or of the whole.
        p: the mean and deviation to normalise with.
        batch: images at a time.

    Returns:
        float32 [n, hidden].

    Raises:
        InvalidInputError: images of another shape or type.
    """
    if images.ndim == 4:
        images = images[:, None]
    if images.ndim != 5 or images.dtype != np.uint8 or not images.shape[1]:
        found = f"the images are {images.dtype} of shape {images.shape}"
        raise InvalidInputError(found, "uint8 [n, side, side, 3] or [n, frames, side, side, 3]")
    grid = encoder.side // images.shape[2]
    if images.shape[2] != images.shape[3] or grid * images.shape[2] != encoder.side:
        found = f"the images have {images.shape[2]} x {images.shape[3]} pixels"
        raise InvalidInputError(found, f"squares, a whole number of them in {encoder.side} pixels")
    frames = images.shape[1]
    order = [int((i + 0.5) * frames / grid**2) for i in range(grid**2)]  # as the contract has it
    device = next(encoder.parameters()).device
    parts = [np.zeros((0, encoder.config.hidden), np.float32)]
    for i in range(0, len(images), batch):
        tiles = normalised(images[i : i + batch, order], p).to(device)
        parts.append(encoder(tiled(tiles, grid)).float().cpu().numpy())
    return np.concatenate(parts)


def normalised(images: NDArray[np.uint8], p: Preprocessing) -> Tensor:
    """uint8 [..., side, side, 3] -> float32 [..., 3, side, side] in the encoders' units."""
    mean, std = 255 * torch.tensor(p.face_mean), 255 * torch.tensor(p.face_std)
    return ((torch.from_numpy(images).float() - mean) / std).movedim(-1, -3)


def tiled(faces: Tensor, grid: int) -> Tensor:
    """float32 [b, grid * grid, 3, s, s] in time order -> [b, 3, grid * s, grid * s], as the
    `preprocess` step lays them out."""
    batch, _, colours, side, _ = faces.shape
    rows = faces.view(batch, grid, grid, colours, side, side).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(batch, colours, grid * side, grid * side)


def untiled(images: Tensor, side: int) -> Tensor:
    """The inverse of `tiled`, for tiles of `side` pixels."""
    batch, colours, whole, _ = images.shape
    grid = whole // side
    rows = images.view(batch, colours, grid, side, grid, side).permute(0, 2, 4, 1, 3, 5)
    return rows.reshape(batch, grid * grid, colours, side, side)


def tile_positions(state: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """A single face's encoder for grids: its position table is copied into each tile.

    Args:
        state: of a `FaceEncoder` whose side is one face's.
        grid: tiles in a row.
    """
    key = f"backbone.{POSITIONS}"
    first, patches = state[key][:, :1], state[key][:, 1:]
    n = math.isqrt(patches.shape[1])
    table = patches.view(1, n, n, -1).tile(1, grid, grid, 1).flatten(1, 2)
    return {**state, key: torch.cat((first, table), dim=1)}


@torch.no_grad()
def start_patches(encoder: FaceEncoder, images: Tensor) -> None:
    """Starts the patch projection as the whitened principal components of real patches, and the
    position table as sines and cosines.

    Skin and light hold nearly all of a patch's variance and nothing of its expression; from a
    random start most of a short training is spent on finding the rest.

    Args:
        encoder: changed in place.
        images: float32 [n, 3, side, side], normalised.
    """
    projection = encoder.backbone.get_parameter("embeddings.patch_embeddings.projection.weight")
    offset = encoder.backbone.get_parameter("embeddings.patch_embeddings.projection.bias")
    positions = encoder.backbone.get_parameter(POSITIONS)
    patch = encoder.config.patch
    patches = F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    mean, (values, vectors) = patches.mean(0), torch.linalg.eigh(patches.T.cov())
    kept = min(len(values), encoder.config.hidden)
    values, vectors = values[-kept:], vectors[:, -kept:]
    whitening = (vectors / (values + WHITENING_FLOOR).sqrt()).T  # [kept, 3 * patch * patch]
    projection[:kept] = whitening.view(kept, *projection.shape[1:])
    offset[:kept] = -whitening @ mean
    positions[0, 1:] = _waves(encoder.tile // patch, encoder.config.hidden)


def _waves(n: int, hidden: int) -> Tensor:
    """Sines and cosines of both coordinates, [n * n, hidden], as in MAE."""
    quarter = hidden // 4
    rates = WAVE_BASE ** -(torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    angles = [at.reshape(-1, 1) * rates for at in (y, x)]
    table = torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], dim=1)
    return WAVE_HEIGHT * F.pad(table, (0, hidden - 4 * quarter))


def _projector(width: int) -> nn.Sequential:
    """InternVL's mlp1 at one width: what stands between the vision transformer and its users."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
    )


def _vit(config: FaceEncoderConfig, side: int) -> nn.Module:
    model: nn.Module = ViTModel(
        ViTConfig(
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate or MLP_RATIO * config.hidden,
            image_size=side,
            patch_size=config.patch,
            layer_norm_eps=config.norm_eps or NORM_EPS["vit"],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    return model


def _internvit(config: FaceEncoderConfig, side: int) -> nn.Module:
    model: nn.Module = InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate or MLP_RATIO * config.hidden,
            image_size=[side, side],
            patch_size=[config.patch, config.patch],
            layer_norm_eps=config.norm_eps or NORM_EPS["internvit"],
            use_qk_norm=config.qk_norm,
            norm_type="rms_norm" if config.rms_norm else "layer_norm",
            attention_bias=config.qkv_bias,
            layer_scale_init_value=LAYER_SCALE,
            use_mean_pooling=True,
        )
    )
    return model
