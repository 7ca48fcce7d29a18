"""What is stored in fewer bytes comes back exactly; what would not is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from merkit_export.compact import SMALLEST, compact
from merkit_training.runs import rounded

RNG = np.random.default_rng(0)
EXACT = RNG.normal(size=(64, 32)).astype(np.float16).astype(np.float32)
INEXACT = RNG.normal(size=(64, 32)).astype(np.float32)
ROWS = rounded(torch.randn(48, 64, generator=torch.Generator().manual_seed(0)), "int8").numpy()
COLUMNS = np.ascontiguousarray(ROWS.T)  # as torch exports a Linear
KERNELS = rounded(torch.randn(32, 8, 5), "int8").numpy()
ZEROS = np.zeros((64, 32), np.float32)
HUGE = 1e6 * INEXACT  # beyond float16
COUNTED = np.arange(5000)
OTHER = COUNTED[::-1].copy()
CONSTANTS = {"rows": ROWS, "columns": COLUMNS, "kernels": KERNELS, "zeros": ZEROS}
CONSTANTS |= {"exact": EXACT, "inexact": INEXACT, "huge": HUGE, "counted": COUNTED, "other": OTHER}


def model_of(constants: dict[str, NDArray]) -> onnx.ModelProto:
    """A graph that returns its constants."""
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in constants]
    outputs = [
        helper.make_tensor_value_info(
            f"{w.name}_out", TensorProto.FLOAT if w.data_type == 1 else TensorProto.INT64, w.dims
        )
        for w in weights
    ]
    graph = helper.make_graph(nodes, "constants", [], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_every_value_comes_back() -> None:
    model = model_of(CONSTANTS)
    before = model.ByteSize()
    compact(model)
    onnx.checker.check_model(model, full_check=True)
    found = ort.InferenceSession(model.SerializeToString()).run(None, {})
    for name, value in zip(CONSTANTS, found, strict=True):
        assert np.array_equal(value, CONSTANTS[name]), name
    stepped = ROWS.nbytes + COLUMNS.nbytes + KERNELS.nbytes + ZEROS.nbytes
    saved = 3 * stepped // 4 + EXACT.nbytes // 2 + COUNTED.nbytes
    assert before - model.ByteSize() > 0.93 * saved


def test_only_what_is_exact_changes() -> None:
    model = model_of(CONSTANTS)
    compact(model)
    kept = {tensor.name for tensor in model.graph.initializer}
    assert {"inexact", "huge", "other"} < kept
    assert kept.isdisjoint({"exact", "counted", "rows", "columns", "kernels"})


def test_small_constants_stay() -> None:
    model = model_of({"small": np.arange(SMALLEST - 1), "few": np.ones(10, np.float32)})
    before = model.SerializeToString()
    compact(model)
    assert model.SerializeToString() == before
