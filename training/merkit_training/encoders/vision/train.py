"""The stages `face_encoder` and `face_encoder_large`: every row of the seed's Table 2.

Grids of faces alone teach a small transformer nothing (its sequence is long and its data few). So
an encoder first learns to read one face; then its position table is copied into all four tiles of
the grid, where every tile starts as a trained reader; then it learns from clips: as grids of four
frames (seed Fig. 2), or, for comparison, a frame at a time.

Where it starts from decides what a comparison means, so the card says it: the run's own
pre-training, else the checkpoint that the recipe names, else random weights behind patches
whitened on the corpus.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.encoders.store import save_module
from merkit_training.encoders.vision.augment import augment
from merkit_training.encoders.vision.config import FaceEncoderConfig
from merkit_training.encoders.vision.contrastive import STAGE as PRETRAINING
from merkit_training.encoders.vision.contrastive import load_pretrained
from merkit_training.encoders.vision.encoder import (
    EVALUATION_BATCH,
    FaceEncoder,
    SavedFaceEncoder,
    normalised,
    start_patches,
    tile_positions,
    tiled,
)
from merkit_training.encoders.vision.faces import (
    FaceSets,
    Images,
    Labels,
    Samples,
    numbers_of,
    repeated,
)
from merkit_training.encoders.vision.layouts import load_checkpoint, resolved
from merkit_training.encoders.vision.start import start_encoder
from merkit_training.fit import FitConfig, clear_checkpoints, fit
from merkit_training.metrics import accuracy, waf
from merkit_training.recipe import Recipe
from merkit_training.runs import stage_seed

WHITENING_FACES = 3_000  # faces whose patches the first projection is fitted to
WHITENED = "random weights behind whitened patches"


class FaceClassifier(nn.Module):
    """An encoder with heads, which only training uses: for classes and for action units."""

    def __init__(self, encoder: FaceEncoder, classes: int, units: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.config.hidden)
        self.classes = nn.Linear(encoder.config.hidden, classes)
        self.units = nn.Linear(encoder.config.hidden, units) if units else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images as the encoder's -> logits [b, classes] and standardised units [b, units]."""
        features = self.norm(self.encoder(images.to(self.classes.weight.device)))
        return self.classes(features), self.units(features) if self.units else None

    def loss(self, images: Tensor, labels: Tensor, units: Tensor) -> Tensor:
        """Cross-entropy, and the weighted squared error of the units where there are any."""
        config = self.encoder.config
        logits, read = self(images)
        smoothing = config.label_smoothing
        value = F.cross_entropy(logits, labels.to(logits.device), label_smoothing=smoothing)
        if read is not None:
            value = value + config.unit_weight * F.mse_loss(read, units.to(read.device))
        return value


def train_face_encoder(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains the step `face_encoder`; returns validation scores."""
    return _train("face_encoder", recipe, corpus, run)


def train_face_encoder_large(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains the step `face_encoder_large`; returns validation scores."""
    return _train("face_encoder_large", recipe, corpus, run)


def from_recipe(recipe: Recipe, step: str = "face_encoder") -> tuple[SavedFaceEncoder, FaceEncoder]:
    """The encoder that a recipe describes, as the pipeline runs it, at random weights.

    Of a checkpoint only config.json is read. Works on the meta device.

    Args:
        recipe: the recipe.
        step: `face_encoder` or `face_encoder_large`.

    Raises:
        InvalidInputError: sizes that do not fit each other, or the checkpoint's architecture.
        BundleError: a checkpoint that cannot be read.
    """
    config = resolved(getattr(recipe, step), hub=recipe.run.hub)
    p = recipe.preprocessing
    tiles = 1 if config.frames == "multi" else p.grid
    saved = SavedFaceEncoder(config, p.face_size * p.grid, tiles)
    return saved, saved.build()


def release(encoder: FaceEncoder) -> None:
    """Freezes what `tune`, `blocks` and `train_projector` do not name (Table 2, right).

    Raises:
        InvalidInputError: a range beyond the encoder's blocks.
    """
    config, blocks = encoder.config, encoder.blocks()
    if config.tune == "full":
        return
    encoder.requires_grad_(False)
    if config.blocks is not None:
        first, last = config.blocks
        if last >= len(blocks):
            raise InvalidInputError(
                f"blocks are [{first}, {last}]",
                f"numbers from 0 to {len(blocks) - 1}, since the encoder has {len(blocks)} blocks",
                "correct the recipe",
            )
        for block in blocks[first : last + 1]:
            block.requires_grad_(True)
    if config.train_projector and encoder.projector is not None:
        encoder.projector.requires_grad_(True)


def begin(
    encoder: FaceEncoder, recipe: Recipe, step: str, run: Path, faces: Callable[[], Tensor]
) -> str:
    """Gives an encoder its first weights and says where they come from.

    Args:
        encoder: changed in place.
        recipe: whose `[run]` says whether a hub may be asked.
        step: the encoder's, which names its pre-training.
        run: the run folder.
        faces: float32 [n, 3, s, s], normalised, to whiten patches with, if it comes to that.

    Raises:
        InvalidInputError: parts alone are to be trained, and the rest would stay random.
    """
    config, projector = encoder.config, False
    if step == "face_encoder" and start_encoder(encoder, run):
        origin = "face_pretraining"
    elif step == "face_encoder_large" and (found := load_pretrained(encoder, run)) is not None:
        origin, projector = PRETRAINING, found
    elif config.checkpoint:
        load_checkpoint(encoder, hub=recipe.run.hub)
        origin = config.checkpoint
    else:
        start_patches(encoder, faces())
        origin = WHITENED
    if config.tune == "parts":
        _refuse_random(config, origin, projector)
    return origin


def _refuse_random(config: FaceEncoderConfig, origin: str, projector: bool) -> None:
    """What stays frozen must have learnt something."""
    advice = "pre-train it in this run, give a checkpoint, or train more of it"
    if origin == WHITENED:
        found = "tune is 'parts', but the encoder starts from random weights"
        raise InvalidInputError(found, "a pre-trained encoder", advice)
    if config.projector and not projector and not config.train_projector:
        found = f"the projector is frozen, but {origin} has none, so that it starts at random"
        raise InvalidInputError(found, "train_projector = true, or projector = false", advice)


def _train(step: str, recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    config, p = resolved(getattr(recipe, step), hub=recipe.run.hub), recipe.preprocessing
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    folder, seed = run / step, stage_seed(recipe, step)
    torch.manual_seed(seed)
    sources = [Path(source) for source in config.sources]
    faces = FaceSets.read(corpus, sources).taught(config.classes)
    saved = SavedFaceEncoder(
        config, p.face_size * p.grid, 1 if config.frames == "multi" else p.grid
    )
    whole = not config.single_epochs and config.frames == "multi"  # no single faces to begin with
    encoder = FaceEncoder(config, saved.side if whole else p.face_size)
    model = FaceClassifier(encoder, len(faces.face_classes), faces.units)
    singles = faces.singles["train"].images[:WHITENING_FACES]
    origin = begin(encoder, recipe, step, run, lambda: normalised(singles, p))
    release(encoder)
    if origin == WHITENED and not config.single_epochs and not config.grid_epochs:
        raise InvalidInputError(
            f"[{step}] trains for no epoch and starts from random weights",
            "epochs, a checkpoint or a pre-training",
            "correct the recipe",
        )
    scores: dict[str, float] = {}
    if config.single_epochs:
        found = _teach_singles(model, faces, folder, seed, p)
        scores |= {f"single_{k}": v for k, v in found.items()}
    model = _grown(model, saved, faces, whole)
    if config.grid_epochs:
        found = _teach_clips(model, faces, folder, seed + 1, p)
        scores |= {f"grid_{k}": v for k, v in found.items()}
    _save(step, saved, model.encoder, run, {"scores": scores, "seed": seed, "start": origin})
    clear_checkpoints(folder)
    return scores


def _save(
    step: str, saved: SavedFaceEncoder, encoder: FaceEncoder, run: Path, facts: dict[str, object]
) -> None:
    head = " through the projector" if saved.encoder.projector else ""
    averaged = ", averaged over the tiles" if saved.tiles > 1 else ""
    card = {
        "step": step,
        **facts,
        "parameters": sum(w.numel() for w in encoder.parameters()),
        "trained": sum(w.numel() for w in encoder.parameters() if w.requires_grad),
        "feature": f"mean over the patch tokens of the last layer{head}{averaged}, "
        f"{saved.encoder.hidden} wide",
    }
    save_module(run, step, saved, encoder, card)


def _grown(
    single: FaceClassifier, saved: SavedFaceEncoder, faces: FaceSets, whole: bool
) -> FaceClassifier:
    """The reader of clips that starts as the trained reader of single faces: tile by tile the
    same positions, and of the head the classes that clips have.

    Args:
        single: the reader of single faces, or of whole grids.
        saved: what to build.
        faces: whose classes the two heads have.
        whole: whether `single` has the grid's side already.
    """
    units = single.units.out_features if single.units else 0
    grown = FaceClassifier(saved.build(), len(faces.classes), units)
    kept, fresh = numbers_of(faces.classes, faces.face_classes), grown.state_dict()
    state = single.state_dict()
    for name in ("classes.weight", "classes.bias"):
        rows = [state[name][n] if n >= 0 else fresh[name][i] for i, n in enumerate(kept)]
        state[name] = torch.stack(rows)
    if not whole and saved.tiles == 1:
        tiles = tile_positions(single.encoder.state_dict(), saved.side // single.encoder.side)
        state |= {f"encoder.{name}": value for name, value in tiles.items()}
    grown.load_state_dict(state)
    release(grown.encoder)
    return grown


def _teach_singles(
    model: FaceClassifier, faces: FaceSets, folder: Path, seed: int, p: Preprocessing
) -> dict[str, float]:
    """Classes of single faces; returns WAF and accuracy on `val`."""
    config = model.encoder.config
    train, val = faces.singles["train"], faces.singles["val"]
    schedule = _schedule(config, config.single_epochs, config.lr, seed)

    def loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        images = augment(normalised(train.images[indices], p)[:, None], p)[:, 0]
        assert isinstance(model, FaceClassifier)
        return model.loss(images, *train.targets(indices))

    def evaluate(model: nn.Module) -> dict[str, float]:
        predicted = _predict(model, val.images, lambda part: normalised(part, p))
        return _scores(val.labels, predicted, len(faces.face_classes))

    return fit(model, loss, len(train.labels), schedule, folder, name="single", evaluate=evaluate)


def _teach_clips(
    model: FaceClassifier, faces: FaceSets, folder: Path, seed: int, p: Preprocessing
) -> dict[str, float]:
    """Classes of clips on sequences and some repeated single faces; WAF and accuracy on `val`."""
    config = model.encoder.config
    train, val = _clips(faces, config, seed), faces.sequences["val"]
    schedule = _schedule(config, config.grid_epochs, config.grid_lr, seed)

    def loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        assert isinstance(model, FaceClassifier)
        images = train.images[indices]
        if config.frames == "single":  # one frame of each, another one each time
            frame = torch.randint(images.shape[1], (len(images),)).numpy()
            images = images[np.arange(len(images)), frame][:, None]
        seen = augment(normalised(images, p), p)
        return model.loss(
            seen[:, 0] if config.frames == "single" else tiled(seen, p.grid),
            *train.targets(indices),
        )

    def evaluate(model: nn.Module) -> dict[str, float]:
        predicted = _predict(model, val.images, lambda part: tiled(normalised(part, p), p.grid))
        return _scores(val.labels, predicted, len(faces.classes))

    return fit(model, loss, len(train.labels), schedule, folder, name="grid", evaluate=evaluate)


def _clips(faces: FaceSets, config: FaceEncoderConfig, seed: int) -> Samples:
    return faces.sequences["train"].joined(repeated(faces, config.grid_singles, seed))


def _schedule(config: FaceEncoderConfig, epochs: int, lr: float, seed: int) -> FitConfig:
    return FitConfig(
        epochs=epochs,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        lr=lr,
        weight_decay=config.weight_decay,
        label_smoothing=config.label_smoothing,
        seed=seed,
        optimizer=config.optimizer,
        momentum=config.momentum,
        bf16=config.bf16,
    )


def _predict(model: nn.Module, images: Images, to_input: Callable[[Images], Tensor]) -> Labels:
    parts = range(0, len(images), EVALUATION_BATCH)
    logits = [model(to_input(images[i : i + EVALUATION_BATCH]))[0] for i in parts]
    return torch.cat(logits).argmax(dim=1).cpu().numpy()


def _scores(truth: Labels, predicted: Labels, classes: int) -> dict[str, float]:
    return {"waf": waf(truth, predicted, classes), "accuracy": accuracy(truth, predicted)}
