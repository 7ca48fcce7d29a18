"""Static 8-bit: weights and activations on fixed scales, where integer kernels multiply them.

Scales that are fixed once make a clip's numbers independent of its neighbours in a batch, which
scales measured while running do not. What decides the speed is that every product ends in an
integer kernel, so the form follows the runtime:

* ONNX Runtime on CPUs: activations unsigned and asymmetric, weights signed per output channel
  (U8S8: one VNNI instruction). A product is its operator of its own, bias included and the result
  in float32 (MatMulIntegerToFloat): left as Q/DQ pairs, a product whose sizes are all known and its
  bias become one Gemm on loading, in float32. Convolutions are pairs on both sides with a 32-bit
  bias, which become QLinearConv.
* TensorRT: pairs, both signed and symmetric, zero point 0; float32 bias; results stay float32.

Attention's own products (queries with keys, shares with values) stay float32: they are a few
percent of the work, and softmax needs their range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from merkit_export.precision.fold import (
    CONTRIB,
    attributes,
    constants,
    need_contrib,
    readers,
    reads,
)

SMALLEST = 2048
"""Elements of a weight matrix that are worth two conversions of what it is multiplied with."""
SHORTEST = 32
"""Products that add up fewer numbers gain nothing from 8 bits: a first layer over the samples of a
sound, whose 16 bits are not to be thrown away for it."""
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
    pairs: bool = False
    """Pairs around matrix products too, and no operator of ONNX Runtime's own."""


CPU = Style()
TENSORRT = Style(unsigned=False, convolution_outputs=False, pairs=True)


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
        if node.op_type == "MatMul" and len(weight.dims) == 2:
            place = Place(node, 1)
        elif node.op_type == "Conv":
            place = Place(node, 0)
        elif node.op_type == "Gemm" and _is_plain(node, weights):
            place = Place(node, 0 if attributes(node).get("transB") else 1)
        else:
            continue
        size = int(np.prod(weight.dims))
        short = size < SHORTEST * weight.dims[place.axis]
        if size >= SMALLEST and not short and node.input[0] not in weights:
            found.append(place)
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
    """Makes every place one of 8 bits, in place; how many places there were."""
    writer = _Writer(model, ranges, style)
    found = places(model)
    for place in found:
        writer.quantise(place)
    writer.finish()
    return len(found)


def _is_plain(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a Gemm is a product and a stored bias for each of its columns."""
    plain = attributes(node)
    bias = weights.get(node.input[2]) if len(node.input) > 2 else None
    stored = len(node.input) < 3 or (bias is not None and len(bias.dims) == 1)
    factors = (plain.get("alpha", 1.0), plain.get("beta", 1.0))
    return stored and factors == (1.0, 1.0) and not plain.get("transA")


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
        self.model, self.graph, self.ranges, self.style = model, model.graph, ranges, style
        self.weights, self.readers = constants(model), readers(model)
        self.wanted = {value.name for value in model.graph.output}
        self.before: dict[int, list[onnx.NodeProto]] = {}
        self.instead: dict[int, list[onnx.NodeProto]] = {}
        self.after: dict[int, list[onnx.NodeProto]] = {}
        self.made: dict[str, onnx.TensorProto] = {}
        self.done: set[str] = set()

    def quantise(self, place: Place) -> None:
        """One place: its activation, its weight and, for a convolution, bias and result."""
        node = place.node
        before = self.before.setdefault(id(node), [])
        if not (place.is_convolution or self.style.pairs):
            self._product(place, before)
            return
        bias = node.input[2] if len(node.input) > 2 else ""
        scale = self._scale(place.activation)[0]
        node.input[0] = self._restored(place.activation, before)
        node.input[1], sizes = self._weight(place, before)
        if place.is_convolution and self.style.convolution_outputs:
            if bias:
                node.input[2] = self._bias(node, bias, scale * sizes, before)
            self._result(node)

    def finish(self) -> None:
        """Writes everything into the graph; weights that nobody reads any more go."""
        nodes = []
        for node in self.graph.node:
            own = self.instead.get(id(node), [node])
            nodes += [*self.before.get(id(node), ()), *own, *self.after.get(id(node), ())]
        read = set[str]().union(*map(reads, nodes))
        kept = [t for t in self.graph.initializer if t.name in read]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend([*kept, *self.made.values()])
        if any(node.domain == CONTRIB for node in nodes):
            need_contrib(self.model)

    def _product(self, place: Place, before: list[onnx.NodeProto]) -> None:
        """A product, and the stored bias that is added to it, as one operator."""
        node, label = place.node, f"{place.weight}.{place.axis}"
        if f"{label}.steps" not in self.made:
            values = numpy_helper.to_array(self.weights[place.weight])
            steps, sizes = steps_of(values, place.axis, self.style.weight_bits)
            turned = np.ascontiguousarray(steps if place.axis else steps.T)
            self._constant(f"{label}.steps", turned)
            self._constant(f"{label}.sizes", sizes)
        bias, output = self._bias_behind(node, len(self._value(f"{label}.sizes")))
        scale, zero = self._held(place.activation)
        inputs = [self._quantised(place.activation, before), f"{label}.steps", scale]
        inputs += [f"{label}.sizes", zero, "", *([bias] if bias else [])]
        self.instead[id(node)] = [
            helper.make_node("MatMulIntegerToFloat", inputs, [output], domain=CONTRIB)
        ]

    def _bias_behind(self, node: onnx.NodeProto, width: int) -> tuple[str, str]:
        """The bias of a product, or "", and what the two make. An Add of it goes."""
        if node.op_type == "Gemm" and len(node.input) > 2:
            return str(node.input[2]), str(node.output[0])
        behind = self.readers.get(node.output[0], [])
        if len(behind) == 1 and behind[0].op_type == "Add" and node.output[0] not in self.wanted:
            other = next(name for name in behind[0].input if name != node.output[0])
            stored = self.weights.get(other)
            if stored is not None and list(stored.dims) == [width]:
                self.instead[id(behind[0])] = []
                return str(other), str(behind[0].output[0])
        return "", str(node.output[0])

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.made[name] = numpy_helper.from_array(values, name)
        return name

    def _value(self, name: str) -> NDArray[Any]:
        return np.asarray(numpy_helper.to_array(self.made[name]))

    def _scale(self, name: str) -> tuple[np.float32, NDArray[np.generic]]:
        low, high = self.ranges[name]
        low, high = min(low, 0.0), max(high, 0.0)
        if not self.style.unsigned:
            return np.float32(max(-low, high, TINY) / 127), np.int8(0)  # type: ignore[return-value]
        scale = np.float32(max(high - low, TINY) / 255)
        return scale, np.uint8(np.clip(round(-low / float(scale)), 0, 255))  # type: ignore[return-value]

    def _held(self, name: str) -> tuple[str, str]:
        """The constants with the scale and the zero point of an activation."""
        names = f"{name}.scale", f"{name}.zero"
        for constant, value in zip(names, self._scale(name), strict=True):
            self._constant(constant, np.asarray(value))
        return names

    def _quantised(self, name: str, before: list[onnx.NodeProto]) -> str:
        return self._once("QuantizeLinear", name, name, f"{name}.quantised", before)

    def _restored(self, name: str, before: list[onnx.NodeProto]) -> str:
        source = self._quantised(name, before)
        return self._once("DequantizeLinear", name, source, f"{name}.restored", before)

    def _once(
        self, kind: str, scaled: str, source: str, made: str, before: list[onnx.NodeProto]
    ) -> str:
        """A node that all who read `made` share."""
        if made not in self.done:
            self.done.add(made)
            before.append(helper.make_node(kind, [source, *self._held(scaled)], [made]))
        return made

    def _weight(
        self, place: Place, before: list[onnx.NodeProto]
    ) -> tuple[str, NDArray[np.float32]]:
        label = f"{place.weight}.{place.axis}"
        if f"{label}.weight" not in self.done:
            self.done.add(f"{label}.weight")
            values = numpy_helper.to_array(self.weights[place.weight])
            steps, sizes = steps_of(values, place.axis, self.style.weight_bits)
            held = [
                self._constant(f"{label}.steps", steps),
                self._constant(f"{label}.sizes", sizes),
                self._constant(f"{label}.zeros", np.zeros(len(sizes), np.int8)),
            ]
            before.append(
                helper.make_node("DequantizeLinear", held, [f"{label}.weight"], axis=place.axis)
            )
        return f"{label}.weight", self._value(f"{label}.sizes")

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
        """What a convolution makes goes through 8 bits, under its own name."""
        name = str(node.output[0])
        held, names = self._held(name), [f"{name}.exact", f"{name}.out"]
        node.output[0] = names[0]
        self.after.setdefault(id(node), []).extend(
            [
                helper.make_node("QuantizeLinear", [names[0], *held], names[1:]),
                helper.make_node("DequantizeLinear", [names[1], *held], [name]),
            ]
        )
