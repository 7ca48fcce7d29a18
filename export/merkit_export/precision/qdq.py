"""Static 8-bit: weights and activations on fixed scales, as Q/DQ pairs that kernels absorb.

Scales that are fixed once make a clip's numbers independent of its neighbours in a batch, which
scales measured while running do not. What decides the speed is that every pair ends in an integer
kernel, so the form follows what each runtime fuses:

* ONNX Runtime on CPUs: activations unsigned and asymmetric, weights signed per output channel
  (U8S8: one VNNI instruction); products keep a float32 result (MatMulIntegerToFloat),
  convolutions are quantised on both sides with a 32-bit bias (QLinearConv).
* TensorRT: both signed and symmetric, zero point 0; float32 bias; results stay float32.

Attention's own products (queries with keys, shares with values) stay float32: they are a few
percent of the work, and softmax needs their range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from merkit_export.precision.fold import attributes, constants, reads

SMALLEST = 2048
"""Elements of a weight matrix that are worth two conversions of what it is multiplied with."""
TINY = 1e-12

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value of each activation, by name."""


@dataclass(frozen=True)
class Style:
    """What a runtime fuses."""

    unsigned: bool = True
    """Activations uint8 with a zero point; else int8, symmetric."""
    convolution_outputs: bool = True
    """Quantise what convolutions make, and their bias."""
    weight_bits: int = 8
    """7 where CPUs without VNNI would saturate when they add up products."""


CPU = Style()
TENSORRT = Style(unsigned=False, convolution_outputs=False)


@dataclass(frozen=True)
class Place:
    """A node that multiplies an activation with a stored weight."""

    node: onnx.NodeProto
    axis: int
    """Of the weight: the output channels."""

    @property
    def activation(self) -> str:
        """What is multiplied."""
        return str(self.node.input[0])

    @property
    def weight(self) -> str:
        """With what."""
        return str(self.node.input[1])

    @property
    def is_convolution(self) -> bool:
        """Whether it is one, rather than a matrix product."""
        return str(self.node.op_type) == "Conv"


def places(model: onnx.ModelProto) -> list[Place]:
    """Every product and convolution of a folded graph that is worth quantising."""
    weights = constants(model)
    found = []
    for node in model.graph.node:
        weight = weights.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        if int(np.prod(weight.dims)) < SMALLEST or node.input[0] in weights:
            continue
        if node.op_type == "MatMul" and len(weight.dims) == 2:
            found.append(Place(node, 1))
        elif node.op_type == "Conv":
            found.append(Place(node, 0))
        elif node.op_type == "Gemm" and _is_plain(node):
            found.append(Place(node, 0 if attributes(node).get("transB") else 1))
    return found


def activations(model: onnx.ModelProto, style: Style) -> list[str]:
    """Whose ranges `quantise` needs."""
    wanted: dict[str, None] = {}
    for place in places(model):
        wanted[place.activation] = None
        if place.is_convolution and style.convolution_outputs:
            wanted[str(place.node.output[0])] = None
    return list(wanted)


def quantise(model: onnx.ModelProto, ranges: Ranges, style: Style) -> int:
    """Puts Q/DQ pairs around every place, in place; how many places there were."""
    writer = _Writer(model, ranges, style)
    found = places(model)
    for place in found:
        writer.quantise(place)
    writer.finish()
    return len(found)


def _is_plain(node: onnx.NodeProto) -> bool:
    plain = attributes(node)
    return plain.get("alpha", 1.0) == 1.0 and not plain.get("transA")


def steps_of(
    weight: NDArray[np.float32], axis: int, bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight in whole steps, and the size of a step for each index of `axis`."""
    most = 2 ** (bits - 1) - 1
    others = tuple(i for i in range(weight.ndim) if i != axis)
    sizes = np.maximum(np.abs(weight).max(axis=others, keepdims=True), TINY) / np.float32(most)
    steps = np.clip(np.rint(weight / sizes), -most, most).astype(np.int8)
    return steps, sizes.reshape(-1).astype(np.float32)


class _Writer:
    """Collects the nodes and constants of one graph's quantisation."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges, style: Style) -> None:
        self.graph, self.ranges, self.style = model.graph, ranges, style
        self.weights = constants(model)
        self.before: dict[int, list[onnx.NodeProto]] = {}
        self.after: dict[int, list[onnx.NodeProto]] = {}
        self.made: list[onnx.TensorProto] = []
        self.pairs: dict[str, str] = {}
        self.done: dict[tuple[str, int], tuple[str, NDArray[np.float32]]] = {}

    def quantise(self, place: Place) -> None:
        """One place: its activation, its weight and, for a convolution, bias and result."""
        node = place.node
        before = self.before.setdefault(id(node), [])
        weight, sizes = self._weight(place, before)
        bias = node.input[2] if len(node.input) > 2 else ""
        scale = self._scale(place.activation)[0]
        node.input[0] = self._activation(place.activation, before)
        node.input[1] = weight
        if place.is_convolution and self.style.convolution_outputs:
            if bias:
                node.input[2] = self._bias(node, bias, scale * sizes, before)
            self._result(node)

    def finish(self) -> None:
        """Writes everything into the graph; weights that nobody reads any more go."""
        nodes = []
        for node in self.graph.node:
            nodes += [*self.before.get(id(node), ()), node, *self.after.get(id(node), ())]
        read = set[str]().union(*map(reads, nodes))
        kept = [t for t in self.graph.initializer if t.name in read]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend([*kept, *self.made])

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.made.append(numpy_helper.from_array(values, name))
        return name

    def _scale(self, name: str) -> tuple[np.float32, NDArray[np.generic]]:
        low, high = self.ranges[name]
        low, high = min(low, 0.0), max(high, 0.0)
        if not self.style.unsigned:
            return np.float32(max(-low, high, TINY) / 127), np.int8(0)  # type: ignore[return-value]
        scale = np.float32(max(high - low, TINY) / 255)
        return scale, np.uint8(np.clip(round(-low / float(scale)), 0, 255))  # type: ignore[return-value]

    def _pair(self, name: str, label: str) -> tuple[list[onnx.NodeProto], str]:
        """Quantise and restore `name`; the nodes, and what they make."""
        scale, zero = self._scale(name)
        held = [
            self._constant(f"{label}.scale", np.asarray(scale)),
            self._constant(f"{label}.zero", np.asarray(zero)),
        ]
        names = [f"{label}.quantised", f"{label}.restored"]
        return [
            helper.make_node("QuantizeLinear", [name, *held], names[:1]),
            helper.make_node("DequantizeLinear", [names[0], *held], names[1:]),
        ], names[1]

    def _activation(self, name: str, before: list[onnx.NodeProto]) -> str:
        if name not in self.pairs:
            nodes, self.pairs[name] = self._pair(name, name)
            before += nodes
        return self.pairs[name]

    def _weight(
        self, place: Place, before: list[onnx.NodeProto]
    ) -> tuple[str, NDArray[np.float32]]:
        key = (place.weight, place.axis)
        if key not in self.done:
            values = numpy_helper.to_array(self.weights[place.weight])
            steps, sizes = steps_of(values, place.axis, self.style.weight_bits)
            label = f"{place.weight}.{place.axis}"
            held = [
                self._constant(f"{label}.steps", steps),
                self._constant(f"{label}.sizes", sizes),
                self._constant(f"{label}.zeros", np.zeros(len(sizes), np.int8)),
            ]
            made = f"{label}.weight"
            before.append(helper.make_node("DequantizeLinear", held, [made], axis=place.axis))
            self.done[key] = (made, sizes)
        return self.done[key]

    def _bias(
        self,
        node: onnx.NodeProto,
        bias: str,
        sizes: NDArray[np.float32],
        before: list[onnx.NodeProto],
    ) -> str:
        values = numpy_helper.to_array(self.weights[bias]).astype(np.float64)
        limits = np.iinfo(np.int32)
        steps = np.clip(np.rint(values / sizes), limits.min, limits.max).astype(np.int32)
        label = f"{node.output[0]}.bias"
        held = [
            self._constant(f"{label}.steps", steps),
            self._constant(f"{label}.sizes", sizes.astype(np.float32)),
            self._constant(f"{label}.zeros", np.zeros(len(steps), np.int32)),
        ]
        before.append(helper.make_node("DequantizeLinear", held, [f"{label}.float"], axis=0))
        return f"{label}.float"

    def _result(self, node: onnx.NodeProto) -> None:
        name = node.output[0]
        inner = f"{name}.exact"
        node.output[0] = inner
        nodes, made = self._pair(name, f"{name}.out")
        nodes[0].input[0], nodes[1].output[0] = inner, name
        del made
        self.after.setdefault(id(node), []).extend(nodes)
