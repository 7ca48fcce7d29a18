"""The graph as ONNX Runtime sees it before it chooses kernels: constants folded, float32 weights.

An exported graph restores weights from fewer bits with Casts and Muls, and transposes them on the
way. What looks for "a product with a constant matrix" would find none. ONNX Runtime's basic
optimisations are portable (standard operators only), so their result is what every other precision
is made from; it is never shipped itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from merkit.ort import import_onnxruntime

ONLY_FATAL = 4
CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
EXTERNAL_FROM = 1_500_000_000
"""Bytes of a file from which on its folded weights lie beside it: protobuf ends at 2 GB."""


def fold(path: Path, folded: Path) -> onnx.ModelProto:
    """Writes `path`, folded, to `folded` and reads it back."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = ONLY_FATAL
    options.intra_op_num_threads = 1
    folded.parent.mkdir(parents=True, exist_ok=True)
    options.optimized_model_filepath = str(folded)
    for key, value in _external(path, folded).items():
        options.add_session_config_entry(
            f"session.optimized_model_external_initializers_{key}", value
        )
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return read(folded)


def read(folded: Path) -> onnx.ModelProto:
    """What `fold` wrote, as it returned it."""
    model = onnx.load(folded)
    used = {node.domain for node in model.graph.node}
    imports = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    del model.graph.value_info[:]
    return model


def _external(path: Path, folded: Path) -> dict[str, str]:
    """Folding may restore four times the bytes that a file holds."""
    beside = path.with_name(path.name + ".data")
    size = path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
    if 4 * size < EXTERNAL_FROM:
        return {}
    return {"file_name": f"{folded.name}.data", "min_size_in_bytes": "1024"}


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The graph's stored tensors by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def reads(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads, those of graphs inside it (a Loop's body) included."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            body = attribute.g
            inner = {value.name for value in body.output}.union(*map(reads, body.node))
            made = {value.name for value in [*body.input, *body.initializer]}
            found |= inner - made.union(*(inside.output for inside in body.node))
    return found


def readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Which nodes read each value, a node that reads it twice twice."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in (*node.input, *(reads(node) - set(node.input))):
            found.setdefault(name, []).append(node)
    return found


def need_contrib(model: onnx.ModelProto) -> None:
    """States that the graph uses ONNX Runtime's own operators."""
    if all(opset.domain != CONTRIB for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as plain values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
