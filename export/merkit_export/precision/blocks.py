"""Fewer bits for weights alone, and activations that are scaled while running.

Weight-only (MatMulNBits) gives each block of a column its own scale and, at accuracy level 4,
each block of a *row* of activations its own too: a clip's numbers do not depend on its neighbours,
and nothing needs calibrating. Dynamic 8-bit scales the *whole* activation at once, batch and all,
and is for one clip at a time.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx
from onnx import helper, numpy_helper

from merkit_export.precision.fold import CONTRIB, constants, need_contrib, reads
from merkit_export.precision.qdq import places, steps_of

BLOCK = {8: 128, 4: 32}
"""Weights that share a scale, by their bits. 128 take three quarters of the time of 32 (185 rows,
Zen 4), which 4 bits cannot afford."""
INTEGER_PRODUCTS = 4
"""`accuracy_level` that lets the kernel multiply in 8 bits."""


def block_weights(model: onnx.ModelProto, bits: int) -> int:
    """Replaces matrix products by MatMulNBits, in place; how many."""
    from onnxruntime.quantization import matmul_nbits_quantizer

    matmul_nbits_quantizer.logger.setLevel(logging.WARNING)  # it tells of every node it skips
    products = [p.node for p in places(model) if p.node.op_type == "MatMul"]
    for number, node in enumerate(products):
        node.name = f"product_{number}"
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=BLOCK[bits],
        is_symmetric=bits == 4,
        accuracy_level=INTEGER_PRODUCTS,
        nodes_to_include=[node.name for node in products],
    )
    quantizer.process()
    if quantizer.model.model is not model:
        model.CopyFrom(quantizer.model.model)
    drop_unread(model)
    return len(products)


def dynamic_products(model: onnx.ModelProto) -> int:
    """Replaces matrix products by DynamicQuantizeMatMul, in place; how many."""
    weights, graph = constants(model), model.graph
    products = {id(p.node): p for p in places(model) if p.node.op_type == "MatMul"}
    nodes, made = [], {}
    for node in graph.node:
        place = products.get(id(node))
        if place is None:
            nodes.append(node)
            continue
        label = place.weight
        if label not in made:
            steps, sizes = steps_of(numpy_helper.to_array(weights[label]), 1, 8)
            made[label] = [
                numpy_helper.from_array(steps, f"{label}.steps"),
                numpy_helper.from_array(sizes, f"{label}.sizes"),
                numpy_helper.from_array(np.zeros(len(sizes), np.int8), f"{label}.zeros"),
            ]
        inputs = [node.input[0], *(tensor.name for tensor in made[label])]
        nodes.append(
            helper.make_node("DynamicQuantizeMatMul", inputs, list(node.output), domain=CONTRIB)
        )
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensors in made.values() for tensor in tensors)
    need_contrib(model)
    drop_unread(model)
    return len(products)


def drop_unread(model: onnx.ModelProto) -> None:
    """Removes stored tensors that no node reads."""
    read = set[str]().union(*map(reads, model.graph.node))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
