"""The stages of a run, in the order in which one may build on another.

A stage is a function `(recipe, corpus, run) -> scores` and leaves `run/<stage>/card.json`. They
are named here by location, so that a command line can list them without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from merkit_training.recipe import Recipe

STAGES = {
    "tokenizer": "merkit_training.encoders.text.tokenizer:train",
    "face_pretraining": "merkit_training.encoders.vision.mae_train:train",
    "face_encoder": "merkit_training.encoders.vision.train:train_face_encoder",
    "face_large_pretraining": "merkit_training.encoders.vision.contrastive:train",
    "face_encoder_large": "merkit_training.encoders.vision.train:train_face_encoder_large",
    "text_pretraining": "merkit_training.encoders.text.train:pretrain",
    "text_encoder": "merkit_training.encoders.text.train:train",
    "audio_pretraining": "merkit_training.encoders.audio.pretrain:train",
    "audio_encoder": "merkit_training.encoders.audio.train:train",
    "tower_pretraining": "merkit_training.encoders.joint.pretrain:train",
    "joint_encoder": "merkit_training.encoders.joint.train:train",
    "recognizer": "merkit_training.speech.recognition.train:train",
    "language_model": "merkit_training.speech.language_model.stage:train",
    "punctuator": "merkit_training.speech.punctuation.train:train",
    "separator": "merkit_training.speech.separation.train:train",
    "features": "merkit_training.fusion.features:extract",
    "fusion": "merkit_training.fusion.stage:train",
}
"""`module:function` of each stage; a `*_pretraining` stands before the encoder it serves."""

SPEECH = ("recognizer", "punctuator", "separator")
"""The stages of hearing that train weights; the language model counts."""

CHAIN = ("recognizer", "language_model", "punctuator", "separator")
"""The stages that features of clips without words follow from: the chain writes them."""

BUILDS_ON = {
    "face_encoder": ("face_pretraining",),
    "face_encoder_large": ("face_large_pretraining",),
    "text_pretraining": ("tokenizer",),
    "text_encoder": ("tokenizer", "text_pretraining"),
    "audio_encoder": ("audio_pretraining",),
    "joint_encoder": ("tokenizer", "text_encoder", "tower_pretraining"),
    "language_model": ("recognizer",),
    "features": (
        "tokenizer", "face_encoder", "face_encoder_large", "text_encoder", "audio_encoder",
        "joint_encoder",
    ),
    "fusion": ("features",),
}  # fmt: skip
"""The stages that each one reads, where the run has them; see `builds_on`."""


def builds_on(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The stages that a stage reads, where the run has them."""
    names, joint = BUILDS_ON.get(stage, ()), recipe.joint_encoder
    if stage == "features" and recipe.hearing.cleans:
        return (*names, "recognizer", "language_model", "separator")
    if stage == "joint_encoder" and (joint.checkpoint or joint.llm_checkpoint or joint.llm):
        return tuple(name for name in names if name != "text_encoder")  # it has its own LLM
    return names


def tables_read(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The tables of the recipe that a stage reads beside its own: they must not change either."""
    trains = getattr(getattr(recipe, stage, None), "epochs", 0) > 0
    noisy = {"recognizer": recipe.recognizer.augment, "separator": recipe.separator.noise_share > 0}
    return ("noise",) if trains and noisy.get(stage) else ()


def is_asked(recipe: Recipe, stage: str) -> bool:
    """Whether the recipe wants the stage: pre-training of no epochs is left out, and so is what a
    table says of itself by `asked`."""
    table = getattr(recipe, stage, None)
    asked: bool | None = getattr(table, "asked", None)
    return (
        asked
        if asked is not None
        else not stage.endswith("_pretraining") or getattr(table, "epochs", 0) > 0
    )


def is_shared(stage: str) -> bool:
    """Whether all processes of a run take part in the stage; the others one does alone."""
    return "_encoder" in stage or stage.endswith("_pretraining") or stage in SPEECH


def stage_function(stage: str) -> Callable[..., dict[str, float]]:
    """The function of a stage; imports what the stage needs."""
    module, _, name = STAGES[stage].partition(":")
    function: Callable[..., dict[str, float]] = getattr(import_module(module), name)
    return function
