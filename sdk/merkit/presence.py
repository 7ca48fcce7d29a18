"""What of a clip is there, and what stands for the rest.

An encoder whose modality a clip lacks need not run, but a server cannot skip a step of an ensemble.
So whoever sends a decoded clip looks at what it holds and picks the entry point that was cut for
just that; and where a cut left something out, these are the constants that were folded in. Nor need
the chain in front of the encoders run where it is given nothing to hear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import DTYPES
from merkit.contract import Contract, Preprocessing, StepSpec, TensorSpec

Arrays = Mapping[str, NDArray[Any]]

MARGIN = 0.99
"""Of the power of silence: rounding must not make absent here what is present in the graph."""

MEASURES = {
    "separate": ("mixture_length",),
    "recognize": ("speech_length", "mixture_length"),
    "punctuate": ("word_count",),
}
"""Steps that make zeros of nothing, and the lengths that say how much they are given."""


def held(tensors: Arrays, p: Preprocessing, hears: bool = False) -> tuple[str, ...]:
    """The modalities that any clip of a batch of `pipeline.DECODED_IN` may hold.

    `presence` itself is decided by the pipeline's graph. This is never less than that: what is
    not named here is absent there. Where the pipeline `hears`, words may be in any sound, unless
    there is no `text` among the tensors: then none are wanted.
    """
    lengths = tensors["waveform_length"].astype(np.int64)
    waves = tensors["waveform"]
    inside = np.arange(waves.shape[1]) < lengths
    power = np.square(waves, where=inside, out=np.zeros_like(waves)).sum(1, dtype=np.float64)
    mean = power / np.maximum(lengths[:, 0], 1)
    long_enough = lengths[:, 0] >= round(p.min_audio_seconds * p.sample_rate)
    sound = bool((long_enough & (mean >= MARGIN * 10 ** (p.silence_dbfs / 10))).any())
    texts = tensors.get("text")
    there = {
        "audio": sound,
        "text": texts is not None and ((hears and sound) or any(t.strip() for t in texts.flat)),
        "video": bool((tensors["face_count"] > 0).any()),
    }
    return tuple(modality for modality, here in there.items() if here)


def absent(contract: Contract, name: str, batch: int) -> NDArray[Any]:
    """The tensor `name` of clips that have nothing of it: zeros, and of no length where lengths
    vary; of strings, empty ones."""
    return empty(contract.tensors[name], batch)


def nothing(contract: Contract, step: StepSpec, tensors: Arrays) -> dict[str, NDArray[Any]] | None:
    """What a graph of the chain makes of a batch in which no clip gives it anything; None where one
    does, or for any other step.

    Zeros, of the shapes that the graph gives: as long as its inputs, and one place for what it
    finds itself. (Of nothing the recogniser says `</s>` there, and counts no token.)
    """
    lengths = [name for name in MEASURES.get(step.name, ()) if name in step.inputs]
    if not lengths or any(tensors[name].any() for name in lengths):
        return None
    known: dict[int | str, int] = {}
    for name in step.inputs:
        known |= zip(contract.tensors[name].shape, tensors[name].shape, strict=True)
    specs = {name: contract.tensors[name] for name in step.outputs}
    return {
        name: np.zeros(
            [size if isinstance(size, int) else known.get(size, 1) for size in spec.shape],
            DTYPES[spec.dtype],
        )
        for name, spec in specs.items()
    }


def empty(spec: TensorSpec, batch: int) -> NDArray[Any]:
    """As `absent`, of a tensor's description."""
    shape = (batch, *(0 if isinstance(size, str) else size for size in spec.shape[1:]))
    if spec.dtype == "string":
        return np.full(shape, "", dtype=np.object_)
    return np.zeros(shape, DTYPES[spec.dtype])
