"""Half the bytes without changing a value: weights that float16 holds exactly are stored so.

Training rounds weight matrices to half precision when it saves them (`merkit_training.runs`);
left as float32 in the graph, they would double a bundle for nothing. A Cast in front restores
float32, ONNX Runtime folds it away when it loads, and the arithmetic stays float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 1024  # elements; below that a Cast node costs as much as it saves


def store_exact_halves(model: onnx.ModelProto) -> int:
    """Rewrites the graph in place; the number of bytes saved."""
    casts, saved = [], 0
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), values):
            continue
        name, stored = tensor.name, f"{tensor.name}.half"
        tensor.CopyFrom(numpy_helper.from_array(halves, stored))
        casts.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
        saved += halves.nbytes
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    return saved
