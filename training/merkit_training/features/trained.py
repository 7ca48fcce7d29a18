"""A step of a trained run as an encoder of any clips.

The features must be those that the run's bundle will compute, so clips go through the run's own
`preprocess` and tokeniser into the very module that is exported. MER's tools also want features
over time (`-FRA`), which no exported step gives: faces are read one by one, and of sound and
words the layers are taken before they are averaged over time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit.bundle import sha256_file
from merkit.contract import MODALITIES, Preprocessing
from merkit.errors import InvalidInputError
from merkit.pipeline import GROUPS, standard_contract
from merkit.steps import Tokenize
from merkit.steps.base import column, padded
from merkit_training.encoders.adopted import ADOPTED, GRAPH, is_adopted
from merkit_training.features.extractor import EncoderSpec, Extractor, Feature
from merkit_training.features.material import Material
from merkit_training.labels import MER6
from merkit_training.runs import CONFIG, MODEL, read_json
from merkit_training.settings import from_table
from merkit_training.speech.hearing.ears import Ears
from merkit_training.speech.hearing.parts import (
    LANGUAGE_MODEL,
    PUNCTUATOR,
    RECOGNIZER,
    SEPARATOR,
    holds,
)
from merkit_training.steps import load_step

ENCODERS = ("face_encoder", "face_encoder_large", "audio_encoder", "text_encoder", "joint_encoder")


class TrainedStep(Extractor):
    """An encoder of a run; its weights stay as they were saved.

    Raises:
        InvalidInputError: a step that is no encoder.
        BundleNotFoundError, BundleCorruptError: the run lacks the step, or it is damaged.
    """

    def __init__(self, run: Path, step: str, spec: EncoderSpec) -> None:
        if step not in ENCODERS:
            raise InvalidInputError(
                f"{step!r} is no encoder of a run", f"one of {', '.join(ENCODERS)}", "correct it"
            )
        if spec.layers != "mean" or spec.pictures or spec.kind is not None:
            raise InvalidInputError(
                "--layers, --pictures or --as was given with a step of a run",
                "a step as it was trained, on faces; its recipe says which layers (pool_layers)",
                "leave the option out",
            )
        table = read_json(run / "recipe.json").get("preprocessing", {})
        p = from_table(Preprocessing, table, "recipe.json [preprocessing]")
        self.preprocessing = replace(p, frames_per_clip=spec.images or p.frames_per_clip)
        self.step, self.spec = step, spec
        self.device = torch.device(spec.device)
        contract = standard_contract(MER6, dict.fromkeys(GROUPS, 1), self.preprocessing)
        self.inputs = contract.step(step).inputs
        self.made = contract.step("preprocess").outputs
        self.reads = frozenset(contract.step(step).needs)
        self.preprocess: Any = load_step(run, "preprocess").to(self.device)
        hears = {
            "audio_encoder": self.preprocess.audio_hears,
            "joint_encoder": self.preprocess.joint_hears,
        }
        writes = "text" in self.reads
        self.ears = Ears.of(run, self.preprocessing, writes, hears.get(step) == "cleaned")
        self.hears = writes and self.ears is not None
        self.module = load_step(run, step).to(self.device)
        self.tokenize = Tokenize(contract, run / "tokenizer") if "text" in self.reads else None
        self.name = f"{run.resolve().name}-{step}"
        mark = _identity(run, step, "text" in self.reads, self.ears is not None)
        self.identity = f"{mark} bf16={spec.bf16}"
        nothing = Material(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.float32), "", ())
        self.width = int(self._run([nothing])[0].shape[-1])

    def length(self, material: Material) -> int:
        """Samples and letters; faces make a grid of one size."""
        if "video" in self.reads:
            return 1
        heard = len(material.waveform) if self.step == "audio_encoder" else 0
        return heard + len(material.text)

    def encode(self, materials: Sequence[Material], frames: bool) -> list[Feature | None]:
        """See Extractor."""
        features, tensors = self._run(materials)
        needed = [MODALITIES.index(name) for name in sorted(self.reads)]
        there = tensors["presence"][:, needed].any(dim=1).tolist()
        utterances = _array(features)
        over_time = self._over_time(materials, tensors) if frames else [None] * len(materials)
        return [
            Feature(utterance, series) if found else None
            for utterance, series, found in zip(utterances, over_time, there, strict=True)
        ]

    @torch.inference_mode()
    def _run(self, materials: Sequence[Material]) -> tuple[Tensor, dict[str, Tensor]]:
        """The step's output for a batch, and every tensor on the way to it."""
        tensors = {name: value.to(self.device) for name, value in self._raw(materials).items()}
        raw = ("face_crops", "face_count", "waveform", "waveform_length", "text_length", "cleaned")
        made = self.preprocess(*(tensors.get(name) for name in raw))
        tensors |= dict(zip(self.made, made, strict=True))
        with self._precision():
            features: Tensor = self.module(*(tensors[name] for name in self.inputs))
        return features.float(), tensors

    def _raw(self, materials: Sequence[Material]) -> dict[str, Tensor]:
        side = self.preprocessing.face_size
        no_face = np.zeros((0, side, side, 3), np.uint8)
        crops = [m.images if len(m.images) else no_face for m in materials]
        waves = [m.waveform for m in materials]
        arrays: dict[str, NDArray[Any]] = {
            "face_crops": padded(crops),
            "face_count": column([len(c) for c in crops]),
            "waveform": padded(waves),
            "waveform_length": column([len(w) for w in waves]),
            "text_length": column([0] * len(materials)),
        }
        texts, cleaned = [m.text for m in materials], None
        if self.ears is not None:
            wave, length = (torch.from_numpy(arrays[n]) for n in ("waveform", "waveform_length"))
            texts, cleaned = self.ears(wave, length, texts)
        if self.tokenize is not None:
            words = np.array([[text] for text in texts], dtype=np.object_)
            arrays |= self.tokenize({"text": words})
        made = {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}
        return made if cleaned is None else made | {"cleaned": cleaned}

    @torch.inference_mode()
    def _over_time(
        self, materials: Sequence[Material], tensors: dict[str, Tensor]
    ) -> list[NDArray[np.float32] | None]:
        if "video" in self.reads:
            return [self._each_face(m) if len(m.images) else None for m in materials]
        given = [tensors[name] for name in self.inputs]
        encoder: Any = self.module
        with self._precision():
            together, mask = encoder.frames(*given)
        kept = zip(_array(together.float()), mask.cpu().numpy(), strict=True)
        return [series[m] for series, m in kept]

    def _each_face(self, material: Material) -> NDArray[np.float32]:
        """[faces, width]: each face as if it were the clip's only one."""
        single = [replace(material, images=image[None]) for image in material.images]
        return np.asarray(self._run(single)[0].cpu().numpy(), np.float32)

    def _precision(self) -> Any:
        if not self.spec.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def _identity(run: Path, step: str, words: bool, hears: bool) -> str:
    """A hash of the weights, their configuration and, where it reads words, the tokeniser; where
    the run's chain comes before it, of that, too."""
    names = (ADOPTED, GRAPH) if is_adopted(run, step) else (CONFIG, MODEL)
    files = [run / step / name for name in names]
    folders = [run / "tokenizer"] if words else []
    if hears:
        parts = (RECOGNIZER, SEPARATOR, LANGUAGE_MODEL, PUNCTUATOR)
        folders += [run / part for part in parts if holds(run, part)]
        step += repr(read_json(run / "recipe.json").get("hearing", {}))
    for folder in folders:
        files += sorted(path for path in folder.iterdir() if path.is_file())
    told = "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
    return hashlib.sha256(f"{step}\n{told}".encode()).hexdigest()


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.cpu().numpy(), np.float32)
