"""ONNX files against the configs that serve them, as Triton's ONNX Runtime backend compares them.

The commonest way to lose an afternoon: a batch dimension that the graph does not have, or has
twice. The graph says what it takes; reading it needs the `onnx` package and no runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import Options
from merkit.lint.repository import Model, Repository, type_name

BACKEND = "onnxruntime_backend/src/onnxruntime.cc"
DIMS = "onnxruntime_backend/src/onnxruntime_utils.cc CompareDimsSupported"
TYPES = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "STRING": "STRING",
    "BOOL": "BOOL",
}
"""Triton's names for ONNX's types; those not listed are called alike."""

UNREADABLE = rule(
    "graph-unreadable", "error", "a model.onnx that is no ONNX model", BACKEND + " LoadModel"
)
DATA_FILE = rule(
    "graph-data-file",
    "error",
    "a file of weights that the ONNX model refers to and that is not beside it",
    "ONNX documentation, External Data; " + BACKEND,
)
INPUTS = rule(
    "graph-inputs",
    "error",
    "inputs in the config that the graph does not have, or the graph's that the config leaves out",
    BACKEND + " ValidateInputs",
)
OUTPUTS = rule(
    "graph-outputs",
    "error",
    "an output in the config that the graph does not have",
    BACKEND + " ValidateOutputs",
)
DTYPE = rule(
    "graph-dtype", "error", "a tensor of another type than the graph's", BACKEND + " ValidateInputs"
)
BATCH = rule(
    "graph-batch",
    "error",
    "a max_batch_size above 0 for a graph whose first dimension is fixed",
    DIMS,
)
SHAPE = rule(
    "graph-shape",
    "error",
    "dims that do not fit the graph's shape, the batch dimension counted in",
    DIMS + "; triton-inference-server/server issues 4826 and 7056",
)
RAGGED = rule(
    "graph-ragged",
    "error",
    "a ragged input for which the graph does not take one dimension of any length",
    BACKEND + " ValidateInputs",
)
BATCH_INPUT = rule(
    "graph-batch-input",
    "warning",
    "a batch_input of another type than the graph's: the model loads, and every request fails",
    "backend/src/backend_input_collector.cc; onnxruntime_backend compares request inputs alone",
)
OPTIONAL = rule(
    "graph-optional",
    "error",
    "an optional input that the graph has no default for",
    BACKEND + " ValidateInputs: optional inputs must be overridable initializers",
)


@dataclass(frozen=True)
class Tensor:
    """A graph's input or output: Triton's name of its type, and its shape (-1: any size)."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """What an ONNX file says about itself."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    defaults: frozenset[str]
    """Inputs with a default value: initializers that a request may override."""
    data_files: frozenset[str]
    metadata: Mapping[str, str]


def check(repository: Repository, options: Options, skip: Skip) -> Iterator[Finding]:
    """Every model of the ONNX Runtime backend against its graph."""
    if not options.graphs:
        return
    models = [model for model in repository.runners() if model.backend == "onnxruntime"]
    paths = [(model, path) for model in models for path in graph_files(model)]
    if paths and not onnx_installed():
        skip(
            f"{len(paths)} ONNX graphs were not compared with their configs: the package 'onnx' "
            "is not installed (pip install onnx)"
        )
        return
    for model, path in paths:
        graph = read_graph(path)
        place = f"{path.parent.name}/{path.name}"
        if graph is None:
            yield UNREADABLE.at(model.name, place, "it cannot be parsed", "export it again")
            continue
        for name in sorted(graph.data_files):
            if not (path.parent / name).is_file():
                found = f"its weights {name!r} are not beside it"
                yield DATA_FILE.at(model.name, place, found, "copy that file, too")
        if model.complete:
            yield from _inputs(model, graph)
            yield from _outputs(model, graph)


def graph_files(model: Model) -> Iterator[Path]:
    """The ONNX file of each served version."""
    for version in model.served:
        for name in model.model_files():
            path = model.path / str(version) / name
            if path.is_file() and path.suffix == ".onnx":
                yield path


def onnx_installed() -> bool:
    """Whether graphs can be read."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        return False
    return True


def read_graph(path: Path) -> Graph | None:
    """The graph at `path`, its weights left on disk; None where it is no ONNX model."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError):
        return None
    graph = model.graph
    if not graph.output:
        return None
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    defaults = {tensor.name for tensor in graph.initializer}
    # files before IR version 4 list every initializer as an input
    inputs = {v.name: _tensor(v, names) for v in graph.input}
    files = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return Graph(
        inputs,
        {v.name: _tensor(v, names) for v in graph.output},
        frozenset(defaults),
        frozenset(files),
        {entry.key: entry.value for entry in model.metadata_props},
    )


def _tensor(value: Any, names: Mapping[int, str]) -> Tensor:
    tensor = value.type.tensor_type
    name = names.get(tensor.elem_type, "INVALID")
    dims = (d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return Tensor(TYPES.get(name, name), tuple(dims))


def _inputs(model: Model, graph: Graph) -> Iterator[Finding]:
    config = model.config
    required = {name for name in graph.inputs if name not in graph.defaults}
    states = config.sequence_batching
    made = {name for entry in config.batch_input for name in entry.target_name}
    made |= {entry.name for entry in states.control_input}
    made |= {state.input_name for state in states.state}
    given = {tensor.name for tensor in config.input}
    for name in sorted((given | made) - set(graph.inputs) - graph.defaults):
        found = f"the graph has no input {name!r}, but {sorted(required)}"
        yield INPUTS.at(model.name, f"input {name}", found, "name the graph's inputs")
    for name in sorted(required - given - made):
        found = "the graph needs it, and the config does not name it"
        yield INPUTS.at(model.name, f"input {name}", found, "add it to the config")
    for entry in config.batch_input:
        for name in entry.target_name:
            real = graph.inputs.get(name)
            if real is not None and real.dtype != (dtype := type_name(entry)):
                found = f"TYPE_{dtype}, and the graph takes TYPE_{real.dtype}"
                action = "export the graph with an input of the batch_input's type"
                yield BATCH_INPUT.at(model.name, f"batch_input {name}", found, action)
    for tensor in config.input:
        if tensor.name not in graph.inputs:
            continue
        place, real = f"input {tensor.name}", graph.inputs[tensor.name]
        yield from _dtype(model, place, tensor, real)
        if tensor.optional and tensor.name not in graph.defaults:
            action = "make it required, or give it a default (an initializer of that name)"
            yield OPTIONAL.at(model.name, place, "it is optional here, not in the graph", action)
        if tensor.allow_ragged_batch:
            if real.shape != (-1,):
                found = f"the graph takes {list(real.shape)}, not [-1]"
                action = "export it with the clips end to end and un-rag inside the graph"
                yield RAGGED.at(model.name, place, found, action)
        else:
            yield from _shape(model, place, tensor, real, exact=False)


def _outputs(model: Model, graph: Graph) -> Iterator[Finding]:
    scattered = {name for entry in model.config.batch_output for name in entry.target_name}
    for tensor in model.config.output:
        place, real = f"output {tensor.name}", graph.outputs.get(tensor.name)
        if real is None:
            found = f"the graph has no output {tensor.name!r}, but {sorted(graph.outputs)}"
            yield OUTPUTS.at(model.name, place, found, "name the graph's outputs")
            continue
        yield from _dtype(model, place, tensor, real)
        if tensor.name not in scattered:
            yield from _shape(model, place, tensor, real, exact=True)


def _dtype(model: Model, place: str, tensor: Any, real: Tensor) -> Iterator[Finding]:
    dtype = type_name(tensor)
    if dtype not in (real.dtype, "INVALID"):
        found = f"TYPE_{dtype}, and the graph has TYPE_{real.dtype}"
        yield DTYPE.at(model.name, place, found, f"write TYPE_{real.dtype}")


def _shape(model: Model, place: str, tensor: Any, real: Tensor, exact: bool) -> Iterator[Finding]:
    """`exact`: outputs must be as variable as the graph's, inputs may be more narrow."""
    dims = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
    most = model.config.max_batch_size
    if not real.shape and not most:
        if any(dim != 1 for dim in dims):
            found = f"dims {dims} for a scalar"
            yield SHAPE.at(model.name, place, found, "write dims: [ 1 ]")
        return
    if most and (not real.shape or real.shape[0] != -1):
        found = f"max_batch_size {most}, and the graph's shape is {list(real.shape)}"
        action = "export it with a dynamic first dimension, or set max_batch_size to 0"
        yield BATCH.at(model.name, place, found, action)
        return
    full = [-1, *dims] if most else dims
    fits = len(full) == len(real.shape) and all(
        a == b or (b == -1 and not exact) for a, b in zip(full, real.shape, strict=True)
    )
    if fits:
        return
    batch = " with the batch dimension that max_batch_size adds" if most else ""
    found = f"{full}{batch}, and the graph has {list(real.shape)}"
    wanted = list(real.shape[1:] if most else real.shape)
    action = f"write dims: {wanted}"
    if len(full) == len(real.shape) + 1 and most:
        action += ": the batch dimension is counted twice"
    elif len(full) + 1 == len(real.shape) and not most:
        action += ", or set max_batch_size: the dims leave the batch dimension out"
    yield SHAPE.at(model.name, place, found, action)
