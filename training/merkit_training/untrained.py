"""A run folder of a recipe's shapes at random weights, made without training.

Speed and export depend on shapes alone. To time a profile, or to try the exporter on the real
architectures and file formats, nobody should need a corpus and an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import nn

from merkit_training.encoders.audio import encoder as audio_encoder
from merkit_training.encoders.joint import start as joint_encoder
from merkit_training.encoders.text import encoder as text_encoder
from merkit_training.encoders.vision import train as vision
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.model import Fusion
from merkit_training.labels import MER6
from merkit_training.recipe import Recipe
from merkit_training.runs import save_step, write_json
from merkit_training.speech.hearing.untrained import write_untrained_chain

M = TypeVar("M", bound=nn.Module)


def write_untrained_run(recipe: Recipe, run: Path, labels: Sequence[str] = MER6) -> Path:
    """Writes a run below `run`; the same weights each time, whatever the labels are called."""
    write_json(run / "recipe.json", recipe.to_json())
    facts = {"name": recipe.run.name, "seed": recipe.run.seed, "data": None, "stages": {}}
    write_json(run / "run.json", facts)
    torch.manual_seed(recipe.run.seed)
    widths: dict[str, int] = {}
    for step, group in (("face_encoder", "v"), ("face_encoder_large", "V")):
        face, faces = vision.from_recipe(recipe, step)
        _save(run, step, face, faces)
        widths[group] = face.encoder.hidden
    audio, hearing = audio_encoder.from_recipe(recipe)
    _save(run, "audio_encoder", audio, hearing)
    text, reading = text_encoder.from_recipe(recipe)
    _save(run, "text_encoder", text, reading)
    joint, both = joint_encoder.from_recipe(recipe)
    _save(run, "joint_encoder", joint, both)
    widths |= {"a": audio.hidden, "t": text.hidden, "j": joint.llm.hidden}
    _save_fusion(recipe.fusion, widths, run, labels)
    write_untrained_chain(recipe, run, _shaken)
    _write_byte_tokenizer(run / "tokenizer" / "tokenizer.json")
    return run


def _save_fusion(
    config: FusionConfig, widths: dict[str, int], run: Path, labels: Sequence[str]
) -> None:
    branches, branch = config.branches(), config.branch
    fusion = _shaken(Fusion(branches, widths, len(labels), branch))
    fusion.temperatures.fill_(1.3)
    voters = [
        {"name": v.name, "groups": list(v.groups), "waf": 0.5 - i / 100, "temperature": 1.3}
        for i, v in enumerate(branches)
    ]
    facts = {"voters": voters, "labels": list(labels), "widths": widths, "branch": asdict(branch)}
    save_step(run, "fusion", facts, fusion.state_dict(), {"scores": {}})


def _save(run: Path, step: str, config: Any, module: nn.Module) -> None:
    save_step(run, step, asdict(config), _shaken(module).state_dict(), {"scores": {}})


def _shaken(module: M) -> M:
    """Weights away from their neutral start, so that a forgotten bias or scale shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def _write_byte_tokenizer(path: Path) -> None:
    """A tokeniser of bytes: no vocabulary to learn, and every text has ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
