"""16 bits for GPUs: half the bytes, and tensor cores; float32 where a sum would overflow.

float16 ends at 65,504: a mask's fill of -3.4e38 becomes minus infinity, and a row of nothing but
infinities NaN; the mean of squares of a norm overflows just so. So fills are clamped first, and
norms and sums stay float32. bfloat16 has float32's range, but for its last value, which fills are;
its weights are rounded from float32, since on the way through float16 small ones would be lost.
Only CUDA and TensorRT run it.

Which values are float32 is inferred by onnx, whose inference ends at protobuf's 2 GB, and the
converter infers too. So both see the graph without its weights, which are converted one by one and
put back; of two copies of a model there is never need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

from merkit_export.precision.fold import reads

FILL = -1e4
"""What a mask's fill becomes: exp(-1e4) is 0 in every precision."""
EXACT = ("Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Reciprocal", "CumSum", "Range")
"""Operators of norms and counts, which stay float32."""
TAKEN_FROM = 1024
"""Bytes of a tensor that the converter need not see; values that decide shapes are smaller."""


def halve(model: onnx.ModelProto, brain: bool, taken_from: int = TAKEN_FROM) -> onnx.ModelProto:
    """The graph in float16, or bfloat16 if `brain`; its inputs and outputs stay float32.

    `model` is used up: its weights, of `taken_from` bytes on, move into what is returned.
    """
    from onnxruntime.transformers import float16

    clamp_fills(model)
    model, weights = _take_weights(model, taken_from)
    exact = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if brain}
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *EXACT]
    made: onnx.ModelProto = float16.convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=True, op_block_list=blocked
    )
    if brain:
        _to_brain(made, exact)
    for tensor in made.graph.initializer:
        if tensor.name in weights:
            _give_back(tensor, weights.pop(tensor.name))
    _sort(made.graph)
    del made.graph.value_info[:]
    return made


def _take_weights(
    model: onnx.ModelProto, least: int
) -> tuple[onnx.ModelProto, dict[str, TensorProto]]:
    """The graph with empty tensors in the place of large ones in float32, which knows of which type
    every value inside it is; and what was taken, by name."""
    taken: dict[str, TensorProto] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) >= least:
            whole = taken[tensor.name] = TensorProto()
            whole.CopyFrom(tensor)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL  # it has a shape, and no content here
    bare: onnx.ModelProto = infer_shapes(model)
    for tensor in bare.graph.initializer:
        if tensor.name in taken:
            tensor.ClearField("data_location")
            tensor.dims[:] = [0]
    return bare, taken


def _give_back(tensor: TensorProto, whole: TensorProto) -> None:
    """Fills an empty tensor with what it held, in the type that it now has."""
    from onnxruntime.transformers import float16

    kind = tensor.data_type
    if kind == TensorProto.FLOAT16:
        float16.convert_tensor_float_to_float16(whole)
    elif kind == TensorProto.BFLOAT16:
        whole.CopyFrom(_brain_tensor(whole, numpy_helper.to_array(whole)))
    tensor.CopyFrom(whole)


def clamp_fills(model: onnx.ModelProto) -> int:
    """Replaces stored values beyond float16's range by the fill; how many tensors had some."""
    changed = 0
    limit = float(np.finfo(np.float16).max)
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size and float(values.min()) < -limit:
            clamped = np.where(values < -limit, np.float32(FILL), values)
            tensor.CopyFrom(numpy_helper.from_array(clamped, tensor.name))
            changed += 1
    return changed


def _to_brain(model: onnx.ModelProto, exact: Mapping[str, NDArray[Any]]) -> None:
    """Every float16 becomes bfloat16, which has the same number of bytes; stored tensors from what
    they were `exact`ly, where that is known."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = exact.get(tensor.name)
            tensor.CopyFrom(
                _brain_tensor(tensor, numpy_helper.to_array(tensor) if values is None else values)
            )
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            elif attribute.t.data_type == TensorProto.FLOAT16:
                held = numpy_helper.to_array(attribute.t)
                attribute.t.CopyFrom(_brain_tensor(attribute.t, held))


def _brain_tensor(tensor: TensorProto, values: NDArray[Any]) -> TensorProto:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return helper.make_tensor(
        tensor.name, TensorProto.BFLOAT16, list(tensor.dims), rounded.tobytes(), raw=True
    )


def _sort(graph: onnx.GraphProto) -> None:
    """Puts nodes after what they read: the converter appends its Casts at the end."""
    ready = {t.name for t in graph.initializer} | {v.name for v in graph.input} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if reads(node) <= ready:
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError(f"{graph.name} reads {sorted(reads(later[0]) - ready)}")
        waiting = later
    del graph.node[:]
    graph.node.extend(ordered)
