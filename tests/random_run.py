"""A run folder with every step of the pipeline at random weights, made without training.

The exporter must be tried on the real architectures and the real file formats; that needs
neither a corpus nor an hour. Sizes are the smallest that the architectures admit.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import nn

from merkit.contract import Preprocessing
from merkit.pipeline import SEED_VOTERS
from merkit_training.encoders.audio import AudioEncoder
from merkit_training.encoders.joint import JointEncoder, JointSizes
from merkit_training.encoders.sound_config import AudioConfig, JointConfig, TextConfig
from merkit_training.encoders.text import TextEncoder
from merkit_training.encoders.vision import FaceEncoder, SavedFaceEncoder
from merkit_training.encoders.vision_config import FaceEncoderConfig
from merkit_training.fusion.config import BranchConfig
from merkit_training.fusion.model import Fusion
from merkit_training.runs import save_step, write_json

LABELS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
TEXT = TextConfig(vocabulary=300, hidden=16, layers=1, heads=2, intermediate=32)
AUDIO = AudioConfig(conv_channels=(8,) * 7, hidden=24, layers=1, heads=2, intermediate=32)
JOINT = JointConfig(hidden=16, layers=1, heads=2, intermediate=32)
FACE = FaceEncoderConfig(hidden=32, layers=1, heads=2, patch=16)
LARGE = FaceEncoderConfig(architecture="internvit", hidden=40, layers=1, heads=2, patch=16)
M = TypeVar("M", bound=nn.Module)
WIDTHS = {"a": 24, "t": 16, "v": 32, "j": 16, "V": 40}


def write_random_run(
    run: Path, labels: tuple[str, ...] = LABELS, preprocessing: Preprocessing | None = None
) -> Path:
    """Writes a run below `run`; the same weights each time, whatever the labels are called."""
    p = preprocessing or Preprocessing()
    recipe = {"run": {"name": "random", "seed": 0}, "preprocessing": asdict(p)}
    write_json(run / "recipe.json", recipe)
    write_json(run / "run.json", {"name": "random", "seed": 0, "data": None, "stages": {}})
    side = p.face_size * p.grid
    torch.manual_seed(0)
    for step, face in (("face_encoder", FACE), ("face_encoder_large", LARGE)):
        _save(run, step, SavedFaceEncoder(face, side), FaceEncoder(face, side))
    sizes = JointSizes.of(JOINT, TEXT, p)
    _save(run, "audio_encoder", AUDIO, AudioEncoder(AUDIO))
    _save(run, "text_encoder", TEXT, TextEncoder(TEXT))
    _save(run, "joint_encoder", sizes, JointEncoder(sizes))
    fusion = _shaken(Fusion(SEED_VOTERS, WIDTHS, len(labels), BranchConfig(hidden=16)))
    fusion.temperatures.fill_(1.3)
    voters = [
        {"name": v.name, "groups": list(v.groups), "waf": 0.5 - i / 100, "temperature": 1.3}
        for i, v in enumerate(SEED_VOTERS)
    ]
    facts = {"voters": voters, "labels": list(labels), "widths": WIDTHS}
    facts["branch"] = asdict(BranchConfig(hidden=16))
    save_step(run, "fusion", facts, fusion.state_dict(), {"scores": {"waf": 0.5}})
    _tokenizer(run / "tokenizer" / "tokenizer.json")
    return run


def _save(run: Path, step: str, config: Any, module: nn.Module) -> None:
    save_step(run, step, asdict(config), _shaken(module).state_dict(), {"scores": {}})


def _shaken(module: M) -> M:
    """Weights away from their neutral start, so that a forgotten bias or scale shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def _tokenizer(path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
