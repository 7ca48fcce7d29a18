"""The stage `face_large_pretraining`: images and captions into one space (CLIP, Radford 2021).

The seed trains nothing but the projector of InternViT-6B, and that beats training its blocks or
all of it (Table 2). With random weights the comparison would only show that random weights read
nothing. So the large encoder can first be pre-trained as InternViT was, on images with words.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training import processes
from merkit_training.corpus import open_set
from merkit_training.encoders.store import load_module, save_module
from merkit_training.encoders.vision.augment import augment
from merkit_training.encoders.vision.captions import PAD, Captions, read_captions
from merkit_training.encoders.vision.config import ContrastiveConfig, FaceEncoderConfig
from merkit_training.encoders.vision.encoder import (
    EVALUATION_BATCH,
    POSITIONS,
    FaceEncoder,
    SavedFaceEncoder,
    normalised,
    start_patches,
)
from merkit_training.encoders.vision.layouts import load_checkpoint, resolved
from merkit_training.encoders.vision.mae import resized_positions
from merkit_training.fit import FitConfig, clear_checkpoints, fit
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, stage_seed

STAGE = "face_large_pretraining"
WHITENING_FACES = 3_000
MOST_SCALE = 100.0  # the largest 1 / temperature, as in CLIP
SIZES = (
    "architecture", "hidden", "layers", "heads", "patch", "intermediate", "norm_eps", "rms_norm",
    "qk_norm", "qkv_bias",
)  # fmt: skip


class TextTower(nn.Module):
    """A small transformer over the words of a caption."""

    def __init__(self, config: ContrastiveConfig, vocabulary: int) -> None:
        super().__init__()
        hidden = config.text_hidden
        self.words = nn.Embedding(vocabulary, hidden, padding_idx=PAD)
        self.positions = nn.Parameter(0.02 * torch.randn(1, config.max_words, hidden))
        layer = nn.TransformerEncoderLayer(
            hidden, config.text_heads, 4 * hidden, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.text_layers, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, config.width, bias=False))

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [b, max_words], right padded -> [b, width]."""
        empty = ids == PAD
        tokens = self.layers(self.words(ids) + self.positions, src_key_padding_mask=empty)
        weight = (~empty).unsqueeze(-1).to(tokens.dtype)
        pooled: Tensor = (tokens * weight).sum(1) / weight.sum(1)
        out: Tensor = self.out(pooled)
        return out


class ImageText(nn.Module):
    """The face encoder and the text tower, each ending in the shared space."""

    def __init__(self, encoder: FaceEncoder, config: ContrastiveConfig, vocabulary: int) -> None:
        super().__init__()
        self.encoder = encoder
        hidden = encoder.config.hidden
        self.image = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, config.width, False))
        self.text = TextTower(config, vocabulary)
        self.scale = nn.Parameter(torch.tensor(1 / config.temperature).log())

    def embed_images(self, images: Tensor) -> Tensor:
        """Normalised images -> unit vectors [b, width]."""
        embedded: Tensor = self.image(self.encoder(images.to(self.scale.device)))
        return F.normalize(embedded.float(), dim=-1)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Word numbers -> unit vectors [b, width]."""
        return F.normalize(self.text(ids.to(self.scale.device)).float(), dim=-1)

    def inverse_temperature(self) -> Tensor:
        """What cosines are multiplied with."""
        return self.scale.exp().clamp(max=MOST_SCALE)

    def loss(self, images: Tensor, ids: Tensor, facts: Tensor) -> Tensor:
        """Cross-entropy of images among captions and of captions among images; pairs of which the
        same is told (`facts` [b]) share the truth. Over all processes' samples together."""
        faces, words = gathered(self.embed_images(images)), gathered(self.embed_texts(ids))
        told = gathered(facts.to(faces.device))
        same = (told[:, None] == told[None]).float()
        truth = same / same.sum(1, keepdim=True)  # symmetric in facts: serves both directions
        logits = self.inverse_temperature() * faces @ words.T
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def gathered(part: Tensor) -> Tensor:
    """This process's rows and all others', in order of process; without others, the rows.

    Each process computes the whole loss, and the gradient of its own rows alone reaches it; so
    these rows' gradient counts once for each process, before DDP takes the mean over them.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return part
    count, rank = dist.get_world_size(), dist.get_rank()
    parts = [torch.empty_like(part) for _ in range(count)]
    dist.all_gather(parts, part.detach())
    if part.requires_grad:
        parts[rank] = count * part - (count - 1) * part.detach()
    return torch.cat(parts)


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Pre-trains the transformer (and projector) of [face_encoder_large] on single faces.

    Returns:
        `probability`: the geometric mean of what validation faces give their own caption among
        all different ones; `recall` and `recall_5`: how often that is the nearest, or among the
        nearest five; `captions`: how many there are; `temperature`; and what `fit` returns.

    Raises:
        InvalidInputError: no faces, nothing to tell of them, or sizes that do not fit.
    """
    config, p = recipe.face_large_pretraining, recipe.preprocessing
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    folder, seed = run / STAGE, stage_seed(recipe, STAGE)
    torch.manual_seed(seed)
    images = open_set(corpus, "faces")["images"]
    told, judged = (read_captions(corpus, s, config.captions) for s in ("train", "val"))
    vocabulary = told.vocabulary()
    _check_shares(min(config.batch_size, len(told)))
    sizes = resolved(recipe.face_encoder_large, hub=recipe.run.hub)
    sizes = replace(sizes, recompute=config.recompute)
    encoder = FaceEncoder(sizes, p.face_size)
    model = ImageText(encoder, config, len(vocabulary))
    if sizes.checkpoint:
        load_checkpoint(encoder, hub=recipe.run.hub)
    else:
        start_patches(encoder, normalised(images[told.rows[:WHITENING_FACES]], p))

    def loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        assert isinstance(model, ImageText)
        choice = len(told.texts) if config.wordings else 1
        wordings = torch.randint(choice, (len(indices),)).numpy()
        seen = augment(normalised(images[told.rows[indices]], p)[:, None], p)[:, 0]
        ids = told.ids(vocabulary, indices, wordings, config.max_words)
        return model.loss(seen, torch.from_numpy(ids), torch.from_numpy(told.facts[indices]))

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, ImageText)
        return _recall(model, images, judged, vocabulary, config, p)

    schedule = FitConfig(
        epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, seed=seed,
        weight_decay=config.weight_decay, bf16=config.bf16,
    )  # fmt: skip
    scores = fit(model, loss, len(told), schedule, folder, name="contrastive", evaluate=evaluate)
    scores["temperature"] = float(1 / model.inverse_temperature().detach())
    card = {"step": STAGE, "scores": scores, "seed": seed, "words": vocabulary}
    save_module(run, STAGE, SavedFaceEncoder(sizes, p.face_size), encoder, card)
    clear_checkpoints(folder)
    return scores


def load_pretrained(encoder: FaceEncoder, run: Path) -> bool | None:
    """Starts a face encoder from what this stage learnt; positions of another side are resized.

    Returns:
        None where the run has no such pre-training; else whether the projector, too, is now
        pre-trained.

    Raises:
        InvalidInputError: the pre-trained encoder has other sizes, by name.
        BundleCorruptError: its files are damaged.
    """
    if not (run / STAGE / CARD).is_file():
        return None
    found = load_module(run, STAGE, SavedFaceEncoder, SavedFaceEncoder.build)
    _check_sizes(found.config, encoder.config, run / STAGE)
    state = found.backbone.state_dict()
    count = encoder.backbone.get_parameter(POSITIONS).shape[1]
    state[POSITIONS] = resized_positions(state[POSITIONS], count)
    encoder.backbone.load_state_dict(state)
    if encoder.projector is None or found.projector is None:
        return False
    encoder.projector.load_state_dict(found.projector.state_dict())
    return True


def _check_sizes(found: FaceEncoderConfig, asked: FaceEncoderConfig, folder: Path) -> None:
    for key in SIZES:
        if getattr(found, key) != getattr(asked, key):
            raise InvalidInputError(
                f"{folder} was pre-trained with {key} = {getattr(found, key)!r}",
                f"{getattr(asked, key)!r}, as [face_encoder_large] says",
                "correct the recipe, or remove the folder to pre-train again",
            )


def _check_shares(batch: int) -> None:
    """Refuses a batch that processes cannot share equally: each gathers the others' part."""
    if batch % processes.count():
        raise InvalidInputError(
            f"a batch of {batch} faces is to be shared by {processes.count()} processes",
            "a multiple of the number of processes",
            "correct batch_size in [face_large_pretraining]",
        )


def _recall(
    model: ImageText,
    images: NDArray[np.uint8],
    judged: Captions,
    vocabulary: tuple[str, ...],
    config: ContrastiveConfig,
    p: Preprocessing,
) -> dict[str, float]:
    """How near each face is to its own caption among all different ones, in the first wording."""
    facts, first = np.unique(judged.facts, return_index=True)
    ids = judged.ids(vocabulary, first, np.zeros_like(first), config.max_words)
    words = model.embed_texts(torch.from_numpy(ids))
    parts = [
        model.embed_images(normalised(images[judged.rows[i : i + EVALUATION_BATCH]], p)) @ words.T
        for i in range(0, len(judged), EVALUATION_BATCH)
    ]
    logits = torch.cat(parts).cpu() * model.inverse_temperature().cpu()
    truth = torch.from_numpy(np.searchsorted(facts, judged.facts))
    hits = logits.topk(min(5, len(facts)), dim=1).indices == truth[:, None]
    return {
        "probability": float((-F.cross_entropy(logits, truth)).exp()),
        "recall": float(hits[:, 0].float().mean()),
        "recall_5": float(hits.any(1).float().mean()),
        "captions": float(len(facts)),
    }
