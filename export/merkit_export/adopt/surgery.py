"""From a foreign encoder's graph to a step's: fed as the contract says, pooled, one per batch row.

Optimum exports HuBERT without an attention mask, and its base style norms over time: padded, such
a graph gives other features. So for sound and words the foreign graph becomes the body of a Loop
that hands it one clip at a time, cut out of the ragged input; it never meets padding, and a
clip's features cannot depend on its neighbours. Pictures have one size and stay a batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from merkit.contract import Contract, StepSpec, TensorSpec
from merkit.ragged import graph_inputs, span_name, widths_name
from merkit_export.graphs import wire_value
from merkit_training.encoders.adopted import AdoptedConfig

CORE = "adopted/"
"""Precedes every name of the foreign graph, so that none meets one of ours."""
END = np.iinfo(np.int64).max


class Nodes:
    """Nodes and constants with automatic names, in the order in which they are made."""

    def __init__(self, constants: list[onnx.TensorProto], mark: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants, self.mark = constants, mark

    def __call__(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{self.mark}/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: str = "int64") -> str:
        name = f"{self.mark}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


def step_graph(
    config: AdoptedConfig, path: Path, step: StepSpec, contract: Contract
) -> onnx.ModelProto:
    """The graph of `step` around the foreign one in `path`; not yet sealed.

    Args:
        config: how the foreign graph is fed and pooled.
        path: the foreign graph; its external data is loaded.
        step: the step it becomes.
        contract: with that step's tensors, the feature's width among them.
    """
    core = compose.add_prefix(onnx.load(str(path)), CORE)
    constants = list(core.graph.initializer)
    nodes = Nodes(constants, "step")
    inputs = graph_inputs(step, contract.tensors)
    (output,) = step.outputs
    if step.ragged:
        _loop(nodes, core, config, step, contract.tensors[output])
    else:
        feature = _encode(nodes, core, config, _pictures(nodes, config, step.inputs[0]))
        nodes("Identity", feature, name=output)
    graph = helper.make_graph(
        nodes.nodes,
        step.name,
        [wire_value(name, spec) for name, spec in inputs.items()],
        [wire_value(output, contract.tensors[output])],
        constants,
    )
    model: onnx.ModelProto = helper.make_model(
        graph,
        opset_imports=core.opset_import,
        ir_version=core.ir_version,
        functions=core.functions,
    )
    return model


def _loop(
    nodes: Nodes, core: onnx.ModelProto, config: AdoptedConfig, step: StepSpec, made: TensorSpec
) -> None:
    """Features of every clip, one after another; zeros for one of no length."""
    (ragged,) = step.ragged
    length, zero = ragged.length, nodes.constant(0)
    widths = nodes("Cast", widths_name(ragged), to=TensorProto.INT64)
    ends = nodes("CumSum", widths, zero)
    starts = nodes("Sub", ends, widths)
    sizes = nodes("Min", nodes("Max", length, zero), widths, nodes("Shape", span_name(ragged)))
    trips = nodes("Gather", nodes("Shape", length), zero)

    body = Nodes(nodes.constants, "clip")
    clip = "clip/number"
    start, size = (body("Gather", rows, clip) for rows in (starts, sizes))  # each [1]
    row = body("Slice", ragged.values, start, body("Add", start, size), body.constant([0]))
    whole = _whole(body, config, row, size, _element(core, config.reads))
    feature = _encode(body, core, config, body("Unsqueeze", whole, body.constant([0])))
    flat = body("Squeeze", feature, body.constant([0]))
    there = body("Greater", size, zero)
    body("Where", there, flat, body.constant(0, "float32"), name="clip/feature")
    body("Identity", "clip/on", name="clip/still_on")
    graph = helper.make_graph(
        body.nodes,
        "clip",
        [
            helper.make_tensor_value_info(clip, TensorProto.INT64, []),
            helper.make_tensor_value_info("clip/on", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("clip/still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("clip/feature", TensorProto.FLOAT, [made.shape[1]]),
        ],
    )
    nodes("Loop", trips, "", name=step.outputs[0], body=graph)


def _whole(nodes: Nodes, config: AdoptedConfig, row: str, size: str, element: int) -> str:
    """A clip's own values [n] as the encoder wants them: filled up to the least, specials added."""
    missing = nodes("Max", nodes("Sub", nodes.constant([config.least]), size), nodes.constant(0))
    row = nodes("Cast", row, to=element)
    dtype = helper.tensor_dtype_to_np_dtype(element).name
    parts = [row, nodes("Expand", nodes.constant(0, dtype), missing)]
    if config.before:
        parts.insert(0, nodes.constant(config.before, dtype))
    if config.after:
        parts.append(nodes.constant(config.after, dtype))
    return nodes("Concat", *parts, axis=0)


def _pictures(nodes: Nodes, config: AdoptedConfig, pictures: str) -> str:
    if config.scale:
        scale, shift = (
            nodes.constant(np.reshape(v, (3, 1, 1)), "float32")
            for v in (config.scale, config.shift)
        )
        pictures = nodes("Add", nodes("Mul", pictures, scale), shift)
    if config.side:
        shape = nodes("Shape", pictures)
        kept = nodes("Slice", shape, nodes.constant([0]), nodes.constant([2]), nodes.constant([0]))
        sizes = nodes("Concat", kept, nodes.constant([config.side] * 2), axis=0)
        pictures = nodes("Resize", pictures, "", "", sizes, mode="linear")
    return pictures


def _encode(nodes: Nodes, core: onnx.ModelProto, config: AdoptedConfig, values: str) -> str:
    """Runs the foreign graph on `values` [n, ...] and pools: float32 [n, width]."""
    graph = core.graph
    nodes("Cast", values, name=CORE + config.reads, to=_element(core, config.reads))
    if config.beside:
        shape = nodes("Shape", CORE + config.reads)
        for name in config.beside:
            made = _beside(nodes, name, shape)
            nodes("Cast", made, name=CORE + name, to=_element(core, name))
    nodes.nodes.extend(graph.node)
    layers = [nodes("Cast", CORE + name, to=TensorProto.FLOAT) for name in config.states]
    states = nodes("Mean", *layers) if len(layers) > 1 else layers[0]
    if config.pool != "mean":
        return nodes("Gather", states, nodes.constant(0 if config.pool == "cls" else -1), axis=1)
    total = nodes("ReduceSum", states, nodes.constant([1]), keepdims=0)
    count = nodes("Gather", nodes("Shape", states), nodes.constant([1]))
    return nodes("Div", total, nodes("Cast", count, to=TensorProto.FLOAT))


def _beside(nodes: Nodes, name: str, shape: str) -> str:
    if name != "position_ids":
        return nodes("Expand", nodes.constant(int(name == "attention_mask")), shape)
    count = nodes("Gather", shape, nodes.constant(1))
    positions = nodes("Range", nodes.constant(0), count, nodes.constant(1))
    return nodes("Expand", positions, shape)


def _element(core: onnx.ModelProto, name: str) -> int:
    types = {value.name: value.type.tensor_type.elem_type for value in core.graph.input}
    return int(types[CORE + name])
