"""Clean sound costs nothing: the separator's graph computes no further than its longest mixture.

`listen` says of a clean sound that nothing of it is to be separated, and the recogniser still needs
the sound itself, so the graph gets all of it. torch cannot trace a model whose sizes depend on
values, ONNX can hold one: what is cut off in front and filled up behind goes around the traced
graph. TensorRT cannot, so only bundles that skip clean sound have it.
"""

from __future__ import annotations

from collections.abc import MutableSequence

import numpy as np
import onnx
from onnx import helper, numpy_helper


def trim(model: onnx.ModelProto, values: str, length: str, made: str) -> None:
    """Rewrites the graph in place; what it computes stays the same.

    Args:
        model: a graph that treats what lies beyond `length` as absent.
        values: its input [b, n].
        length: its input int64 [b, 1].
        made: its output [b, m, n], zeros beyond `length`.
    """
    graph = model.graph
    short, least = f"{values}.trimmed", f"{made}.trimmed"
    for node in graph.node:
        _rename(node.input, values, short)
        _rename(node.output, made, least)
        _rename(node.input, made, least)
    constants = {"zero": [0], "one": [1], "before": [0, 0, 0, 0, 0]}
    names = {key: f"trim.{key}" for key in constants}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), names[key])
        for key, value in constants.items()
    )
    front = [
        helper.make_node("ReduceMax", [length], ["trim.longest"], keepdims=0),
        helper.make_node("Reshape", ["trim.longest", names["one"]], ["trim.asked"]),
        helper.make_node("Max", ["trim.asked", names["zero"]], ["trim.most"]),
        helper.make_node(
            "Slice", [values, names["zero"], "trim.most", names["one"]], [short]
        ),
    ]  # fmt: skip
    back = [
        helper.make_node("Shape", [values], ["trim.whole"], start=1, end=2),
        helper.make_node("Shape", [short], ["trim.kept"], start=1, end=2),
        helper.make_node("Sub", ["trim.whole", "trim.kept"], ["trim.missing"]),
        helper.make_node("Concat", [names["before"], "trim.missing"], ["trim.pads"], axis=0),
        helper.make_node("Pad", [least, "trim.pads"], [made]),
    ]
    nodes = [*front, *graph.node, *back]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for place, name in enumerate(names):
        if name == old:
            names[place] = new
