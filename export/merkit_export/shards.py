"""Exporting a step whose weights fill the memory once: to disk tensor by tensor.

torch hands out a whole graph with a copy of every weight, and writing that makes another. Of a
13-billion-parameter model one copy is 53 GB. So above `storage.LIMIT` the graph is taken without
its weights, and each weight goes from the module to the file by itself: compacted, appended, let
go. What must fit in memory is the module, and its largest tensor a few times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from merkit.contract import Contract, StepSpec
from merkit.errors import MerkitError
from merkit_export import graphs, storage
from merkit_export.compact import compacted


@dataclass(frozen=True)
class Exported:
    """What was written of a step."""

    digest: str
    size: int
    """Bytes, weights included."""
    nodes: int


def export(
    module: nn.Module,
    step: StepSpec,
    contract: Contract,
    example: Mapping[str, NDArray[Any]],
    path: Path,
    limit: int = storage.LIMIT,
) -> Exported:
    """Writes the step's graph to `path`, and above `limit` bytes its weights beside it.

    Arguments and errors as of `graphs.export_step`.
    """
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    if weights <= limit:
        model = graphs.export_step(module, step, contract, example)
        size = storage.save(model, path, limit)
        return Exported(graphs.step_digest(model), size, len(model.graph.node))
    return _by_tensors(module, step, contract, example, path)


def _by_tensors(
    module: nn.Module,
    step: StepSpec,
    contract: Contract,
    example: Mapping[str, NDArray[Any]],
    path: Path,
) -> Exported:
    program = graphs.traced(module, step, contract, example)
    with TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.onnx"
        program.save(bare, include_initializers=False)
        model = onnx.load(bare)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".data")
    temporary = beside.with_suffix(".data.tmp")
    made: list[onnx.NodeProto] = []
    with temporary.open("wb") as file:
        for name, value in program.model.graph.initializers.items():
            assert value.const_value is not None
            whole = numpy_helper.from_array(value.const_value.numpy(), name)
            for tensor in compacted(whole, made):
                if len(tensor.raw_data) >= storage.MOVED_FROM:
                    storage.move(tensor, file, beside.name)
                model.graph.initializer.append(tensor)
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    graphs.seal(model, step, contract)
    temporary.replace(beside)
    small = path.with_suffix(".tmp")
    small.write_bytes(model.SerializeToString(deterministic=True))
    small.replace(path)
    _check(path, step.name)
    digest = graphs.step_digest(model, path.parent)
    return Exported(digest, storage.file_bytes(path), len(nodes))


def _check(path: Path, step: str) -> None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise MerkitError(
            f"the exported graph of {step!r} is not valid ONNX ({str(error).splitlines()[0]})",
            "a graph that passes onnx.checker",
            "report it with the versions of torch and onnx",
        ) from error
