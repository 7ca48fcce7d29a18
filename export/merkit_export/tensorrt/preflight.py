"""Would TensorRT take these graphs? Asked of a table, anywhere, before a GPU hour is spent.

The parser stops at the first node it does not know, and a build at the first shape it cannot
bound. Here every node of every graph is held against what TensorRT publishes (`operators`), each
finding names the node and says what to do, and none needs TensorRT or a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper, shape_inference

from merkit.bundle import Bundle, onnx_steps
from merkit.errors import BundleCorruptError, InvalidInputError
from merkit.plans import ON_HOST, Profile
from merkit_export.tensorrt import operators as table
from merkit_export.tensorrt.restate import restate

Severity = Literal["error", "warning"]
ORT_DOMAIN = "com.microsoft"
ORT_ONLY = (
    "it is ONNX Runtime's own; build with --target tensorrt, which writes ONNX's operators alone"
)


@dataclass(frozen=True)
class Finding:
    """One thing that TensorRT would refuse (`error`) or do worse than it could (`warning`)."""

    severity: Severity
    step: str
    node: str
    """Name and operator of the node, or of the input."""
    found: str
    fix: str

    def line(self) -> str:
        """One line of text."""
        return f"{self.severity}: {self.step}: {self.node}: {self.found}; {self.fix}"


@dataclass(frozen=True)
class Verdict:
    """What is to be expected of one step."""

    step: str
    nodes: int
    planned: bool
    """Whether a plan is to be built; the others stay on ONNX Runtime whatever is found."""
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found that TensorRT would refuse."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}


def preflight(
    bundle: Bundle,
    profiles: Callable[[str], Sequence[Profile]],
    steps: Sequence[str] | None = None,
) -> list[Verdict]:
    """Examines the ONNX graphs of a bundle.

    Args:
        bundle: an opened bundle.
        profiles: gives the shapes that a step's plan would take.
        steps: those to build plans for; default: all but `plans.ON_HOST`.

    Raises:
        InvalidInputError: an unknown step.
        BundleCorruptError: a graph cannot be read.
    """
    known = [step.name for step in onnx_steps(bundle.contract)]
    wanted = planned_steps(bundle) if steps is None else list(steps)
    for name in wanted:
        if name not in known:
            raise InvalidInputError(
                f"{name!r} is no ONNX step of the bundle", f"one of {', '.join(known)}", "choose"
            )
    verdicts = []
    for name in known:
        graph = Graph.read(name, bundle.model_path(name))
        findings = [*examine(graph)]
        if name in wanted:
            findings += profile_findings(graph, profiles(name))
        nodes = len(graph.model.graph.node)
        verdicts.append(Verdict(name, nodes, name in wanted, tuple(findings)))
    return verdicts


def planned_steps(bundle: Bundle) -> list[str]:
    """The steps that plans are built for by default."""
    return [s.name for s in onnx_steps(bundle.contract) if s.name not in ON_HOST]


class Graph:
    """A graph with its local functions unfolded and every value's type and shape inferred."""

    def __init__(self, step: str, model: onnx.ModelProto) -> None:
        self.step = step
        if model.functions:
            model = inliner.inline_local_functions(model)
        self.model = shape_inference.infer_shapes(model, data_prop=True)
        graph = self.model.graph
        self.constants = {t.name: t for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.inputs = {v.name: v for v in graph.input if v.name not in self.constants}
        values = {v.name: v for v in [*graph.value_info, *graph.input, *graph.output]}
        self.types = {name: v.type.tensor_type.elem_type for name, v in values.items()}
        self.types |= {name: t.data_type for name, t in self.constants.items()}
        self.ranks = {
            name: len(v.type.tensor_type.shape.dim)
            for name, v in values.items()
            if v.type.tensor_type.HasField("shape")
        }
        self.ranks |= {name: len(t.dims) for name, t in self.constants.items()}

    @staticmethod
    def read(step: str, path: Path) -> Graph:
        """Reads a graph as the builder hands it over, without weights that lie beside it."""
        try:
            model = onnx.load(path, load_external_data=False)
            restate(model)
            return Graph(step, model)
        except Exception as error:  # protobuf and onnx raise a dozen types
            raise BundleCorruptError(
                f"{path} cannot be read ({str(error).strip().splitlines()[0]})",
                "a valid ONNX graph",
                "export the bundle again",
            ) from error

    def finding(
        self, node: onnx.NodeProto | str, found: str, fix: str, severity: Severity = "error"
    ) -> Finding:
        """A finding of this step."""
        name = node if isinstance(node, str) else f"{node.name or node.output[0]} ({node.op_type})"
        return Finding(severity, self.step, name, found, fix)

    def type_of(self, name: str) -> str:
        """TensorRT's name of a value's type; "" where it is not known."""
        kind = self.types.get(name, TensorProto.UNDEFINED)
        if kind == TensorProto.UNDEFINED:
            return ""
        return table.TYPE_NAMES.get(kind) or str(TensorProto.DataType.Name(kind))

    def constant(self, name: str) -> bool:
        """Whether a value is known when the network is built."""
        maker = self.makers.get(name)
        if maker is None:
            return name in self.constants
        if maker.op_type == "Constant":
            return True
        folds = maker.op_type in ("Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze")
        return folds and all(self.constant(n) for n in maker.input if n)

    def array(self, name: str) -> np.ndarray[Any, Any] | None:
        """A constant's values where they lie in the file itself, else None."""
        tensor = self.constants.get(name)
        maker = self.makers.get(name)
        if tensor is None and maker is not None and maker.op_type == "Constant":
            tensor = next((a.t for a in maker.attribute if a.name == "value"), None)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        values: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
        return values


def examine(graph: Graph) -> Iterator[Finding]:
    """Every check of a graph that does not depend on profiles."""
    yield from _opset(graph)
    yield from _wire(graph)
    yield from _constants(graph)
    for node in graph.model.graph.node:
        yield from _operator(graph, node)
        yield from _constant_inputs(graph, node)
        yield from _ranks(graph, node)
        yield from _shapes(graph, node)
        if special := _SPECIAL.get(node.op_type):
            yield from special(graph, node)


def profile_findings(graph: Graph, profiles: Sequence[Profile]) -> Iterator[Finding]:
    """Whether the profiles name every input of open size, in its rank, and stay within limits."""
    for index, profile in enumerate(profiles):
        for name, value in graph.inputs.items():
            dims = value.type.tensor_type.shape.dim
            sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in dims]
            if name not in profile:
                if -1 in sizes:
                    fix = "give it a range of sizes"
                    yield graph.finding(f"input {name}", f"profile {index} lacks it", fix)
                continue
            yield from _profile_input(graph, index, name, sizes, profile)


def _profile_input(
    graph: Graph, index: int, name: str, sizes: list[int], profile: Profile
) -> Iterator[Finding]:
    low, usual, high = profile[name]
    where = f"input {name}"
    if not len(low) == len(usual) == len(high) == len(sizes):
        found = f"profile {index} has rank {len(low)}, the graph {len(sizes)}"
        yield graph.finding(where, found, "export the bundle again")
        return
    ordered = all(0 <= a <= b <= c for a, b, c in zip(low, usual, high, strict=True))
    fixed = all(n in (-1, a) and n in (-1, c) for n, a, c in zip(sizes, low, high, strict=True))
    if not (ordered and fixed):
        found = f"profile {index} asks for {low} to {high}, usually {usual}; the graph has {sizes}"
        yield graph.finding(where, found, "let 0 <= smallest <= usual <= largest")
    if np.prod([float(n) for n in high]) > table.MAX_ELEMENTS:
        found = f"profile {index} lets it grow to {high}, more than {table.MAX_ELEMENTS} elements"
        yield graph.finding(where, found, "lower --max-batch")


def _opset(graph: Graph) -> Iterator[Finding]:
    for opset in graph.model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version not in table.OPSETS:
            first, last = table.OPSETS[0], table.OPSETS[-1]
            found = f"opset {opset.version}, where the parser takes {first} to {last}"
            yield graph.finding("the graph", found, "export it at opset 20")


def _wire(graph: Graph) -> Iterator[Finding]:
    for value in [*graph.inputs.values(), *graph.model.graph.output]:
        kind = graph.type_of(value.name)
        if kind not in table.TYPE_NAMES.values():
            fix = "leave this step to ONNX Runtime, or cast before and after it"
            yield graph.finding(f"tensor {value.name}", f"its type is {kind}", fix)


def _constants(graph: Graph) -> Iterator[Finding]:
    for name in graph.constants:
        kind = graph.type_of(name)
        if kind not in table.TYPE_NAMES.values():
            fix = "store it in a type that TensorRT has"
            yield graph.finding(f"constant {name}", f"its type is {kind}", fix)
        values = graph.array(name)
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            fix = "clamp mask fills to -1e4 before lowering the precision"
            yield graph.finding(f"constant {name}", "it holds infinity or NaN", fix, "warning")


def _operator(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.domain not in ("", "ai.onnx"):
        fix = ORT_ONLY if node.domain == ORT_DOMAIN else "write it with ONNX's own operators"
        yield graph.finding(node, f"the operator is of the domain {node.domain}", fix)
        return
    types = table.SUPPORTED.get(node.op_type)
    if types is None:
        fix = table.INSTEAD.get(node.op_type, "rewrite it with supported operators")
        yield graph.finding(node, "TensorRT has no such operator", fix)
        return
    if node.op_type in table.UNTYPED:
        return
    for name in _typed_values(node):
        kind = graph.type_of(name)
        edge = name in graph.inputs or any(v.name == name for v in graph.model.graph.output)
        if kind and kind not in types and not (kind == "UINT8" and edge and "UINT8" in types):
            wanted = ", ".join(sorted(types))
            fix = _type_fix(node, kind, types)
            yield graph.finding(node, f"{name} is {kind}, it takes {wanted}", fix)


def _typed_values(node: onnx.NodeProto) -> Iterator[str]:
    """The values whose type the table speaks of."""
    if node.op_type in ("Constant", "ConstantOfShape"):
        yield node.output[0]
    elif node.op_type == "Cast":
        yield from (node.input[0], node.output[0])
    else:
        position = table.DATA_INPUT.get(node.op_type, 0)
        if position < len(node.input):
            yield node.input[position]


def _type_fix(node: onnx.NodeProto, kind: str, types: Collection[str]) -> str:
    if node.op_type == "DequantizeLinear" and kind == "INT32":
        return "leave biases unquantised (QuantizeBias=False)"
    if node.op_type == "DequantizeLinear" or kind == "INT8":
        return "quantise to signed INT8 and symmetrically: build with --target tensorrt"
    if kind == "UINT8":
        return "TensorRT has UINT8 at a network's edge alone: cast it there"
    return f"cast it to {next(t for t in ('INT32', 'FP32', 'BOOL') if t in types)}"


def _constant_inputs(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    for position in table.CONSTANT_INPUTS.get(node.op_type, ()):
        given = position < len(node.input) and node.input[position]
        if given and not graph.constant(given):
            found = f"{given} must be a constant of the graph"
            yield graph.finding(node, found, "write the value into the graph")


def _ranks(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    for name in node.output:
        if graph.ranks.get(name, 0) > table.MAX_RANK:
            found = f"{name} has {graph.ranks[name]} dimensions, {table.MAX_RANK} at most"
            yield graph.finding(node, found, "merge dimensions")


def _shapes(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    """Shapes that depend on what tensors hold, where TensorRT wants them from shapes."""
    for position in table.SHAPE_INPUTS.get(node.op_type, ()):
        name = node.input[position] if position < len(node.input) else ""
        if name and (cause := _shape_cause(graph, name)):
            fix = "take the size from a tensor's shape, as ragged inputs do by their span"
            yield graph.finding(node, f"a size it uses depends on {cause}", fix)
    if node.op_type in ("NonZero", "NonMaxSuppression"):
        fix = "rewrite it with Where; its result has a size of its own for each clip"
        yield graph.finding(node, "its output's size depends on values", fix, "warning")


def _shape_cause(graph: Graph, name: str) -> str:
    """What makes a size unknowable before the network runs; "" where nothing does."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        value = waiting.pop()
        if value in seen or not value or value in graph.constants:
            continue
        seen.add(value)
        if value in graph.inputs:
            dims = graph.inputs[value].type.tensor_type.shape.dim
            if len(dims) <= 1 and all(d.HasField("dim_value") for d in dims):
                continue  # a network input of sizes: TensorRT reads it on the host
            return f"the values of the input {value}"
        maker = graph.makers.get(value)
        if maker is None or maker.op_type in ("Shape", "Size", "Constant"):
            continue
        if maker.op_type not in table.SHAPE_ARITHMETIC:
            return f"what {maker.name or maker.output[0]} ({maker.op_type}) computes"
        waiting.extend(maker.input)
    return ""


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    found = next((a for a in node.attribute if a.name == name), None)
    return None if found is None else onnx.helper.get_attribute_value(found)


def _pool(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if graph.ranks.get(node.input[0], 4) not in (4, 5):
        yield graph.finding(node, "only 2D and 3D pooling are supported", "add a dimension of 1")
    if set(_attribute(node, "dilations") or [1]) != {1}:
        yield graph.finding(node, "dilated pooling is not supported", "pool without dilations")


def _quantize(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    scale = graph.array(node.input[1]) if len(node.input) > 1 else None
    if len(node.input) < 2 or not node.input[1]:
        yield graph.finding(node, "it has no scale", "calibrate and quantise again")
    elif scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
        yield graph.finding(node, "its scale is not above 0", "calibrate and quantise again")
    zero = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is not None and np.any(zero.astype(np.int32)):
        fix = "quantise symmetrically: build with --target tensorrt"
        yield graph.finding(node, "its zero point is not 0", fix)
    if node.op_type == "QuantizeLinear":
        readers = [n.op_type for n in graph.model.graph.node if node.output[0] in n.input]
        if set(readers) - {"DequantizeLinear", "Reshape", "Transpose"}:
            fix = "let a DequantizeLinear follow it"
            yield graph.finding(node, f"its output goes to {', '.join(sorted(readers))}", fix)


def _only_first_output(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if any(node.output[1:]):
        yield graph.finding(node, "only its first output is supported", "do not use the others")


def _scatter(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if (_attribute(node, "reduction") or b"none") != b"none":
        yield graph.finding(node, "it reduces while it scatters", "scatter, then reduce")


def _top_k(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if _attribute(node, "sorted") == 0:
        yield graph.finding(node, "unsorted results are not supported", "set sorted to 1")


def _attention(graph: Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    if any(graph.ranks.get(name, 4) != 4 for name in node.input[:4] if name):
        yield graph.finding(node, "Q, K, V and mask must have 4 dimensions", "split the heads")
    if any(node.input[4:]) or any(node.output[1:]):
        yield graph.finding(node, "past and present states are not supported", "leave them out")


_SPECIAL: Mapping[str, Callable[[Graph, onnx.NodeProto], Iterator[Finding]]] = {
    "AveragePool": _pool,
    "MaxPool": _pool,
    "LpPool": _pool,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
    "LayerNormalization": _only_first_output,
    "ScatterND": _scatter,
    "TopK": _top_k,
    "Attention": _attention,
}
"""Restrictions of single operators that merkit's graphs may meet."""
