"""A recipe of the smallest sizes that the architectures admit, and its run at random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from merkit_training.encoders.audio.config import AudioConfig
from merkit_training.encoders.joint.config import JointConfig
from merkit_training.encoders.text.config import TextConfig
from merkit_training.encoders.vision.config import FaceEncoderConfig
from merkit_training.fusion.config import BranchConfig, FusionConfig
from merkit_training.labels import MER6 as LABELS
from merkit_training.recipe import RunConfig, recipe_from
from merkit_training.untrained import write_untrained_run

SMALLEST = replace(
    recipe_from({}),  # stages that it does not name keep their defaults
    run=RunConfig("random"),
    face_encoder=FaceEncoderConfig(hidden=32, layers=1, heads=2, patch=16),
    face_encoder_large=FaceEncoderConfig(
        architecture="internvit", hidden=40, layers=1, heads=2, patch=16
    ),
    audio_encoder=AudioConfig(
        conv_channels=(8,) * 3, hidden=24, layers=1, heads=2, intermediate=32
    ),
    text_encoder=TextConfig(vocabulary=300, hidden=16, layers=1, heads=2, intermediate=32),
    joint_encoder=JointConfig(hidden=16, layers=1, heads=2, intermediate=32),
    fusion=FusionConfig(branch=BranchConfig(hidden=16)),
)


def write_random_run(run: Path, labels: tuple[str, ...] = LABELS) -> Path:
    """Writes the run below `run`; the same weights each time, whatever the labels are called."""
    return write_untrained_run(SMALLEST, run, labels)
