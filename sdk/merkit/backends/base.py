"""The seam between the client and whatever executes the pipeline.

Without one narrow interface the embedded and the served path would each grow their own client.
Everything that runs the pipeline, and everything that wraps such a thing, is a `Backend`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Contract, TensorSpec
from merkit.errors import InvalidInputError

Tensors = Mapping[str, NDArray[Any]]


class Backend(Protocol):
    """Executes the pipeline of `contract`."""

    @property
    def contract(self) -> Contract:
        """What this side and the caller agree on."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """`contract_id`, `bundle_id`, `backend` and the like, for the result's `bundle` field."""
        ...

    def infer(
        self, tensors: Tensors, timings: dict[str, float] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Computes the outcome from entry tensors.

        Args:
            tensors: `pipeline.BYTES_IN` or `pipeline.DECODED_IN`, batch first. Strings are
                object arrays of str; an absent clip or text is of zero length or "". A pipeline
                that hears writes the words of a blank text, unless `text` is left out.
            timings: where given, filled with milliseconds by step or phase.

        Returns:
            `pipeline.OUTCOME`, and of `pipeline.DETAIL` and `pipeline.HEARD` what was computed
            on the way.
        """
        ...

    def close(self) -> None:
        """Releases sessions and connections. Safe to call twice."""
        ...


def strings(*values: str) -> NDArray[np.object_]:
    """A `string` tensor of shape [batch, 1], as every backend expects it."""
    return np.array([[value] for value in values], dtype=np.object_)


DTYPES = {
    "uint8": np.uint8,
    "int32": np.int32,
    "int64": np.int64,
    "float32": np.float32,
    "bool": np.bool_,
}
LENGTHS = {
    "face_count": "faces",
    "waveform_length": "samples",
    "speech_length": "speech_samples",
    "mixture_length": "speech_samples",
    "token_count": "said",
    "word_count": "words_said",
    "text_length": "tokens",
    "joint_length": "joint_tokens",
}
"""Tensors that say how much of a padded dimension is real."""
SAID_PER_SECOND = 100
"""More than anybody says, and than any recogniser has frames (of 10 ms) to find."""
TOKENS_PER_BYTE = 2
"""More than any vocabulary makes of the joint model's prompt: usually a third."""


def check_tensors(contract: Contract, tensors: Tensors) -> None:
    """Compares entry tensors with the contract before anything runs.

    Graphs would accept some wrong tensors (a float where an integer is meant, a length beyond the
    padding) and fail on others with a message about a node nobody has heard of.

    Raises:
        InvalidInputError: names the tensor, what was found and what the contract expects.
    """
    sizes: dict[str, int] = {}
    for name, value in tensors.items():
        spec = contract.tensors.get(name)
        if spec is None:
            known = ", ".join(sorted(contract.tensors))
            raise _invalid(name, "which the pipeline does not know", f"one of: {known}")
        _check_type(name, value, spec)
        if value.ndim != len(spec.shape):
            found = f"of shape {list(value.shape)}"
            raise _invalid(name, found, f"{len(spec.shape)} dimensions: {list(spec.shape)}")
        for size, want in zip(value.shape, spec.shape, strict=True):
            agreed = sizes.setdefault(want, size) if isinstance(want, str) else want
            if size != agreed:
                found = f"of shape {list(value.shape)}"
                raise _invalid(name, found, f"{list(spec.shape)} with {want} = {agreed}")
    check_sizes(contract, tensors)
    check_truths(contract, tensors)
    for name, dimension in LENGTHS.items():
        if name in tensors and dimension in sizes:
            value, most = tensors[name], sizes[dimension]
            if value.size and (value.min() < 0 or value.max() > most):
                raise _invalid(name, f"with the value {value.max()}", f"0 to {most}, its padding")


def check_sizes(contract: Contract, tensors: Tensors) -> None:
    """Refuses tensors longer than any clip that the contract admits.

    Attention costs the square of a length: one request of minutes of sound, or of thousands of
    tokens, holds its encoder, and gigabytes, while everybody else's clips wait. What decodes media
    and tokenises stays within these by itself.

    Raises:
        InvalidInputError: names the tensor and its limit.
    """
    p = contract.preprocessing
    sound = math.ceil(p.max_audio_seconds * p.sample_rate)
    padded = sound + math.ceil(p.min_audio_seconds * p.sample_rate)  # as `preprocess` may
    said = math.ceil(p.max_audio_seconds * SAID_PER_SECOND)
    limits = {"samples": sound, "speech_samples": sound, "audio_samples": padded} | {
        "said": said,
        "words_said": said,
        "tokens": p.max_text_tokens,
        "joint_tokens": p.max_text_tokens + TOKENS_PER_BYTE * len(p.prompt.encode("utf-8")),
    }
    for name, value in tensors.items():
        for size, want in zip(value.shape, contract.tensors[name].shape, strict=False):
            if isinstance(want, str) and size > limits.get(want, size):
                found = f"of shape {list(value.shape)}"
                raise _invalid(name, found, f"at most {limits[want]} {want}, the contract's limit")


def check_truths(contract: Contract, tensors: Tensors) -> None:
    """Refuses truth values that are no 0 or 1: graphs multiply by them, and a mask of 255, as
    picture libraries write them, made probabilities of 66.

    Raises:
        InvalidInputError: names the tensor.
    """
    for name, value in tensors.items():
        if contract.tensors[name].dtype == "bool" and (value.view(np.uint8) > 1).any():
            raise _invalid(name, "with bytes other than 0 and 1", "truth values, a byte each")


def _check_type(name: str, value: NDArray[Any], spec: TensorSpec) -> None:
    if not isinstance(value, np.ndarray):
        raise _invalid(name, f"of type {type(value).__name__}", "a numpy array")
    if spec.dtype == "string":
        if value.dtype != np.object_ or not all(isinstance(v, str) for v in value.flat):
            raise _invalid(name, f"of dtype {value.dtype}", "an object array of str")
    elif value.dtype != DTYPES[spec.dtype]:
        raise _invalid(name, f"of dtype {value.dtype}", spec.dtype)
    elif spec.dtype == "float32" and not np.isfinite(value).all():
        raise _invalid(name, "with NaN or infinity in it", "finite numbers")


def _invalid(name: str, found: str, expected: str) -> InvalidInputError:
    return InvalidInputError(f"a tensor {name!r} {found}", expected, "correct it and try again")
