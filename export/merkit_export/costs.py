"""What each step costs, in operations: what lazy voting orders voters by.

Times would differ between machines and between runs, and with them which voters are asked; counts
of floating-point operations are the same everywhere and follow from the shapes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from merkit.contract import Contract
from merkit_export import samples
from merkit_export.walk import Step, Values, torch_steps, walk
from merkit_training.encoders.audio import encoder as audio
from merkit_training.encoders.joint import start as joint
from merkit_training.encoders.text import encoder as text
from merkit_training.encoders.vision import train as vision
from merkit_training.recipe import TABLES, Recipe
from merkit_training.speech.hearing.modules import Recognize
from merkit_training.speech.hearing.untrained import chain_modules
from merkit_training.speech.recognition.model import Recognizer
from merkit_training.stages import SPEECH

SECONDS, WORDS = 5.0, 12
"""Of the clip that is counted: a sentence, as MER's clips are."""
TOKENS, PROMPT = 20, 20
"""Of its text, and around it for the joint model, where there is no vocabulary to ask."""
HEARING_STEPS = ("separate", "recognize", "punctuate")
"""ONNX steps that have nothing to do where the caller gives the words."""


def operations(
    contract: Contract, modules: Mapping[str, nn.Module], python: Mapping[str, Step]
) -> dict[str, int]:
    """Floating-point operations of matrix products and convolutions, by ONNX step, for one clip
    of all modalities; those of the chain in front, for the same clip without its words.

    Args:
        contract: the pipeline.
        modules: its ONNX steps in torch.
        python: its python steps behind decoding.
    """
    p = contract.preprocessing
    clip = samples.clip(p, p.frames_per_clip, min(SECONDS, p.max_audio_seconds), WORDS)
    counts: dict[str, int] = {}

    def counted(name: str, step: Step) -> Step:
        def run(values: Mapping[str, object]) -> Values:
            with _attention_by_products(), FlopCounterMode(display=False) as counter:
                made = step(values)  # type: ignore[arg-type]
            counts[name] = int(counter.get_total_flops())
            return made

        return run

    steps = {name: counted(name, step) for name, step in torch_steps(contract, modules).items()}
    if contract.hearing is not None:
        walk(contract, {**steps, **python}, samples.unworded([clip])[0])
    heard = {name: count for name, count in counts.items() if name in HEARING_STEPS}
    walk(contract, {**steps, **python}, clip)
    return counts | heard


def recipe_operations(recipe: Recipe) -> dict[str, int]:
    """The same of a recipe's encoders and chain, from their shapes: no weights, no memory for any.

    What its checkpoints would say of their own shapes is not asked; the recipe's tables are.
    """
    for name in TABLES.keys() - SPEECH:  # of these a checkpoint says that they are asked for
        table = getattr(recipe, name)
        named = {key: "" for key in vars(table) if key.endswith("checkpoint")}
        recipe = replace(recipe, **{name: replace(table, **named)})
    p = recipe.preprocessing
    with torch.device("meta"):
        side, samples_ = p.face_size * p.grid, round(SECONDS * p.sample_rate)
        image = torch.empty(1, 3, side, side)
        sound, length = torch.empty(1, samples_), torch.ones(1, 1, dtype=torch.int64)
        ids = torch.ones(1, TOKENS + PROMPT, dtype=torch.int64)
        mel = torch.empty(1, p.mel_bins, round(p.joint_window_seconds * 100))
        presence = torch.ones(1, 3, dtype=torch.bool)
        steps: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
            "face_encoder": (vision.from_recipe(recipe)[1], (image,)),
            "face_encoder_large": (vision.from_recipe(recipe, "face_encoder_large")[1], (image,)),
            "audio_encoder": (audio.from_recipe(recipe)[1], (sound, length)),
            "text_encoder": (text.from_recipe(recipe)[1], (ids[:, :TOKENS], length)),
            "joint_encoder": (joint.from_recipe(recipe)[1], (mel, ids, length, presence)),
        }
        speech, ids = torch.empty(1, samples_), ids[:, :WORDS]
        for name, module in chain_modules(recipe).items():
            if isinstance(module, Recognize):
                module = Heard(module.recognizer)
                speech = speech.expand(3 if "separate" in steps else 1, -1)  # with two sources
            steps[name] = module, (ids if name == "punctuate" else speech, length)
        return {name: _counted(module, given) for name, (module, given) in steps.items()}


class Heard(nn.Module):
    """A recogniser that makes room for `TOKENS` tokens: how many there are, no shape can say."""

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(self, waves: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Scores [sounds, TOKENS, vocabulary] of float32 [sounds, samples]."""
        model = self.recognizer.model
        inputs, counts = self.recognizer.frontend(waves, length.expand(len(waves), 1)[:, 0])
        heard, valid = model.encode(inputs, counts)
        scores: torch.Tensor = model.decoder(heard[:, :TOKENS], valid[:, :TOKENS], heard, valid)
        return scores


def _attention_by_products() -> AbstractContextManager[None]:
    """Fused attention is not counted on a CPU; its matrix products are."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


def _counted(module: nn.Module, given: tuple[Any, ...]) -> int:
    with _attention_by_products(), FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(*given)
    return int(counter.get_total_flops())
