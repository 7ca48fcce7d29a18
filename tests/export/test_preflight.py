"""Preflight names what TensorRT would refuse, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from merkit.bundle import Bundle, open_bundle
from merkit.errors import InvalidInputError
from merkit.ort import import_onnxruntime
from merkit_export.cli import main
from merkit_export.tensorrt.checks import examine
from merkit_export.tensorrt.graph import Finding, Graph
from merkit_export.tensorrt.operators import SUPPORTED
from merkit_export.tensorrt.preflight import preflight, profile_findings, summary
from merkit_export.tensorrt.profiles import Sizes, audio_buckets, profiles_of, step_profiles
from merkit_export.tensorrt.restate import restate
from merkit_export.unclip import unclip

REPOSITORY = Path(__file__).resolve().parents[2]
FLOAT, INT8, INT32, INT64 = (getattr(TensorProto, n) for n in ("FLOAT", "INT8", "INT32", "INT64"))


@pytest.fixture(scope="module")
def demonstration() -> Bundle:
    return open_bundle(REPOSITORY / "triton_repo" / "models")


def graph(
    *nodes: onnx.NodeProto,
    kind: int = FLOAT,
    made: int = FLOAT,
    shape: tuple[int | str, ...] = ("batch", 4),
    opset: int = 20,
    **constants: np.ndarray,
) -> Graph:
    """A graph from `x` to `y`."""
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", made, None)
    body = helper.make_graph(list(nodes), "g", [x], [y], stored)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return Graph("step", helper.make_model(body, opset_imports=imports))


def node(kind: str, inputs: str, outputs: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(
        kind, inputs.split(), outputs.split(), name=f"the_{kind.lower()}", **attributes
    )


ONE = np.array(1.0, np.float32)
ZERO = np.array(0, np.int8)
TWO = np.array([2], np.int64)
BAD: dict[str, tuple[Callable[[], Graph], str, str]] = {
    "operator": (lambda: graph(node("Det", "x")), "no such operator", "rewrite"),
    "quantiser": (
        lambda: graph(node("DynamicQuantizeLinear", "x", "y s z"), made=TensorProto.UINT8),
        "no such operator",
        "--target tensorrt",
    ),
    "domain": (
        lambda: graph(node("FusedMatMul", "x x", domain="com.microsoft")),
        "of the domain com.microsoft",
        "--target tensorrt",
    ),
    "type": (
        lambda: graph(node("Clip", "x"), kind=INT64, made=INT64),
        "x is INT64, it takes BF16, FP16, FP32",
        "cast it to FP32",
    ),
    "byte inside": (
        lambda: graph(
            node("Cast", "x", "a", to=TensorProto.UINT8),
            node("Transpose", "a", "b"),
            node("Cast", "b", to=FLOAT),
        ),
        "a is UINT8",
        "edge",
    ),
    "string": (
        lambda: graph(node("Identity", "x"), kind=TensorProto.STRING, made=TensorProto.STRING),
        "its type is STRING",
        "ONNX Runtime",
    ),
    "constant": (
        lambda: graph(node("ReduceSum", "x axes"), node("ArgMax", "x", "axes", axis=0, keepdims=0)),
        "axes must be a constant",
        "write the value",
    ),
    "rank": (
        lambda: graph(node("Reshape", "x to"), to=np.array([1] * 8 + [-1], np.int64)),
        "9 dimensions, 8 at most",
        "merge",
    ),
    "size from values": (
        lambda: graph(
            node("ReduceMax", "x", "most", keepdims=0),
            node("Range", "start most step"),
            kind=INT64,
            made=INT64,
            start=np.array(0, np.int64),
            step=np.array(1, np.int64),
        ),
        "depends on the values of the input x",
        "from a tensor's shape",
    ),
    "size from results": (
        lambda: graph(
            node("ArgMax", "x", "best", keepdims=0),
            node("Expand", "x best"),
        ),
        "depends on what the_argmax (ArgMax) computes",
        "from a tensor's shape",
    ),
    "zero point": (
        lambda: graph(
            node("QuantizeLinear", "x s z", "q"),
            node("DequantizeLinear", "q s z"),
            s=ONE,
            z=np.array(3, np.int8),
        ),
        "zero point is not 0",
        "symmetrically",
    ),
    "unsigned": (
        lambda: graph(
            node("QuantizeLinear", "x s z", "q"),
            node("DequantizeLinear", "q s z"),
            s=ONE,
            z=np.array(0, np.uint8),
        ),
        "q is UINT8",
        "signed INT8",
    ),
    "scale": (
        lambda: graph(
            node("QuantizeLinear", "x s z", "q"),
            node("DequantizeLinear", "q s z"),
            s=ONE * 0,
            z=ZERO,
        ),
        "scale is not above 0",
        "calibrate",
    ),
    "bias": (
        lambda: graph(
            node("DequantizeLinear", "b s", "c"),
            node("Add", "x c"),
            b=np.array([1, 2, 3, 4], np.int32),
            s=ONE,
        ),
        "b is INT32",
        "QuantizeBias=False",
    ),
    "no dequantiser": (
        lambda: graph(
            node("QuantizeLinear", "x s z", "q"), node("Cast", "q", to=FLOAT), s=ONE, z=ZERO
        ),
        "output goes to Cast",
        "DequantizeLinear follow",
    ),
    "pool": (
        lambda: graph(node("MaxPool", "x", kernel_shape=[2]), shape=("batch", 3, 9)),
        "2D and 3D",
        "dimension of 1",
    ),
    "second output": (
        lambda: graph(node("LayerNormalization", "x w", "y m"), w=np.ones(4, np.float32)),
        "only its first output",
        "do not use",
    ),
    "scatter": (
        lambda: graph(
            node("ScatterND", "x i u", reduction="add"),
            i=np.zeros((1, 1), np.int64),
            u=np.ones((1, 4), np.float32),
        ),
        "reduces while it scatters",
        "then reduce",
    ),
    "infinity": (
        lambda: graph(node("Add", "x far"), far=np.full(4, -np.inf, np.float32)),
        "infinity",
        "-1e4",
    ),
    "opset": (lambda: graph(node("Relu", "x"), opset=8), "opset 8", "opset 20"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_fault_is_named_with_its_node_and_a_fix(name: str) -> None:
    make, found, fix = BAD[name]
    findings = list(examine(make()))
    assert found in findings[0].found
    assert fix in findings[0].fix
    assert findings[0].node
    assert len({finding.node for finding in findings}) == len(findings) <= 3, findings


def test_faults_of_one_kind_take_one_line() -> None:
    nodes = [
        Finding("error", "fusion", f"n{i} (Det)", "no such operator", "rewrite") for i in "abc"
    ]
    other = Finding("warning", "fusion", "m (Add)", "it holds NaN", "clamp")
    assert list(summary([nodes[0], other, *nodes[1:]])) == [
        "error: fusion: na (Det): no such operator; rewrite (and 2 more such nodes)",
        "warning: fusion: m (Add): it holds NaN; clamp",
    ]


GOOD = {
    "sizes from shapes": lambda: graph(
        node("Shape", "x", "s", start=0, end=1),
        node("Squeeze", "s", "n"),
        node("Range", "start n step", "r"),
        node("Cast", "r", "f", to=FLOAT),
        node("Unsqueeze", "f axis", "c"),
        node("Add", "x c"),
        start=np.array(0, np.int64),
        step=np.array(1, np.int64),
        axis=np.array([1], np.int64),
    ),
    "a pair around a product": lambda: graph(
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w s z", "e"),
        node("MatMul", "d e"),
        s=ONE,
        z=ZERO,
        w=np.ones((4, 4), np.int8),
    ),
    "bytes at the edge": lambda: graph(
        node("Cast", "x", "f", to=FLOAT), node("Relu", "f"), kind=TensorProto.UINT8
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_tensorrt_takes_passes(name: str) -> None:
    assert not list(examine(GOOD[name]()))


def test_the_table_knows_what_the_source_lists() -> None:
    assert "INT64" in SUPPORTED["Gather"]
    assert "INT64" not in SUPPORTED["Clip"]
    assert not {"Det", "QLinearConv", "MatMulInteger", "Unique"} & set(SUPPORTED)


def test_the_demonstration_bundle_is_ready(demonstration: Bundle) -> None:
    verdicts = {
        v.step: v for v in preflight(demonstration, profiles_of(demonstration, None, None, ()))
    }
    hosted = {name for name, v in verdicts.items() if not v.planned}
    assert hosted == {"separate", "recognize", "punctuate", "preprocess", "voting"}
    for verdict in verdicts.values():
        assert verdict.passed or not verdict.planned, verdict.findings
    with pytest.raises(InvalidInputError, match="'decode' is no ONNX step"):
        preflight(demonstration, profiles_of(demonstration, None, None, ()), ["decode"])


@pytest.mark.parametrize("name", ["face_encoder", "audio_encoder", "text_encoder", "joint_encoder"])
def test_restated_graphs_compute_the_same_at_the_smallest_corner(
    demonstration: Bundle, name: str
) -> None:
    model = onnx.load(demonstration.model_path(name))
    plain = model.SerializeToString()
    assert restate(model)
    step = demonstration.contract.step(name)
    profile = step_profiles(demonstration, step, Sizes())[0]
    rng = np.random.default_rng(0)
    feed = {}
    for value in model.graph.input:
        low = profile[value.name][0]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feed[value.name] = rng.random(low).astype(dtype)
    results = []
    for content in (plain, model.SerializeToString()):
        ort = import_onnxruntime()
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        results.append(session.run(None, feed)[0])
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(*results)


def test_clips_of_whole_numbers_become_maxima_and_minima() -> None:
    nodes = [node("Clip", "x low high"), node("Clip", "x low high", "z"), node("Relu", "x", "r")]
    nodes[1].input[1] = ""  # no lower bound
    clipped = graph(*nodes, kind=INT64, made=INT64, low=np.array(0), high=np.array(5))
    assert not restate(clipped.model)
    made = [(n.op_type, list(n.input)) for n in clipped.model.graph.node]
    assert made == [
        ("Max", ["x", "low"]),
        ("Min", ["y.max", "high"]),
        ("Min", ["x", "high"]),
        ("Relu", ["x"]),
    ]


def test_no_shipped_graph_clips_whole_numbers(demonstration: Bundle) -> None:
    for step in demonstration.contract.steps:
        if step.kind == "onnx":
            model = onnx.load(demonstration.model_path(step.name))
            before = [n.op_type for n in model.graph.node]
            unclip(model.graph)
            assert [n.op_type for n in model.graph.node] == before, step.name


def test_profiles_follow_from_the_contract(demonstration: Bundle, tmp_path: Path) -> None:
    p = demonstration.contract.preprocessing
    longest = round(p.max_audio_seconds * p.sample_rate)
    host = tmp_path / "host.toml"
    host.write_text("max_batch_size = 6\n[steps.face_encoder]\nmax_batch_size = 0\n")
    of = profiles_of(demonstration, host, None, (2.0, p.max_audio_seconds))
    short, long = of("audio_encoder")
    assert short["audio_values_span"][2] == (2 * p.sample_rate,)
    assert long["audio_values_span"][2] == (longest,)
    assert long["audio_values"][2] == (6 * longest,)
    assert long["audio_values"][0] == (0,)
    assert long["audio_length"] == ((1, 1), (3, 1), (6, 1))
    (faces,) = of("face_encoder")
    assert faces["face_grid"][2][0] == 1
    (joint,) = of("joint_encoder")
    assert joint["joint_ids_span"][2][0] > p.max_text_tokens  # the prompt stands around the words
    assert len(audio_buckets(demonstration.contract, Sizes())) == 4
    for wrong in ((2.0,), (4.0, 2.0, 20.0), (0.0, 20.0)):
        with pytest.raises(InvalidInputError, match="buckets"):
            audio_buckets(demonstration.contract, Sizes(buckets=wrong))
    brief = replace(demonstration.contract.preprocessing, max_audio_seconds=0.5)
    contract = replace(demonstration.contract, preprocessing=brief)
    assert audio_buckets(contract, Sizes()) == [2000, 4000, 8000], "none below the shortest sound"
    with pytest.raises(InvalidInputError, match=r"from 0\.1 s on"):
        audio_buckets(contract, Sizes(buckets=(0.05, 0.5)))


def test_profiles_that_cannot_be_are_found(demonstration: Bundle) -> None:
    checked = Graph.read("fusion", demonstration.model_path("fusion"))
    (good,) = step_profiles(demonstration, demonstration.contract.step("fusion"), Sizes())

    def found(**change: object) -> list[Finding]:
        profile = {**good, **change}
        return list(profile_findings(checked, [{k: v for k, v in profile.items() if v}]))  # type: ignore[misc]

    assert not found()
    assert "lacks it" in found(presence=())[0].found
    assert "rank 1" in found(presence=((1,), (1,), (1,)))[0].found
    assert "the graph has [-1, 3]" in found(presence=((2, 3), (1, 3), (4, 3)))[0].found
    assert "the graph has [-1, 3]" in found(presence=((1, 2), (2, 2), (4, 2)))[0].found
    assert "elements" in found(presence=((1, 3), (1, 3), (2**31, 3)))[0].found


def test_the_command_line(
    toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    root = shutil.copytree(toy_bundle.root, tmp_path / "bundle")
    assert main(["preflight", str(root), "--step", "fusion", "--json", str(report)]) == 0
    assert main(["preflight", str(root), "--json", str(report)]) == 1
    out = capsys.readouterr().out
    assert "error: audio_encoder: " in out  # the toy's encoders count along int64
    steps = {step["step"]: step for step in json.loads(report.read_text())["steps"]}
    assert steps["fusion"]["passed"]
    assert not steps["audio_encoder"]["passed"]
    assert main(["preflight", str(root), "--buckets", "3"]) == 2
    assert main(["preflight", str(tmp_path)]) == 2
