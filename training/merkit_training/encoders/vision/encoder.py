"""The two face encoders: small twins of the seed's Emotion ViT and InternViT-6B (2.2.1).

Grids of faces alone teach a transformer of this size nothing (its sequence is long and its data
few). So each encoder first learns to read one 64-pixel face; then its position table is copied
into all four tiles of the grid, where every tile starts as a trained reader; then it learns to
read four frames together (seed Fig. 2).

The feature is the mean over the patch tokens of the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
from merkit_training.encoders.store import load_module, save_module
from merkit_training.encoders.vision.augment import augment
from merkit_training.encoders.vision.config import FaceEncoderConfig
from merkit_training.encoders.vision.faces import FaceSets, Images, Labels, repeated
from merkit_training.fit import FitConfig, clear_checkpoints, fit
from merkit_training.labels import FACE8, MER6
from merkit_training.metrics import accuracy, waf
from merkit_training.recipe import Recipe
from merkit_training.runs import stage_seed
from merkit_training.settings import Count

MLP_RATIO = 4  # of both architectures
LAYER_SCALE = 0.1  # InternViT-6B's initial value of ls1 and ls2
WHITENING_FACES = 3_000  # faces whose patches the first projection is fitted to
WHITENING_FLOOR = 3e-3  # added to variances, so that mere noise is not blown up
WAVE_BASE, WAVE_HEIGHT = 100.0, 0.5  # of the initial position table
EVALUATION_BATCH = 200


class FaceEncoder(nn.Module):
    """A vision transformer over square images of `side` pixels."""

    def __init__(self, config: FaceEncoderConfig, side: int) -> None:
        super().__init__()
        if side % config.patch:
            raise InvalidInputError(
                f"patch is {config.patch}",
                f"a divisor of the image's side, {side} pixels",
                "correct the recipe",
            )
        self.config, self.side = config, side
        self.backbone = (_vit if config.architecture == "vit" else _internvit)(config, side)

    def forward(self, face_grid: Tensor) -> Tensor:
        """float32 [b, 3, side, side], normalised -> features float32 [b, hidden]."""
        tokens: Tensor = self.backbone(face_grid).last_hidden_state
        return tokens[:, 1:].mean(dim=1)


@dataclass(frozen=True)
class SavedFaceEncoder:
    """`config.json` of a trained face encoder."""

    encoder: FaceEncoderConfig
    side: Count  # of the grid image, in pixels


class FaceClassifier(nn.Module):
    """An encoder with heads, which only training uses: for classes and for action units."""

    def __init__(self, encoder: FaceEncoder, classes: int, units: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.config.hidden)
        self.classes = nn.Linear(encoder.config.hidden, classes)
        self.units = nn.Linear(encoder.config.hidden, units)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as the encoder's -> logits [b, classes] and standardised units [b, units]."""
        features = self.norm(self.encoder(images))
        return self.classes(features), self.units(features)

    def loss(self, images: Tensor, labels: Tensor, units: Tensor) -> Tensor:
        """Cross-entropy, and the weighted squared error of the units where there are any."""
        config = self.encoder.config
        logits, read = self(images)
        value = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if units.shape[1]:
            value = value + config.unit_weight * F.mse_loss(read, units)
        return value


def load(run: Path, step: str = "face_encoder") -> FaceEncoder:
    """The trained encoder of a run; errors as `load_module`."""
    return load_module(run, step, SavedFaceEncoder, lambda s: FaceEncoder(s.encoder, s.side))


def load_large(run: Path) -> FaceEncoder:
    """The trained `face_encoder_large` of a run."""
    return load(run, "face_encoder_large")


def train_face_encoder(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains the step `face_encoder`; returns validation scores."""
    return _train("face_encoder", recipe.face_encoder, recipe, corpus, run)


def train_face_encoder_large(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains the step `face_encoder_large`; returns validation scores."""
    return _train("face_encoder_large", recipe.face_encoder_large, recipe, corpus, run)


def _train(
    step: str, config: FaceEncoderConfig, recipe: Recipe, corpus: Path, run: Path
) -> dict[str, float]:
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    folder, seed, p = run / step, stage_seed(recipe, step), recipe.preprocessing
    torch.manual_seed(seed)
    faces = FaceSets.read(corpus)
    single = FaceClassifier(FaceEncoder(config, p.face_size), len(FACE8), faces.units)
    start_patches(single.encoder, _to_float(faces.singles["train"].images[:WHITENING_FACES], p))
    singles = _teach_singles(single, faces, folder, seed, p)

    grid = _grown(single, p.face_size * p.grid, p.grid)
    grids = _teach_grids(grid, faces, folder, seed + 1, p)

    scores = {f"single_{k}": v for k, v in singles.items()}
    scores |= {f"grid_{k}": v for k, v in grids.items()}
    card = {
        "step": step,
        "scores": scores,
        "seed": seed,
        "parameters": sum(w.numel() for w in grid.encoder.parameters()),
        "feature": f"mean over the patch tokens of the last layer, {config.hidden} wide",
    }
    saved = SavedFaceEncoder(config, grid.encoder.side)
    save_module(run, step, saved, grid.encoder, card)
    clear_checkpoints(folder)
    return scores


def _grown(single: FaceClassifier, side: int, grid: int) -> FaceClassifier:
    """The reader of grids that starts as the trained reader of single faces: tile by tile the
    same positions, and of the head the classes that MER6 keeps."""
    units = single.units.out_features
    grown = FaceClassifier(FaceEncoder(single.encoder.config, side), len(MER6), units)
    kept = [FACE8.index(name) for name in MER6]
    state = single.state_dict()
    state |= {name: state[name][kept] for name in ("classes.weight", "classes.bias")}
    tiles = tile_positions(single.encoder.state_dict(), grid)
    state |= {f"encoder.{name}": value for name, value in tiles.items()}
    grown.load_state_dict(state)
    return grown


def _teach_singles(
    model: FaceClassifier, faces: FaceSets, folder: Path, seed: int, p: Preprocessing
) -> dict[str, float]:
    """Eight classes on single faces; returns WAF and accuracy on `val`."""
    config = model.encoder.config
    train, val = faces.singles["train"], faces.singles["val"]
    schedule = _schedule(config, config.single_epochs, config.lr, seed)

    def loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        images = augment(_to_float(train.images[indices], p)[:, None])[:, 0]
        assert isinstance(model, FaceClassifier)
        return model.loss(images, *train.targets(indices))

    def evaluate(model: nn.Module) -> dict[str, float]:
        predicted = _predict(model, val.images, lambda part: _to_float(part, p))
        return _scores(val.labels, predicted, len(FACE8))

    return fit(model, loss, len(train.labels), schedule, folder, name="single", evaluate=evaluate)


def _teach_grids(
    model: FaceClassifier, faces: FaceSets, folder: Path, seed: int, p: Preprocessing
) -> dict[str, float]:
    """Six classes on sequences and some repeated single faces; WAF and accuracy on `val`."""
    config = model.encoder.config
    train, val = faces.sequences["train"], faces.sequences["val"]
    tiles = train.images.shape[1]
    train = train.joined(repeated(faces.singles["train"], config.grid_singles, tiles, seed))
    schedule = _schedule(config, config.grid_epochs, config.grid_lr, seed)

    def loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        images = tiled(augment(_to_float(train.images[indices], p)), p.grid)
        assert isinstance(model, FaceClassifier)
        return model.loss(images, *train.targets(indices))

    def evaluate(model: nn.Module) -> dict[str, float]:
        predicted = _predict(model, val.images, lambda part: tiled(_to_float(part, p), p.grid))
        return _scores(val.labels, predicted, len(MER6))

    return fit(model, loss, len(train.labels), schedule, folder, name="grid", evaluate=evaluate)


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
    positions = encoder.backbone.get_parameter("embeddings.position_embeddings")
    patch = encoder.config.patch
    patches = F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    mean, (values, vectors) = patches.mean(0), torch.linalg.eigh(patches.T.cov())
    kept = min(len(values), encoder.config.hidden)
    values, vectors = values[-kept:], vectors[:, -kept:]
    whitening = (vectors / (values + WHITENING_FLOOR).sqrt()).T  # [kept, 3 * patch * patch]
    projection[:kept] = whitening.view(kept, *projection.shape[1:])
    offset[:kept] = -whitening @ mean
    positions[0, 1:] = _waves(encoder.side // patch, encoder.config.hidden)


def _waves(n: int, hidden: int) -> Tensor:
    """Sines and cosines of both coordinates, [n * n, hidden], as in MAE."""
    quarter = hidden // 4
    rates = WAVE_BASE ** -(torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    angles = [at.reshape(-1, 1) * rates for at in (y, x)]
    table = torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], dim=1)
    return WAVE_HEIGHT * F.pad(table, (0, hidden - 4 * quarter))


def tile_positions(state: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """A single face's encoder for grids: its position table is copied into each tile.

    Args:
        state: of a `FaceEncoder` whose side is one face's.
        grid: tiles in a row.
    """
    key = "backbone.embeddings.position_embeddings"  # both architectures': [1, 1 + n * n, hidden]
    first, patches = state[key][:, :1], state[key][:, 1:]
    n = math.isqrt(patches.shape[1])
    table = patches.view(1, n, n, -1).tile(1, grid, grid, 1).flatten(1, 2)
    return {**state, key: torch.cat((first, table), dim=1)}


def tiled(faces: Tensor, grid: int) -> Tensor:
    """float32 [b, grid * grid, 3, s, s] in time order -> [b, 3, grid * s, grid * s], as the
    `preprocess` step lays them out."""
    batch, _, colours, side, _ = faces.shape
    rows = faces.view(batch, grid, grid, colours, side, side).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(batch, colours, grid * side, grid * side)


def _vit(config: FaceEncoderConfig, side: int) -> nn.Module:
    model: nn.Module = ViTModel(
        ViTConfig(
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=MLP_RATIO * config.hidden,
            image_size=side,
            patch_size=config.patch,
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
            intermediate_size=MLP_RATIO * config.hidden,
            image_size=[side, side],
            patch_size=[config.patch, config.patch],
            use_qk_norm=True,
            norm_type="rms_norm",
            attention_bias=False,
            layer_scale_init_value=LAYER_SCALE,
            use_mean_pooling=True,
        )
    )
    return model


def _schedule(config: FaceEncoderConfig, epochs: int, lr: float, seed: int) -> FitConfig:
    return FitConfig(
        epochs=epochs,
        batch_size=config.batch_size,
        lr=lr,
        weight_decay=config.weight_decay,
        label_smoothing=config.label_smoothing,
        seed=seed,
        bf16=config.bf16,
    )


def _to_float(images: Images, p: Preprocessing) -> Tensor:
    """uint8 [..., side, side, 3] -> normalised float32 [..., 3, side, side]."""
    mean, std = 255 * torch.tensor(p.face_mean), 255 * torch.tensor(p.face_std)
    return ((torch.from_numpy(images).float() - mean) / std).movedim(-1, -3)


def _predict(model: nn.Module, images: Images, to_input: Callable[[Images], Tensor]) -> Labels:
    parts = range(0, len(images), EVALUATION_BATCH)
    logits = [model(to_input(images[i : i + EVALUATION_BATCH]))[0] for i in parts]
    return torch.cat(logits).argmax(dim=1).numpy()


def _scores(truth: Labels, predicted: Labels, classes: int) -> dict[str, float]:
    return {"waf": waf(truth, predicted, classes), "accuracy": accuracy(truth, predicted)}
