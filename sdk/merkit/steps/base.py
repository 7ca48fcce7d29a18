"""What every python step has in common: a narrow call, checked against the contract.

A python step runs embedded and inside a server from the same class. A wrong tensor must become
one typed error there, not a traceback from a codec three calls deep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Contract, TensorSpec
from merkit.errors import InvalidInputError

Array = NDArray[Any]


class Step(Protocol):
    """A python step of the pipeline.

    Called with the tensors that its StepSpec names (others are ignored), batch first, and
    returns exactly the tensors that it names as outputs. Strings are object arrays of str or of
    UTF-8 bytes on the way in, of str on the way out. Safe to call from several threads.
    """

    name: ClassVar[str]

    def __init__(self, contract: Contract, resources: Path | None) -> None:
        """`resources` is the folder with the step's content files, if it has any."""
        ...

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the step; raises only merkit.errors types."""
        ...


def take(tensors: Mapping[str, Array], contract: Contract, *names: str) -> list[Array]:
    """The named tensors, after checking type and shape and that their batches agree."""
    taken = []
    for name in names:
        spec = contract.tensors[name]
        array = tensors.get(name)
        if array is None or not _fits(array, spec):
            got = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
            raise InvalidInputError(
                f"the tensor {name!r} is {got}",
                f"{spec.dtype} of shape {spec.shape}",
                "send tensors as the contract describes them",
            )
        taken.append(array)
    if len({len(array) for array in taken}) > 1:
        raise InvalidInputError(
            f"the tensors {', '.join(names)} have batches of {[len(a) for a in taken]}",
            "one batch size",
            "send the same clips in every tensor",
        )
    return taken


def padded(rows: Sequence[Array], fill: int | float = 0) -> Array:
    """Rows of different length as one array [batch, longest, ...], filled up at the end."""
    longest = max(len(row) for row in rows)
    batch = np.full((len(rows), longest, *rows[0].shape[1:]), fill, rows[0].dtype)
    for row, target in zip(rows, batch, strict=True):
        target[: len(row)] = row
    return batch


def as_text(value: Any) -> str:
    """One string of a tensor, which holds str or UTF-8 bytes; InvalidInputError for anything
    else."""
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise TypeError(type(text).__name__)
        text.encode("utf-8")  # a lone surrogate is no text
    except (UnicodeError, TypeError) as error:
        raise InvalidInputError(
            f"the text is no text ({type(error).__name__})",
            "Unicode text, encoded as UTF-8 on the wire",
            "decode it with its own encoding first",
        ) from None
    return text


def column(values: Sequence[int]) -> NDArray[np.int64]:
    """int64 [batch, 1]."""
    return np.array(values, np.int64).reshape(-1, 1)


def _fits(array: Array, spec: TensorSpec) -> bool:
    if array.ndim != len(spec.shape) or array.shape[0] < 1:
        return False
    sized = zip(array.shape, spec.shape, strict=True)
    if any(isinstance(want, int) and want != have for have, want in sized):
        return False
    return array.dtype == np.object_ if spec.dtype == "string" else str(array.dtype) == spec.dtype
