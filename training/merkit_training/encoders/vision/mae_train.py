"""The stage `face_pretraining`: Emotion ViT learns faces before it learns expressions.

The seed pre-trains on 8 million faces and says that ImageNet would not do (2.2.1). So images are
read through memory maps, a batch at a time, from as many sets as the recipe names, and no label
is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.checkpoints import open_checkpoint
from merkit_training.corpus import ArraySet, open_set
from merkit_training.encoders.vision.encoder import FaceEncoder, normalised, start_patches
from merkit_training.encoders.vision.mae import from_recipe, load_published, save_published
from merkit_training.encoders.vision.mae_config import MaeConfig
from merkit_training.fit import FitConfig, clear_checkpoints, fit
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, stage_seed, write_json

STAGE = "face_pretraining"
STARTING_FACES = 3_000  # that the whitened start is fitted to
JUDGED_FACES = 1_000  # of validation, on which the reconstruction is measured
JUDGED_BATCH = 100
ASPECT = math.log(4 / 3)  # largest logarithm of a crop's width by its height

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class FacePool:
    """Faces of several sets under one numbering; the images stay on disk."""

    parts: Sequence[tuple[NDArray[np.uint8], Indices]]  # images [n, s, s, 3], rows that count

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)

    def batch(self, indices: Indices, side: int, p: Preprocessing) -> Tensor:
        """The faces of these numbers: float32 [b, 3, side, side], normalised."""
        found = torch.empty(len(indices), 3, side, side)
        start = 0
        for images, rows in self.parts:
            here = np.flatnonzero((indices >= start) & (indices < start + len(rows)))
            if len(here):
                chosen = np.asarray(images[rows[indices[here] - start]])
                found[torch.from_numpy(here)] = _sized(normalised(chosen, p), side)
            start += len(rows)
        return found

    @staticmethod
    def read(folders: Sequence[Path], split: str) -> FacePool:
        """Maps the set `faces` of each corpus or gathered folder; errors as `open_set`."""
        sets = [open_set(folder, "faces") for folder in folders]
        return FacePool([(_images(found, f), found.indices(split)) for f, found in
                         zip(folders, sets, strict=True)])  # fmt: skip


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Pre-trains the transformer of [face_encoder]; writes a ViTMAE folder.

    Returns:
        `explained`: the share of the squared error that the mean face leaves which the model
        takes away, on hidden patches of validation; `reconstruction`, `mean_face`, `mean_patch`:
        these errors in the units of the loss; `faces`: how many; and what `fit` returns.

    Raises:
        InvalidInputError: no faces, or sizes that do not fit together.
    """
    config, p = recipe.face_pretraining, recipe.preprocessing
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    folder, seed = run / STAGE, stage_seed(recipe, STAGE)
    torch.manual_seed(seed)
    shape, model = from_recipe(recipe)
    side = int(shape.image_size)
    folders = [corpus] * config.corpus + [Path(source) for source in config.sources]
    faces, judged = (FacePool.read(folders, split) for split in ("train", "val"))
    if not len(faces):
        raise InvalidInputError(f"there are no faces in {', '.join(map(str, folders))}")
    known = faces.batch(_spread(len(faces), STARTING_FACES), side, p)
    judged = judged if len(judged) else faces
    if config.checkpoint:
        load_published(model, open_checkpoint(config.checkpoint, hub=recipe.run.hub))
    elif config.whitened:
        _start_whitened(model, recipe, known)
    sample = judged.batch(_spread(len(judged), JUDGED_FACES), side, p)
    judge = Judge(model, known, sample, config.least_area)

    def loss(model: nn.Module, indices: Indices) -> Tensor:
        images = faces.batch(indices, side, p).to(next(model.parameters()).device)
        value: Tensor = model(crop_at_random(images, config.least_area)).loss
        return value

    schedule = _schedule(config, seed)
    scores = fit(model, loss, len(faces), schedule, folder, name="mae", evaluate=judge)
    scores |= judge.blind | {"faces": float(len(faces))}
    save_published(model, folder)
    parameters = sum(w.numel() for w in model.vit.parameters())
    card = {"step": STAGE, "scores": scores, "seed": seed, "parameters": parameters}
    write_json(folder / CARD, card | {"sources": [str(f) for f in folders]})
    clear_checkpoints(folder)
    return scores


class Judge:
    """Measures reconstruction on the same parts of the same faces, under the same masks, after
    each epoch; parts are cut as in training.

    Attributes:
        blind: squared errors, in the units of the loss, of always telling the mean patch, and the
            mean face's patch at its place: what a model without eyes can reach.
    """

    def __init__(
        self, model: ViTMAEForPreTraining, known: Tensor, judged: Tensor, least_area: float
    ) -> None:
        self.patches = int(model.vit.embeddings.patch_embeddings.num_patches)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            told = _targets(model, crop_at_random(known, least_area))
            self.faces = crop_at_random(judged, least_area)
        truth = _targets(model, self.faces)
        means = {"mean_patch": told.mean(dim=(0, 1)), "mean_face": told.mean(dim=0)}
        self.blind = {name: float(((truth - m) ** 2).mean()) for name, m in means.items()}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """`explained` and `reconstruction` of a model in eval mode."""
        chance = torch.Generator().manual_seed(0)
        device = next(model.parameters()).device
        total = 0.0
        for i in range(0, len(self.faces), JUDGED_BATCH):
            part = self.faces[i : i + JUDGED_BATCH]
            noise = torch.rand(len(part), self.patches, generator=chance)
            total += len(part) * float(model(part.to(device), noise=noise.to(device)).loss)
        found = total / len(self.faces)
        return {"explained": 1 - found / self.blind["mean_face"], "reconstruction": found}


def crop_at_random(images: Tensor, least_area: float) -> Tensor:
    """A random part of each image at the image's own size, half of them mirrored.

    Args:
        images: float32 [b, 3, s, s], on any device; chance is drawn on the CPU, so that each
            device sees the same parts.
        least_area: smallest share of the image that a part has; the largest is all of it.
    """
    count = len(images)
    area = least_area + (1 - least_area) * torch.rand(count)
    aspect = (ASPECT * (2 * torch.rand(count) - 1)).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y = ((1 - size) * (2 * torch.rand(count) - 1) for size in (width, height))
    width = torch.where(torch.rand(count) < 0.5, -width, width)  # mirrored
    none = torch.zeros(count)
    rows = torch.stack((width, none, x, none, height, y), dim=1).view(count, 2, 3)
    grid = F.affine_grid(rows.to(images.device), list(images.shape), False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _start_whitened(model: ViTMAEForPreTraining, recipe: Recipe, images: Tensor) -> None:
    """The patch projection and positions that fine-tuning without MAE starts from."""
    twin = FaceEncoder(recipe.face_encoder, images.shape[-1])
    start_patches(twin, images)
    own = twin.backbone.state_dict()
    kept = {f"vit.{key}": own[key] for key in own if key.startswith("embeddings.p")}
    model.load_state_dict(model.state_dict() | kept)


def _targets(model: ViTMAEForPreTraining, images: Tensor) -> Tensor:
    """What the model is to tell of each patch: [b, patches, pixels]."""
    target: Tensor = model.patchify(images)
    if not model.config.norm_pix_loss:
        return target
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    return (target - mean) / (variance + 1e-6).sqrt()


def _schedule(config: MaeConfig, seed: int) -> FitConfig:
    return FitConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        betas=config.betas,
        seed=seed,
        bf16=config.bf16,
    )


def _images(found: ArraySet, folder: Path) -> NDArray[np.uint8]:
    images = found.arrays.get("images")
    if images is None or images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3:
        shape = None if images is None else f"{images.dtype} {images.shape}"
        raise InvalidInputError(
            f"{folder / 'faces' / 'images.npy'} is {shape}", "uint8 [n, side, side, 3] in RGB"
        )
    return images


def _sized(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def _spread(count: int, most: int) -> Indices:
    """At most `most` numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).astype(np.int64))
