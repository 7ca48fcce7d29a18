"""Fewer bytes without changing a value: what a graph can restate exactly, it need not store.

Training rounds weight matrices when it saves them (`merkit_training.runs.rounded`): to half
precision, or each row to 255 steps. Left as float32 in the graph, they would double or quadruple
a bundle for nothing. torch also folds long index ranges into constants. A Cast, a Cast and a Mul,
or a Range restores each exactly; ONNX Runtime folds them away when it loads, and the arithmetic
stays float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 1024  # elements; below that a node costs as much as it saves
LEVELS = 127  # steps from zero to a row's largest value


def compact(model: onnx.ModelProto) -> None:
    """Rewrites the graph's constants in place."""
    graph = model.graph
    made: list[onnx.NodeProto] = []
    kept = [small for tensor in graph.initializer for small in compacted(tensor, made)]
    nodes = [*made, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def compacted(tensor: onnx.TensorProto, made: list[onnx.NodeProto]) -> list[onnx.TensorProto]:
    """What to store of one constant, with the nodes that restore it added to `made`."""
    if np.prod(tensor.dims) < SMALLEST:
        return [tensor]
    if tensor.data_type == TensorProto.FLOAT:
        return _stepped(tensor, made) or [_halved(tensor, made)]
    if tensor.data_type == TensorProto.INT64 and len(tensor.dims) == 1:
        return _counted(tensor, made)
    return [tensor]


def _stepped(tensor: onnx.TensorProto, made: list[onnx.NodeProto]) -> list[onnx.TensorProto]:
    """Steps in int8 and their sizes, with what multiplies them in `made`, if each row or column
    lies on 255 steps up to its largest value; else nothing."""
    values = numpy_helper.to_array(tensor)
    for axis in {0, values.ndim - 1} if values.ndim > 1 else ():
        others = tuple(i for i in range(values.ndim) if i != axis)
        size = np.abs(values).max(axis=others, keepdims=True) / np.float32(LEVELS)
        steps = np.rint(np.divide(values, size, out=np.zeros_like(values), where=size > 0))
        if np.array_equal(steps * size, values):
            names = [f"{tensor.name}.{key}" for key in ("steps", "float", "size")]
            made.append(helper.make_node("Cast", names[:1], names[1:2], to=TensorProto.FLOAT))
            made.append(helper.make_node("Mul", names[1:], [tensor.name]))
            counted = numpy_helper.from_array(steps.astype(np.int8), names[0])
            return [counted, numpy_helper.from_array(size, names[2])]
    return []


def _halved(tensor: onnx.TensorProto, made: list[onnx.NodeProto]) -> onnx.TensorProto:
    """The tensor in float16 with a Cast in `made`, if that loses nothing; else the tensor."""
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), values):
        return tensor
    name = f"{tensor.name}.half"
    made.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
    return numpy_helper.from_array(halves, name)


def _counted(tensor: onnx.TensorProto, made: list[onnx.NodeProto]) -> list[onnx.TensorProto]:
    """The bounds of a Range in `made`, if the tensor counts 0, 1, 2, ...; else the tensor."""
    values = numpy_helper.to_array(tensor)
    if not np.array_equal(values, np.arange(len(values))):
        return [tensor]
    bounds = {"start": 0, "limit": len(values), "delta": 1}
    names = [f"{tensor.name}.{key}" for key in bounds]
    made.append(helper.make_node("Range", names, [tensor.name]))
    pairs = zip(names, bounds.values(), strict=True)
    return [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in pairs]
