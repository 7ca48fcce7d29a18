"""Model files of any size: protobuf ends at 2 GB, language models do not.

Below the limit a graph and its weights are one file. Above it the large weights lie beside it in
`model.onnx.data`, where ONNX Runtime, TensorRT and onnx itself look for them; both files are a
bundle's content.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import onnx
from onnx import TensorProto

LIMIT = 1_900_000_000
"""Bytes of weights up to which a model is one file."""
MOVED_FROM = 1024
"""Bytes of a tensor that is worth a reference."""
ALIGNED = 4096
"""Offsets are multiples of a page, so that the file can be mapped into memory."""


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of stored tensors in the graph."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def save(model: onnx.ModelProto, path: Path, limit: int = LIMIT) -> int:
    """Writes the model under temporary names, then renames; its size in bytes, weights included.

    The model is as before afterwards, wherever its weights went.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".data")
    temporary = path.with_suffix(".tmp")
    if weight_bytes(model) > limit:
        moved = beside.with_suffix(".data.tmp")
        with _weights_moved(model, moved, beside.name) as size:
            size += temporary.write_bytes(model.SerializeToString(deterministic=True))
        moved.replace(beside)
    else:
        size = temporary.write_bytes(model.SerializeToString(deterministic=True))
        beside.unlink(missing_ok=True)
    temporary.replace(path)
    return size


def file_bytes(path: Path) -> int:
    """Size of a model on disk, its weights beside it included."""
    beside = path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


@contextmanager
def _weights_moved(model: onnx.ModelProto, path: Path, location: str) -> Iterator[int]:
    """Large tensors are in `path`, one after another, and the model refers to them, until the
    end; yields the bytes written."""
    held: list[tuple[TensorProto, bytes]] = []
    try:
        with path.open("wb") as file:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) < MOVED_FROM:
                    continue
                held.append((tensor, tensor.raw_data))
                move(tensor, file, location)
            size = file.tell()
        yield size
    finally:
        for tensor, content in held:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = content


def move(tensor: TensorProto, file: IO[bytes], location: str) -> None:
    """Appends a tensor's content to `file`, which graphs will find as `location`, and leaves a
    reference in the tensor."""
    content = tensor.raw_data
    offset = -(-file.tell() // ALIGNED) * ALIGNED
    file.write(bytes(offset - file.tell()))
    file.write(content)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", len(content))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
