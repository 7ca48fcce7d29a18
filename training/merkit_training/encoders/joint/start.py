"""Where a joint encoder begins: shapes from recipe or checkpoints, weights from what there is.

The seed starts from Qwen-Audio, a laptop from the run's own text encoder, others from a Whisper
and a language model of their choice. All end in the same module, whose saved configuration needs
none of these sources again.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.checkpoints import open_checkpoint
from merkit_training.encoders.joint import published
from merkit_training.encoders.joint.config import JointConfig, JointSizes
from merkit_training.encoders.joint.encoder import JointEncoder
from merkit_training.encoders.text import encoder as text_encoder
from merkit_training.encoders.text.config import TextConfig
from merkit_training.encoders.text.weights import decoder_sizes, fill_decoder
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, CONFIG, load_step_files, read_json
from merkit_training.settings import from_table

PRETRAINING = "tower_pretraining"


def from_recipe(
    recipe: Recipe, *, text: TextConfig | None = None, audio_at: int = 0
) -> tuple[JointSizes, JointEncoder]:
    """The encoder at random weights; works on the meta device. Arguments as of `sizes_from`."""
    sizes = sizes_from(recipe, text=text, audio_at=audio_at)
    return sizes, JointEncoder(sizes)


def sizes_from(recipe: Recipe, *, text: TextConfig | None = None, audio_at: int = 0) -> JointSizes:
    """The encoder's sizes.

    Args:
        recipe: checkpoints that it names are read for their sizes.
        text: the run's text encoder, where one is trained already.
        audio_at: tokens of the prompt that stand before the sound.

    Raises:
        InvalidInputError: a checkpoint that does not fit the recipe.
        BundleNotFoundError: a checkpoint that is not there.
    """
    joint, p, hub = recipe.joint_encoder, recipe.preprocessing, recipe.run.hub
    if joint.checkpoint:
        joint = published.joint_sizes(joint, open_checkpoint(joint.checkpoint, hub=hub), p)
    if joint.tower_checkpoint:
        joint = published.tower_sizes(joint, open_checkpoint(joint.tower_checkpoint, hub=hub), p)
    if joint.llm_checkpoint:
        joint = replace(joint, llm=decoder_sizes(open_checkpoint(joint.llm_checkpoint, hub=hub)))
    if joint.markers and re.search(r"<audio>\s*\{audio}|\{audio}\s*</audio>", p.prompt):
        raise InvalidInputError(
            f"the prompt {p.prompt!r} puts <audio> beside a sound that has markers of its own",
            "{audio} alone: the model was published with its markers in place of these tokens",
            "leave <audio> and </audio> out of the prompt in [preprocessing]",
        )
    if text is None and recipe.text_encoder.checkpoint and not joint.llm:
        found = open_checkpoint(recipe.text_encoder.checkpoint, hub=hub)
        text = recipe.text_encoder.sized_as(decoder_sizes(found))
    sizes = JointSizes.of(joint, text or recipe.text_encoder, p)
    if sizes.mel_frames // 2 < joint.frames_per_embedding:
        raise InvalidInputError(
            f"a window of {p.joint_window_seconds:g} s gives no audio embedding of"
            f" {joint.frames_per_embedding} frames",
            "a longer window or fewer frames_per_embedding",
        )
    return replace(sizes, audio_at=audio_at)


def started(recipe: Recipe, run: Path, audio_at: int) -> tuple[JointSizes, JointEncoder]:
    """The encoder at the weights that training starts from.

    A joint checkpoint fills all. Else the tower comes from the stage tower_pretraining or a
    Whisper, the LLM from its checkpoint or the run's text encoder; what has no source is random.
    """
    joint, hub = recipe.joint_encoder, recipe.run.hub
    own_llm = not (joint.checkpoint or joint.llm_checkpoint or joint.llm)
    text, weights = None, None
    if own_llm:
        weights = text_encoder.load(run).decoder.state_dict()
        text = saved_text(run)
    sizes, model = from_recipe(recipe, text=text, audio_at=audio_at)
    if joint.checkpoint:
        published.load_joint(model, open_checkpoint(joint.checkpoint, hub=hub))
    if joint.tower_checkpoint:
        published.load_tower(model.tower, open_checkpoint(joint.tower_checkpoint, hub=hub))
    if joint.llm_checkpoint:
        fill_decoder(model.decoder, open_checkpoint(joint.llm_checkpoint, hub=hub))
    if weights is not None:
        model.decoder.load_state_dict(weights)
    if not joint.checkpoint and (run / PRETRAINING / CARD).exists():
        load_pretrained_tower(model, run)
    return sizes, model


def saved_text(run: Path) -> TextConfig:
    """The configuration that the run's text encoder was trained with."""
    path = run / text_encoder.STEP / CONFIG
    return from_table(TextConfig, read_json(path), str(path))


def load_pretrained_tower(model: JointEncoder, run: Path) -> None:
    """Weights of the stage tower_pretraining into the tower.

    Raises:
        BundleCorruptError: they are of other sizes.
    """
    _, weights = load_step_files(run, PRETRAINING)
    mark = "tower."
    own = {k.removeprefix(mark): v for k, v in weights.items() if k.startswith(mark)}
    try:
        with torch.no_grad():
            model.tower.load_state_dict(own)
    except RuntimeError as error:
        raise BundleCorruptError(
            f"{run / PRETRAINING} does not fit the joint encoder's tower ({error})",
            "the sizes that [joint_encoder] states now",
            f"remove {run / PRETRAINING} to pre-train again",
        ) from None


def describe(joint: JointConfig) -> str:
    """Where the weights began, for a card."""
    if joint.checkpoint:
        return joint.checkpoint
    tower = joint.tower_checkpoint or "own tower"
    return f"{tower} and {joint.llm_checkpoint or ('random LLM' if joint.llm else 'text encoder')}"
