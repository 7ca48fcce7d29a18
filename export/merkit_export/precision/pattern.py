"""A graph to walk upwards in: who makes a value, who reads it, what is stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from merkit_export.precision.fold import attributes, constants, readers, reads


class Pattern:
    """Looks up nodes around a value. Valid until the graph's edges change."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self._makers = {name: node for node in self.graph.node for name in node.output if name}
        self._stored = constants(model)
        self._readers = readers(model)
        self._wanted = {value.name for value in self.graph.output}

    def maker(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The node that makes a value, if it is of one of these kinds."""
        node = self._makers.get(name)
        return node if node is not None and (not kinds or node.op_type in kinds) else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """A stored tensor, if the value is one."""
        tensor = self._stored.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def scalar(self, name: str) -> float | None:
        """A stored number, if the value is one."""
        tensor = self._stored.get(name)
        if tensor is None or int(np.prod(tensor.dims)) != 1:
            return None
        return float(numpy_helper.to_array(tensor).reshape(-1)[0])

    def sole_reader(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The one node that reads a value, if there is one and it is of one of these kinds."""
        found = self._readers.get(name, [])
        if len(found) != 1 or name in self._wanted or found[0].op_type not in kinds:
            return None
        return found[0]

    def readers(self, name: str, *kinds: str) -> list[onnx.NodeProto]:
        """The nodes of these kinds that read a value."""
        return [node for node in self._readers.get(name, []) if node.op_type in kinds]

    def split(self, node: onnx.NodeProto) -> tuple[str, NDArray[Any]] | None:
        """Of an Add or Mul: what is computed and what is stored, if exactly one is."""
        stored = [self.constant(name) for name in node.input]
        if len(stored) != 2 or (stored[0] is None) == (stored[1] is None):
            return None
        which = 0 if stored[0] is not None else 1
        held = stored[which]
        assert held is not None
        return str(node.input[1 - which]), held

    def turned(self, name: str, *order: int) -> str | None:
        """What a Transpose of this order makes the value from."""
        node = self.maker(name, "Transpose")
        if node is None or list(attributes(node).get("perm", ())) != list(order):
            return None
        return str(node.input[0])


def rewrite(
    model: onnx.ModelProto,
    instead: dict[int, onnx.NodeProto],
    gone: Iterable[onnx.NodeProto] = (),
    before: dict[int, list[onnx.NodeProto]] | None = None,
) -> None:
    """Puts nodes in the place of others (by id), drops some, and drops what nobody reads then."""
    dropped = {id(node) for node in gone}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if id(node) in instead:
            nodes += [*(before or {}).get(id(node), ()), instead[id(node)]]
        elif id(node) not in dropped:
            nodes.append(node)
    nodes = _alive(nodes, {value.name for value in model.graph.output})
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _alive(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= reads(node)
    return kept[::-1]
