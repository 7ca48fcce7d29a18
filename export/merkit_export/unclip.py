"""Clip of whole numbers, said as Max and Min: some runtimes refuse it, one computes it wrongly.

TensorRT's parser has no place for it. OpenVINO's provider (onnxruntime-openvino 1.24) makes 0 of
whole numbers that are clipped from below alone: every length is 0 then, and so is every feature of
sound and words, without an error.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

WHOLE = (TensorProto.INT32, TensorProto.INT64)


def unclip(graph: onnx.GraphProto) -> None:
    """Clip of whole numbers becomes Max and Min; the type of its bounds tells it."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        bounds = {
            kind: name
            for kind, name in zip(("Max", "Min"), node.input[1:], strict=False)
            if node.op_type == "Clip" and name in stored and stored[name].data_type in WHOLE
        }
        value = node.input[0] if node.input else ""
        for index, (kind, bound) in enumerate(bounds.items(), 1):
            last = index == len(bounds)
            made = node.output[0] if last else f"{node.output[0]}.{kind.lower()}"
            nodes.append(helper.make_node(kind, [value, bound], [made], f"{node.name}.{kind}"))
            value = made
        if not bounds:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
