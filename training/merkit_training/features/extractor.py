"""What every encoder looks like to extraction, whether trained here or published.

Batching, caching, sharding and reports are written once against this; an encoder only says what
it reads, how long a clip is to it, and what it makes of a batch.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing, canonical
from merkit.errors import InvalidInputError
from merkit_training.data import ClipRecord
from merkit_training.features.material import Material

Kind = Literal["vision", "video", "audio", "text"]
Layers = Literal["mean", "sum"]


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder, in words that any process can build it from."""

    source: str  # RUN:step of a trained run, a checkpoint's folder, or a hub's id
    kind: Kind | None = None  # of a checkpoint; None: what its config.json says
    hub: bool = False  # whether an id that is no folder may be fetched
    pictures: bool = False  # published vision encoders see whole pictures in place of faces
    images: int | None = None  # faces or pictures of a clip; None: the encoder's own number
    layers: Layers = "mean"  # of the last four; MERTools sums them
    device: str = "cpu"  # of torch; "cuda" takes the process's own
    bf16: bool = False  # computes under bfloat16 autocast
    threads: int = 1  # of torch, in each process; a file's last bits depend on it


@dataclass(frozen=True)
class Feature:
    """What an encoder makes of one clip."""

    utterance: NDArray[np.float32]  # [width]
    frames: NDArray[np.float32] | None = None  # [time, width], where asked for


class Extractor(ABC):
    """An encoder ready to read clips.

    Attributes:
        name: how its folders are called unless the user says otherwise.
        identity: a hash of its weights and of all else about it that changes a feature.
        width: numbers in a feature.
        reads: modalities it looks at; a clip with none of them has no feature.
        hears: whether it finds the words of a clip without any in its sound.
        pictures: whether it sees whole pictures in place of faces.
        padding: the greatest share of a batch that may be padding; 0 where padding would change
            features.
        preprocessing: how clips are decoded for it.
    """

    name: str
    identity: str
    width: int
    reads: frozenset[str]
    hears: bool = False
    pictures: bool = False
    padding: float = 0.25
    preprocessing: Preprocessing

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with the encoder, or with how clips are decoded."""
        told = (self.identity, self.pictures, asdict(self.preprocessing))
        return hashlib.sha256(canonical(told)).hexdigest()

    def reads_of(self, clip: ClipRecord) -> frozenset[str]:
        """What it looks at of a clip: where words are missing that it can hear, the sound, too."""
        wordless = self.hears and clip.path is not None and not clip.text.strip()
        return self.reads | {"audio"} if wordless else self.reads

    @abstractmethod
    def length(self, material: Material) -> int:
        """What the clip measures in a batch: samples, tokens or images."""

    @abstractmethod
    def encode(self, materials: Sequence[Material], frames: bool) -> list[Feature | None]:
        """Features of a batch; None for a clip that turns out to hold nothing to read."""


def make_extractor(spec: EncoderSpec) -> Extractor:
    """Builds the encoder.

    Raises:
        InvalidInputError: an unknown step, an unsupported kind of model, or no such device.
        BundleNotFoundError: no such run or checkpoint.
        BundleCorruptError: damaged files.
    """
    import torch

    torch.set_num_threads(spec.threads)
    if spec.device == "cuda":
        spec = replace(spec, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    _refuse_unusable(spec.device)
    run, _, step = spec.source.rpartition(":")
    if run and (Path(run) / "recipe.json").is_file():
        from merkit_training.features.trained import TrainedStep

        return TrainedStep(Path(run), step, spec)
    from merkit_training.encoders.baselines import make_baseline

    return make_baseline(spec)


def _refuse_unusable(device: str) -> None:
    import torch

    try:
        torch.zeros(1).to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no such, or none here
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInputError(
            f"torch cannot use the device {device!r} here ({first[:120]})",
            "cpu, or cuda where torch sees a GPU",
            "give --device cpu",
        ) from None
