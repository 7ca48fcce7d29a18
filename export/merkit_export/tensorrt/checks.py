"""What TensorRT would refuse in a graph, check by check; each finding says what to do.

The checks read a table (`operators`) and know nothing of steps, profiles or files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from merkit_export.tensorrt import operators as table
from merkit_export.tensorrt.graph import Finding, Graph

ORT_DOMAIN = "com.microsoft"
ORT_ONLY = (
    "it is ONNX Runtime's own; build with --target tensorrt, which writes ONNX's operators alone"
)


def examine(graph: Graph) -> Iterator[Finding]:
    """Every check of a graph that does not depend on profiles."""
    yield from _opset(graph)
    yield from _wire(graph)
    yield from _constants(graph)
    for node in graph.model.graph.node:
        yield from _operator(graph, node)
        yield from _constant_inputs(graph, node)
        yield from _ranks(graph, node)
        yield from _shapes(graph, node)
        if special := _SPECIAL.get(node.op_type):
            yield from special(graph, node)


def _opset(graph: Graph) -> Iterator[Finding]:
    for opset in graph.model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version not in table.OPSETS:
            first, last = table.OPSETS[0], table.OPSETS[-1]
            found = f"opset {opset.version}, where the parser takes {first} to {last}"
            yield graph.finding("the graph", found, "export it at opset 20")


def _wire(graph: Graph) -> Iterator[Finding]:
    for value in [*graph.inputs.values(), *graph.model.graph.output]:
        kind = graph.type_of(value.name)
        if kind not in table.TYPE_NAMES.values():
            fix = "leave this step to ONNX Runtime, or cast before and after it"
            yield graph.finding(f"tensor {value.name}", f"its type is {kind}", fix)


def _constants(graph: Graph) -> Iterator[Finding]:
    for name in graph.constants:
        kind = graph.type_of(name)
        if kind not in table.TYPE_NAMES.values():
            fix = "store it in a type that TensorRT has"
            yield graph.finding(f"constant {name}", f"its type is {kind}", fix)
        values = graph.array(name)
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            fix = "clamp mask fills to -1e4 before lowering the precision"
            yield graph.finding(f"constant {name}", "it holds infinity or NaN", fix, "warning")


def _operator(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.domain not in ("", "ai.onnx"):
        fix = ORT_ONLY if node.domain == ORT_DOMAIN else "write it with ONNX's own operators"
        yield graph.finding(node, f"the operator is of the domain {node.domain}", fix)
        return
    types = table.SUPPORTED.get(node.op_type)
    if types is None:
        fix = table.INSTEAD.get(node.op_type, "rewrite it with supported operators")
        yield graph.finding(node, "TensorRT has no such operator", fix)
        return
    if node.op_type in table.UNTYPED:
        return
    for name in _typed_values(node):
        kind = graph.type_of(name)
        edge = name in graph.inputs or any(v.name == name for v in graph.model.graph.output)
        if kind and kind not in types and not (kind == "UINT8" and edge and "UINT8" in types):
            wanted = ", ".join(sorted(types))
            fix = _type_fix(node, kind, types)
            yield graph.finding(node, f"{name} is {kind}, it takes {wanted}", fix)


def _typed_values(node: onnx.NodeProto) -> Iterator[str]:
    """The values whose type the table speaks of."""
    if node.op_type in ("Constant", "ConstantOfShape"):
        yield node.output[0]
    elif node.op_type == "Cast":
        yield from (node.input[0], node.output[0])
    else:
        position = table.DATA_INPUT.get(node.op_type, 0)
        if position < len(node.input):
            yield node.input[position]


def _type_fix(node: onnx.NodeProto, kind: str, types: Collection[str]) -> str:
    if node.op_type == "DequantizeLinear" and kind == "INT32":
        return "leave biases unquantised (QuantizeBias=False)"
    if node.op_type == "DequantizeLinear" or kind == "INT8":
        return "quantise to signed INT8 and symmetrically: build with --target tensorrt"
    if kind == "UINT8":
        return "TensorRT has UINT8 at a network's edge alone: cast it there"
    return f"cast it to {next(t for t in ('INT32', 'FP32', 'BOOL') if t in types)}"


def _constant_inputs(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    for position in table.CONSTANT_INPUTS.get(node.op_type, ()):
        given = position < len(node.input) and node.input[position]
        if given and not graph.constant(given):
            found = f"{given} must be a constant of the graph"
            yield graph.finding(node, found, "write the value into the graph")


def _ranks(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    for name in node.output:
        if graph.ranks.get(name, 0) > table.MAX_RANK:
            found = f"{name} has {graph.ranks[name]} dimensions, {table.MAX_RANK} at most"
            yield graph.finding(node, found, "merge dimensions")


def _shapes(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """Shapes that depend on what tensors hold, where TensorRT wants them from shapes."""
    for position in table.SHAPE_INPUTS.get(node.op_type, ()):
        name = node.input[position] if position < len(node.input) else ""
        if name and (cause := _shape_cause(graph, name)):
            fix = "take the size from a tensor's shape, as ragged inputs do by their span"
            yield graph.finding(node, f"a size it uses depends on {cause}", fix)
    if node.op_type in ("NonZero", "NonMaxSuppression"):
        fix = "rewrite it with Where; its result has a size of its own for each clip"
        yield graph.finding(node, "its output's size depends on values", fix, "warning")


def _shape_cause(graph: Graph, name: str) -> str:
    """What makes a size unknowable before the network runs; "" where nothing does."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        value = waiting.pop()
        if value in seen or not value or value in graph.constants:
            continue
        seen.add(value)
        if value in graph.inputs:
            dims = graph.inputs[value].type.tensor_type.shape.dim
            if len(dims) <= 1 and all(d.HasField("dim_value") for d in dims):
                continue  # a network input of sizes: TensorRT reads it on the host
            return f"the values of the input {value}"
        maker = graph.makers.get(value)
        if maker is None or maker.op_type in ("Shape", "Size", "Constant"):
            continue
        if maker.op_type not in table.SHAPE_ARITHMETIC:
            return f"what {maker.name or maker.output[0]} ({maker.op_type}) computes"
        waiting.extend(maker.input)
    return ""


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    found = next((a for a in node.attribute if a.name == name), None)
    return None if found is None else onnx.helper.get_attribute_value(found)


def _pool(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if graph.ranks.get(node.input[0], 4) not in (4, 5):
        yield graph.finding(node, "only 2D and 3D pooling are supported", "add a dimension of 1")
    if set(_attribute(node, "dilations") or [1]) != {1}:
        yield graph.finding(node, "dilated pooling is not supported", "pool without dilations")


def _quantize(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    scale = graph.array(node.input[1]) if len(node.input) > 1 else None
    if len(node.input) < 2 or not node.input[1]:
        yield graph.finding(node, "it has no scale", "calibrate and quantise again")
    elif scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
        yield graph.finding(node, "its scale is not above 0", "calibrate and quantise again")
    zero = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is not None and np.any(zero.astype(np.int32)):
        fix = "quantise symmetrically: build with --target tensorrt"
        yield graph.finding(node, "its zero point is not 0", fix)
    if node.op_type == "QuantizeLinear":
        readers = graph.readers.get(node.output[0], set())
        if readers - {"DequantizeLinear", "Reshape", "Transpose"}:
            fix = "let a DequantizeLinear follow it"
            yield graph.finding(node, f"its output goes to {', '.join(sorted(readers))}", fix)


def _only_first_output(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if any(node.output[1:]):
        yield graph.finding(node, "only its first output is supported", "do not use the others")


def _scatter(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if (_attribute(node, "reduction") or b"none") != b"none":
        yield graph.finding(node, "it reduces while it scatters", "scatter, then reduce")


def _top_k(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if _attribute(node, "sorted") == 0:
        yield graph.finding(node, "unsorted results are not supported", "set sorted to 1")


def _attention(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if any(graph.ranks.get(name, 4) != 4 for name in node.input[:4] if name):
        yield graph.finding(node, "Q, K, V and mask must have 4 dimensions", "split the heads")
    if any(node.input[4:]) or any(node.output[1:]):
        yield graph.finding(node, "past and present states are not supported", "leave them out")


_SPECIAL: Mapping[str, Callable[[Graph, onnx.NodeProto], Iterator[Finding]]] = {
    "AveragePool": _pool,
    "MaxPool": _pool,
    "LpPool": _pool,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
    "LayerNormalization": _only_first_output,
    "ScatterND": _scatter,
    "TopK": _top_k,
    "Attention": _attention,
}
"""Restrictions of single operators that merkit's graphs may meet."""
