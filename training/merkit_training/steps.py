"""Every ONNX step of the pipeline as a torch module, by name: what trains is what exports."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from torch import nn

from merkit.errors import InvalidInputError
from merkit_training.encoders.adopted import GRAPH, is_adopted
from merkit_training.encoders.adopted import load as load_adopted
from merkit_training.runs import MODEL
from merkit_training.speech.hearing.parts import ARPA

LOADERS = {
    "separate": "merkit_training.speech.hearing.modules:load_separate",
    "recognize": "merkit_training.speech.hearing.modules:load_recognize",
    "punctuate": "merkit_training.speech.hearing.modules:load_punctuate",
    "preprocess": "merkit_training.preprocess:load",
    "face_encoder": "merkit_training.encoders.vision.encoder:load",
    "face_encoder_large": "merkit_training.encoders.vision.encoder:load_large",
    "audio_encoder": "merkit_training.encoders.audio.encoder:load",
    "text_encoder": "merkit_training.encoders.text.encoder:load",
    "joint_encoder": "merkit_training.encoders.joint.encoder:load",
    "fusion": "merkit_training.fusion.model:load",
    "voting": "merkit_training.voting:load",
}
"""`module:function` of each step; the function takes the run folder."""


def load_step(run: Path, step: str) -> nn.Module:
    """The step of a finished run, in eval mode, without gradients.

    Raises:
        InvalidInputError: no such step.
        BundleNotFoundError: the step has not been trained in this run.
        BundleCorruptError: its files are damaged.
    """
    if step not in LOADERS:
        raise InvalidInputError(f"the step {step!r} is unknown", f"one of {', '.join(LOADERS)}")
    if is_adopted(run, step):
        return load_adopted(run, step).eval()
    module, _, function = LOADERS[step].partition(":")
    loaded: nn.Module = getattr(import_module(module), function)(run)
    return loaded.eval().requires_grad_(False)


def weight_files(run: Path) -> list[Path]:
    """Every file that holds what a stage of a run learnt, in order: trained, adopted or counted."""
    return sorted(path for name in (MODEL, GRAPH, ARPA) for path in run.glob(f"*/{name}"))
