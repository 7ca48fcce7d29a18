"""Says in TensorRT's terms what a bundle's graph says in ONNX's: the same numbers come out.

Two things that ONNX Runtime takes, and torch and `merkit_export.compact` write, have no place in
a TensorRT network. Matrices stored as int8 steps times a size: there, int8 means quantised
arithmetic. And Clip of whole numbers, which is Max and Min. The parser is given the graph with
both restated; the bundle keeps its own.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from merkit_export.unclip import unclip


def restate(model: onnx.ModelProto) -> bool:
    """Rewrites the graph in place; whether weights in it are no longer as they are stored."""
    unclip(model.graph)
    return _fold(model)


def _fold(model: onnx.ModelProto) -> bool:
    """A Cast of stored int8 steps becomes a constant, and so does its product with their size."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    folded: dict[str, onnx.TensorProto] = {}
    kept = []
    for node in graph.node:
        tensor = _cast(node, stored) or _product(node, stored, folded)
        if tensor is None:
            kept.append(node)
        else:
            folded[tensor.name] = tensor
    if not folded:
        return False
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(folded.values())
    read = {name for node in kept for name in node.input} | {v.name for v in graph.output}
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)
    return True


def _cast(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> onnx.TensorProto | None:
    source = stored.get(node.input[0]) if node.op_type == "Cast" else None
    inside = source is not None and source.data_location != TensorProto.EXTERNAL
    if source is None or not inside or source.data_type != TensorProto.INT8:
        return None
    to = next(a.i for a in node.attribute if a.name == "to")
    values = numpy_helper.to_array(source).astype(helper.tensor_dtype_to_np_dtype(to))
    return numpy_helper.from_array(values, node.output[0])


def _product(
    node: onnx.NodeProto,
    stored: dict[str, onnx.TensorProto],
    folded: dict[str, onnx.TensorProto],
) -> onnx.TensorProto | None:
    if node.op_type != "Mul" or not any(name in folded for name in node.input):
        return None
    factors = [folded.get(name) or stored.get(name) for name in node.input]
    if None in factors:
        return None
    first, second = (numpy_helper.to_array(tensor) for tensor in factors)
    return numpy_helper.from_array(first * second, node.output[0])
