"""Reads and replaces a few constants of an ONNX file, in place, without the package `onnx`.

To change ten numbers of a bundle nobody should have to install the exporter. A constant of equal
size occupies equally many bytes, so nothing else of the file moves; finding it takes only the
walk through protobuf's fields that stands here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from merkit.errors import BundleCorruptError, InvalidInputError

GRAPH, INITIALIZER = 7, 5  # of ModelProto, of GraphProto
FLOAT_DATA, NAME, RAW_DATA = 4, 8, 9  # of TensorProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types


def read_constant(model: bytes, name: str) -> NDArray[np.float32]:
    """The float32 values of an initialiser; errors as in `replace_constant`."""
    low, high = _place(model, name)
    return np.frombuffer(model[low:high], "<f4").astype(np.float32)


def replace_constant(model: bytes, name: str, values: NDArray[np.float32]) -> bytes:
    """The model with other values in an initialiser.

    Raises:
        InvalidInputError: the graph has no such initialiser, or one of another size.
        BundleCorruptError: the bytes are no ONNX model.
    """
    low, high = _place(model, name)
    content = np.ascontiguousarray(values, "<f4").tobytes()
    if len(content) != high - low:
        found = f"{len(content) // 4} values for the constant {name!r}"
        raise InvalidInputError(found, f"{(high - low) // 4}")
    return model[:low] + content + model[high:]


def _place(model: bytes, name: str) -> tuple[int, int]:
    """Where the values of an initialiser lie, as a range of bytes."""
    try:
        for number, low, high in _fields(model, 0, len(model)):
            if number == GRAPH:
                for inner, start, end in _fields(model, low, high):
                    if inner == INITIALIZER:
                        parts = {n: (a, b) for n, a, b in _fields(model, start, end)}
                        if model[slice(*parts.get(NAME, (0, 0)))] == name.encode():
                            return parts.get(RAW_DATA) or parts[FLOAT_DATA]
    except (IndexError, KeyError, ValueError) as error:
        raise BundleCorruptError(
            f"the fusion graph cannot be read ({type(error).__name__})",
            "an ONNX model whose constants lie in the file",
            "export the bundle again",
        ) from None
    raise InvalidInputError(
        f"the fusion graph has no constant {name!r}",
        "a bundle that was exported with replaceable calibration",
        "export the bundle again with this version of merkit",
    )


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Fields of a message in `data[start:end]`: number, and where the payload begins and ends."""
    at = start
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == BYTES:
            size, at = _varint(data, at)
        elif kind == VARINT:
            size = _varint(data, at)[1] - at
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > end:
            raise ValueError("a field reaches beyond its message")
        yield number, at, at + size
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
