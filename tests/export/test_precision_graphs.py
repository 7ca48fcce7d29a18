"""Quantised, halved and fused graphs compute what the exported one does, within their bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from merkit.backends.sessions import Session
from merkit.contract import StepSpec
from merkit.errors import InvalidInputError
from merkit_export import storage
from merkit_export.precision import blocks, fuse, half, qdq, ranges
from merkit_export.precision.fold import fold

STEP = StepSpec("encoder", "onnx", ("x",), ("y",))
HIDDEN, HEADS, LENGTH = 64, 4, 9


def tensor(name: str, *shape: int, scale: float = 0.2) -> onnx.TensorProto:
    seed = sum(map(ord, name))
    values = np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def heads(name: str, source: str) -> list[onnx.NodeProto]:
    """A projection with bias, split into heads."""
    return [
        node("MatMul", f"{source} w_{name}", f"{name}_product"),
        node("Add", f"{name}_product b_{name}", f"{name}_biased"),
        node("Reshape", f"{name}_biased split", f"{name}_split"),
        node("Transpose", f"{name}_split", f"{name}_heads", perm=[0, 2, 1, 3]),
    ]


def encoder(causal: bool = False) -> onnx.ModelProto:
    """A convolution, attention as torch exports it, a residual sum, a root norm, a projection."""
    nodes = [
        node("Conv", "x w_conv b_conv", "frames", kernel_shape=[3], pads=[1, 1]),
        node("Transpose", "frames", "start", perm=[0, 2, 1]),
        *heads("q", "start"), *heads("k", "start"), *heads("v", "start"),
        node("Transpose", "k_heads", "k_turned", perm=[0, 1, 3, 2]),
        node("MatMul", "q_heads k_turned", "scores"),
        node("Mul", "scores root", "scaled"),
        node("Add", "scaled causal", "masked") if causal else node("Identity", "scaled", "masked"),
        node("Softmax", "masked", "shares", axis=-1),
        node("IsNaN", "shares", "empty"),
        node("Where", "empty zero shares", "safe"),
        node("MatMul", "safe v_heads", "mixed"),
        node("Transpose", "mixed", "joined", perm=[0, 2, 1, 3]),
        node("Reshape", "joined join", "flat"),
        node("MatMul", "flat w_o", "projected"),
        node("Add", "projected b_o", "attended"),
        node("Add", "start attended", "sum"),
        node("Pow", "sum two", "squares"),
        node("ReduceMean", "squares last", "mean", keepdims=1),
        node("Add", "mean epsilon", "shifted"),
        node("Sqrt", "shifted", "deviation"),
        node("Reciprocal", "deviation", "inverse"),
        node("Mul", "sum inverse", "unit"),
        node("Mul", "gain unit", "normed"),
        node("MatMul", "normed w_out", "out"),
        node("Add", "out sum", "y"),
    ]  # fmt: skip
    weights = [tensor(f"w_{n}", HIDDEN, HIDDEN) for n in ("q", "k", "v", "o", "out")]
    weights += [tensor(f"b_{n}", HIDDEN) for n in ("q", "k", "v", "o", "conv")]
    weights += [tensor("w_conv", HIDDEN, 16, 3), tensor("gain", HIDDEN, scale=1.0)]
    stored = {
        "split": np.array([0, -1, HEADS, HIDDEN // HEADS]),
        "join": np.array([0, -1, HIDDEN]),
        "last": np.array([-1]),
        "root": np.float32((HIDDEN / HEADS) ** -0.5),
        "zero": np.float32(0),
        "two": np.float32(2),
        "epsilon": np.float32(1e-6),
        "causal": np.triu(np.full((LENGTH, LENGTH), -3.4e38, np.float32), 1),
    }
    weights += [numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items()]
    wire = {"x": ["batch", 16, "time"], "y": ["batch", "time", HIDDEN]}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in wire.items()]
    graph = helper.make_graph(nodes, "encoder", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def folded(tmp_path: Path) -> onnx.ModelProto:
    """The encoder as every precision is made from it."""
    storage.save(encoder(), tmp_path / "exported.onnx")
    return fold(tmp_path / "exported.onnx", tmp_path / "folded.onnx")


def clips(count: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(0, 1, (1, 16, LENGTH)).astype(np.float32)} for _ in range(count)]


def run(model: onnx.ModelProto, x: np.ndarray, optimised: Path | None = None) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if optimised:
        options.optimized_model_filepath = str(optimised)
    session = ort.InferenceSession(model.SerializeToString(), options)
    return Session(STEP, session)({"x": x})["y"]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def measured(model: onnx.ModelProto, folder: Path, style: qdq.Style, method: ranges.Method):
    names = qdq.activations(model, style)
    return ranges.measure(model, folder / "watched.onnx", STEP, names, clips(), method, 1)


@pytest.mark.parametrize("method", ranges.METHODS)
@pytest.mark.parametrize("style", [qdq.CPU, qdq.TENSORRT, qdq.Style(weight_bits=7)])
def test_static_int8_stays_close(
    folded: onnx.ModelProto, tmp_path: Path, style: qdq.Style, method: ranges.Method
) -> None:
    x = clips(4)[-1]["x"]
    want = run(folded, x)
    assert qdq.quantise(folded, measured(folded, tmp_path, style, method), style) == 6
    onnx.checker.check_model(folded, full_check=True)
    assert cosine(run(folded, x), want) > 0.995


def test_static_int8_runs_in_integer_kernels(folded: onnx.ModelProto, tmp_path: Path) -> None:
    qdq.quantise(folded, measured(folded, tmp_path, qdq.CPU, "minmax"), qdq.CPU)
    run(folded, clips()[0]["x"], tmp_path / "optimised.onnx")
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["MatMulIntegerToFloat"]) == (1, 5)
    assert kinds["Conv"] == 0
    assert kinds["MatMul"] + kinds["FusedMatMul"] == 2  # attention's own, of activations alone


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of it when it loads: how many nodes of each kind."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options)
    return Counter(n.op_type for n in onnx.load(folder / "optimised.onnx").graph.node)


def layer(*sizes: int | str) -> onnx.ModelProto:
    """y = norm(x + (x w_q + b_q)), x of these sizes."""
    nodes = [
        node("MatMul", "x w_q", "product"),
        node("Add", "product b_q", "biased"),
        node("Add", "x biased", "sum"),
        node("LayerNormalization", "sum gain b_k", "y", axis=-1),
    ]
    weights = [tensor("w_q", HIDDEN, HIDDEN), *(tensor(n, HIDDEN) for n in ("b_q", "b_k", "gain"))]
    wire = [helper.make_tensor_value_info(n, TensorProto.FLOAT, sizes) for n in "xy"]
    graph = helper.make_graph(nodes, "layer", wire[:1], wire[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_product_whose_sizes_are_known_keeps_its_bits(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1, (1, LENGTH, HIDDEN)).astype(np.float32)
    model = layer(1, LENGTH, HIDDEN)
    want = run(model, x)
    assert qdq.quantise(model, {"x": (-4.0, 4.0)}, qdq.CPU) == 1
    onnx.checker.check_model(model)
    kinds = optimised(model, tmp_path)
    assert (kinds["MatMulIntegerToFloat"], kinds["Gemm"], kinds["MatMul"]) == (1, 0, 0)
    assert [n.op_type for n in model.graph.node].count("Add") == 1  # its bias is in the product
    assert cosine(run(model, x), want) > 0.999


def test_a_gemm_becomes_a_product_of_8_bits() -> None:
    x = np.random.default_rng(0).normal(0, 1, (3, HIDDEN)).astype(np.float32)
    for turned in (0, 1):
        wire = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", HIDDEN]) for n in "xy"
        ]
        gemm = node("Gemm", "x w_q b_q", "y", transB=turned)
        weights = [tensor("w_q", HIDDEN, HIDDEN), tensor("b_q", HIDDEN)]
        graph = helper.make_graph([gemm], "gemm", wire[:1], wire[1:], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        want = run(model, x)
        assert qdq.quantise(model, {"x": (-4.0, 4.0)}, qdq.CPU) == 1
        assert [n.op_type for n in model.graph.node] == ["QuantizeLinear", "MatMulIntegerToFloat"]
        assert cosine(run(model, x), want) > 0.999


def test_a_layer_over_few_samples_stays_float() -> None:
    nodes = [node("Conv", "x w_first", "y", kernel_shape=[10], strides=[5])]
    wire = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", c, "t"])
        for n, c in (("x", 1), ("y", 512))
    ]
    graph = helper.make_graph(nodes, "first", wire[:1], wire[1:], [tensor("w_first", 512, 1, 10)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert qdq.activations(model, qdq.CPU) == []
    assert qdq.quantise(model, {}, qdq.CPU) == 0


def test_a_sum_and_its_norm_stay_apart_on_cpus_alone(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1, (2, LENGTH, HIDDEN)).astype(np.float32)
    for cpu in (True, False):
        model = layer("batch", "time", HIDDEN)
        want = run(model, x)
        assert optimised(model, tmp_path)["SkipLayerNormalization"] == 1  # as exported
        fuse.fuse(model, cpu)
        assert optimised(model, tmp_path)["SkipLayerNormalization"] == (0 if cpu else 1)
        assert np.abs(run(model, x) - want).max() < 1e-5


def test_tensorrt_style_is_symmetric_with_float_bias(
    folded: onnx.ModelProto, tmp_path: Path
) -> None:
    found = measured(folded, tmp_path, qdq.TENSORRT, "minmax")
    qdq.quantise(folded, found, qdq.TENSORRT)
    stored = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer}
    for linear in (n for n in folded.graph.node if n.op_type.endswith("quantizeLinear")):
        zero = stored[linear.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    conv = next(n for n in folded.graph.node if n.op_type == "Conv")
    assert stored[conv.input[2]].dtype == np.float32


def test_a_neighbour_changes_nothing_under_fixed_scales(
    folded: onnx.ModelProto, tmp_path: Path
) -> None:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(folded)
    qdq.quantise(fixed, measured(fixed, tmp_path, qdq.CPU, "minmax"), qdq.CPU)
    blocked = onnx.ModelProto()
    blocked.CopyFrom(folded)
    assert blocks.block_weights(blocked, 8) == 5
    assert blocks.dynamic_products(folded) == 5
    x = clips()[0]["x"]
    loud = np.concatenate([x, 5 * clips()[1]["x"]])
    for model, most in ((fixed, 1e-5), (blocked, 1e-5)):
        assert np.abs(run(model, loud)[0] - run(model, x)[0]).max() < most
    assert np.abs(run(folded, loud)[0] - run(folded, x)[0]).max() > 1e-3


@pytest.mark.parametrize(("bits", "least"), [(8, 0.999), (4, 0.95)])
def test_weight_only_stays_close(folded: onnx.ModelProto, bits: int, least: float) -> None:
    x = clips()[0]["x"]
    want = run(folded, x)
    blocks.block_weights(folded, bits)
    assert cosine(run(folded, x), want) > least
    assert "w_q" not in {t.name for t in folded.graph.initializer}


def test_fusing_changes_nothing_but_the_nodes(folded: onnx.ModelProto) -> None:
    x = np.concatenate([c["x"] for c in clips()])
    want, before = run(folded, x), len(folded.graph.node)
    assert fuse.fuse(folded) == 3
    kinds = {n.op_type for n in folded.graph.node}
    assert {"MultiHeadAttention", "SkipSimplifiedLayerNormalization"} <= kinds
    assert len(folded.graph.node) < before / 2
    assert np.abs(run(folded, x) - want).max() < 1e-5


def test_a_mask_that_is_not_understood_is_not_fused(tmp_path: Path) -> None:
    storage.save(encoder(causal=True), tmp_path / "causal.onnx")
    model = fold(tmp_path / "causal.onnx", tmp_path / "folded.onnx")
    x = clips()[0]["x"]
    want = run(model, x)
    assert fuse.fuse_attention(model) == 0
    fuse.fuse(model)
    assert np.abs(run(model, x) - want).max() < 1e-5


def looped() -> onnx.ModelProto:
    """y[i] = x w + shift, three times: as adopted encoders, whose body reads what lies outside."""
    constants = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32) * 2, "w"),
        numpy_helper.from_array(np.float32([1, 2, 3, 4]), "shift"),
        numpy_helper.from_array(np.array(3), "trips"),
        numpy_helper.from_array(np.array(True), "go"),
    ]
    body = helper.make_graph(
        [
            helper.make_node("Add", ["scaled", "shift"], ["one"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("one", TensorProto.FLOAT, [1, 4]),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scaled"]),
        helper.make_node("Loop", ["trips", "go"], ["y"], body=body),
    ]
    graph = helper.make_graph(
        nodes,
        "looped",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 1, 4])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_only_a_loops_body_reads_stays() -> None:
    x = np.float32([[1, 1, 1, 1]])
    want = np.tile(np.float32([[3, 4, 5, 6]]), (3, 1, 1))
    model = looped()
    assert fuse.fuse(model) == 0
    blocks.drop_unread(model)
    qdq.quantise(model, {}, qdq.CPU)  # too small to change anything
    changed = [model, half.halve(looped(), brain=False)]
    for made in changed:
        session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], want)


def test_half_precision_clamps_fills_first(tmp_path: Path) -> None:
    storage.save(encoder(causal=True), tmp_path / "causal.onnx")
    model = fold(tmp_path / "causal.onnx", tmp_path / "folded.onnx")
    x = clips()[0]["x"]
    want = run(model, x)
    made = half.halve(model, brain=False)
    found = run(made, x)
    assert np.isfinite(found).all()
    assert cosine(found, want) > 0.9999
    fill = min(float(numpy_helper.to_array(t).min()) for t in made.graph.initializer
               if t.data_type == TensorProto.FLOAT16 and t.dims)  # fmt: skip
    assert fill == pytest.approx(half.FILL)


@pytest.mark.parametrize("brain", [False, True])
def test_weights_are_halved_one_by_one_as_they_are_together(
    brain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protobuf ends at 2 GB: what infers types must not see the weights."""
    storage.save(encoder(causal=True), tmp_path / "causal.onnx")
    model = fold(tmp_path / "causal.onnx", tmp_path / "folded.onnx")
    together, one_by_one = onnx.ModelProto(), onnx.ModelProto()
    for copy in (together, one_by_one):
        copy.CopyFrom(model)
    want = half.halve(together, brain, taken_from=10**12)
    infer = half.infer_shapes

    def bare(model: onnx.ModelProto) -> onnx.ModelProto:
        assert model.ByteSize() < 10_000
        return infer(model)

    monkeypatch.setattr(half, "infer_shapes", bare)
    made = half.halve(one_by_one, brain, taken_from=500)
    assert sum(len(t.raw_data) for t in made.graph.initializer) > 40_000
    assert made.SerializeToString(deterministic=True) == want.SerializeToString(deterministic=True)


def test_bfloat16_rounds_to_nearest(folded: onnx.ModelProto) -> None:
    want = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer}["gain"]
    made = half.halve(folded, brain=True)
    assert all(t.data_type != TensorProto.FLOAT16 for t in made.graph.initializer)
    gain = next(t for t in made.graph.initializer if t.name == "gain")
    bits = np.frombuffer(gain.raw_data, np.uint16).astype(np.uint32) << 16
    assert gain.data_type == TensorProto.BFLOAT16
    assert np.abs(bits.view(np.float32) / want - 1).max() <= 2**-8


def test_bfloat16_keeps_what_float16_cannot_hold() -> None:
    model = looped()
    small = next(t for t in model.graph.initializer if t.name == "w")
    want = np.float32([[1e-9, 3e38, -2.5, 0]] * 4)
    small.CopyFrom(numpy_helper.from_array(want, "w"))
    made = {t.name: t for t in half.halve(model, brain=True).graph.initializer}["w"]
    bits = np.frombuffer(made.raw_data, np.uint16).astype(np.uint32) << 16
    np.testing.assert_allclose(bits.view(np.float32).reshape(4, 4), want, rtol=2**-8)


def test_ranges_cut_outliers_unless_asked_for_bounds(
    folded: onnx.ModelProto, tmp_path: Path
) -> None:
    feeds = [{"x": np.random.default_rng(0).normal(0, 1, (1, 16, 4000)).astype(np.float32)}]
    feeds[0]["x"][0, 0, 0] = 100.0
    found = {
        method: ranges.measure(folded, tmp_path / "w.onnx", STEP, ["x"], feeds, method, 1)["x"]
        for method in ranges.METHODS
    }
    assert found["minmax"][1] == 100
    assert 3 < found["percentile"][1] < 10
    assert found["entropy"][1] < 100


def test_ranges_need_clips(folded: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no clip to calibrate 'encoder'"):
        ranges.measure(folded, tmp_path / "w.onnx", STEP, ["x"], [], "minmax", 1)


def test_large_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    model = encoder()
    before = model.SerializeToString(deterministic=True)
    size = storage.save(model, tmp_path / "model.onnx", limit=1000)
    assert model.SerializeToString(deterministic=True) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert size == storage.file_bytes(tmp_path / "model.onnx")
    x = clips()[0]["x"]
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    assert np.array_equal(session.run(["y"], {"x": x})[0], run(encoder(), x))
    storage.save(model, tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_too_large_for_one_file_is_folded_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merkit_export.precision.fold.EXTERNAL_FROM", 0)
    storage.save(encoder(), tmp_path / "exported.onnx", limit=1000)
    model = fold(tmp_path / "exported.onnx", tmp_path / "folded" / "folded.onnx")
    assert (tmp_path / "folded" / "folded.onnx.data").stat().st_size > 80_000
    x = clips()[0]["x"]
    assert np.abs(run(model, x) - run(encoder(), x)).max() < 1e-5
