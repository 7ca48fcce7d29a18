"""From a torch module to one sealed ONNX graph per step, and that graph's identity.

What torch writes is not fit to ship: it names no contract, carries stack traces of the machine
that exported it, and so differs in bytes between two exports of the same weights. Here a graph
gets the contract's tensor names and shapes, loses what is not computation, and is hashed by what
it computes (`step_digest`), so that plans and caches keyed on that hash outlive a relabelling.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from torch import nn

from merkit import __version__
from merkit.contract import Contract, StepSpec, TensorSpec, canonical
from merkit.errors import MerkitError
from merkit.ragged import graph_feed, graph_inputs
from merkit_export.compact import compact
from merkit_export.ragged import Unragged
from merkit_export.speech.trim import trim
from merkit_export.storage import LIMIT, weight_bytes
from merkit_export.unclip import unclip
from merkit_training.encoders.adopted import AdoptedEncoder

OPSET = 20
"""23 breaks rotary embeddings in ONNX Runtime; below 20 lacks operators that torch emits."""

Arrays = Mapping[str, NDArray[Any]]

ELEMENTS = {
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "bool": TensorProto.BOOL,
}


def export_step(
    module: nn.Module, step: StepSpec, contract: Contract, example: Arrays
) -> onnx.ModelProto:
    """Turns `module` into a checked graph that speaks the contract's names and shapes: traced, or
    where it runs an adopted file, built around that.

    Args:
        module: takes the tensors of `step.inputs` in order, padded, returns those of
            `step.outputs`.
        step: which step of `contract` the module is.
        example: an array for each input; every dynamic dimension must be 2 or more, since torch
            takes 0 and 1 for constants.

    Raises:
        MerkitError: torch cannot export the module, or the graph is not the step it should be.
    """
    if isinstance(module, AdoptedEncoder):
        from merkit_export.adopt.surgery import step_graph

        model = step_graph(module.config, module.path, step, contract)
    else:
        model = traced(module, step, contract, example).model_proto
    if step.name == "separate" and contract.hearing and contract.hearing.clean_from_db is not None:
        trim(model, "speech", "mixture_length", "sources")
    compact(model)
    seal(model, step, contract)
    return model


def traced(
    module: nn.Module, step: StepSpec, contract: Contract, example: Arrays, **options: Any
) -> torch.onnx.ONNXProgram:
    """What torch makes of a module; its weights are still the module's own.

    Arguments and errors as of `export_step`; `options` go to torch.
    """
    inputs, feed = graph_inputs(step, contract.tensors), graph_feed(step, [example])
    arguments = tuple(torch.from_numpy(np.array(feed[name])) for name in inputs)
    shapes: tuple[Any, ...] = tuple(
        {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in inputs.values()
    )
    if step.ragged:
        module, shapes = Unragged(module, step), (shapes,)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                arguments,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(step.outputs),
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
                **options,
            )
    except Exception as error:  # torch.onnx and torch.export raise dozens of types
        raise MerkitError(
            f"torch cannot export the step {step.name!r} ({_first_line(error)})",
            "a module without data-dependent control flow",
            "rewrite the named operation, or report the message",
        ) from error
    if program is None:
        raise MerkitError(f"torch exported nothing for the step {step.name!r}")
    return program


def step_digest(model: onnx.ModelProto, folder: Path | None = None) -> str:
    """Hash of what the graph computes: operators, edges, attributes, weights and wire names.

    Names of nodes and of inner values, documentation and metadata do not enter, so exporting
    the same weights again, or under another contract, gives the same digest. Weights that lie in
    files of `folder` are read one at a time.
    """
    digest = hashlib.sha256()
    imports = sorted((opset.domain, opset.version) for opset in model.opset_import)
    digest.update(canonical([list(pair) for pair in imports]))
    digest.update(canonical(_graph_plain(model.graph, {}, folder, wire=True)))
    for function in model.functions:
        digest.update(function.SerializeToString(deterministic=True))
    return digest.hexdigest()


def seal(model: onnx.ModelProto, step: StepSpec, contract: Contract) -> None:
    """Checks the graph against the contract, strips what is not computation, and states whose it
    is; MerkitError where it is not the step."""
    graph = model.graph
    _check_wire(graph.input, graph_inputs(step, contract.tensors), step.name)
    _check_wire(graph.output, {n: contract.tensors[n] for n in step.outputs}, step.name)
    strip(graph)
    unclip(graph)
    for function in model.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        _strip_nodes(function.node)
    graph.name = step.name
    model.doc_string = ""
    model.producer_name, model.producer_version = "merkit", __version__
    helper.set_model_props(
        model,
        {
            "contract_id": contract.contract_id,
            "step": step.name,
            "producer": f"merkit {__version__}, torch {torch.__version__.partition('+')[0]}",
        },
    )
    if weight_bytes(model) > LIMIT or any(map(uses_external_data, graph.initializer)):
        return  # onnx checks what protobuf can serialise, or what lies on disk already
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MerkitError(
            f"the exported graph of {step.name!r} is not valid ONNX ({_first_line(error)})",
            "a graph that passes onnx.checker",
            "report it with the versions of torch and onnx",
        ) from error


def _check_wire(values: Any, specs: Mapping[str, TensorSpec], step: str) -> None:
    """Compares what torch inferred with the contract, then writes the contract's own shapes."""
    found = [value.name for value in values]
    if found != list(specs):
        raise MerkitError(f"the graph of {step!r} has the tensors {found}", f"{list(specs)}")
    for value in values:
        spec, tensor = specs[value.name], value.type.tensor_type
        sizes = [d.dim_value or d.dim_param for d in tensor.shape.dim]
        agree = len(sizes) == len(spec.shape) and all(
            isinstance(got, str) if isinstance(want, str) else got in (want, "")
            for got, want in zip(sizes, spec.shape, strict=True)
        )
        if tensor.elem_type != ELEMENTS[spec.dtype] or not agree:
            raise MerkitError(
                f"the module of {step!r} makes {value.name!r} of shape {sizes} and type "
                f"{TensorProto.DataType.Name(tensor.elem_type)}",
                f"{spec.dtype} {list(spec.shape)}, as the contract says",
                "correct the module, or the sizes in the recipe",
            )
        value.CopyFrom(wire_value(value.name, spec))


def wire_value(name: str, spec: TensorSpec) -> onnx.ValueInfoProto:
    """The contract's tensor as an ONNX graph input or output."""
    return helper.make_tensor_value_info(name, ELEMENTS[spec.dtype], list(spec.shape))


def strip(graph: onnx.GraphProto) -> None:
    """Removes what is not computation: documentation, metadata, inferred shapes."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # inferred again by whoever loads it
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]  # stack traces, with paths of the exporting machine
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                strip(attribute.g)


def _graph_plain(
    graph: onnx.GraphProto, outer: Mapping[str, str], folder: Path | None, wire: bool = False
) -> list[Any]:
    """The graph as plain values: names on the wire stay, others become order of appearance."""
    names = {"": "", **outer}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    read: list[onnx.TensorProto] = []

    def short(name: str) -> str:
        if name not in names:
            names[name] = f"#{len(names)}"
            if name in weights:
                read.append(weights[name])
        return names[name]

    if wire:
        names |= {value.name: value.name for value in graph.input}
    inputs = [[short(value.name), _type(value)] for value in graph.input]
    nodes = [
        [
            [node.domain, node.op_type],
            [short(name) for name in node.input],
            [_attribute_plain(a, names) for a in sorted(node.attribute, key=lambda a: a.name)],
            [short(name) for name in node.output],
        ]
        for node in graph.node
    ]
    outputs = [[v.name if wire else "", short(v.name), _type(v)] for v in graph.output]
    return [inputs, nodes, outputs, [_tensor_plain(tensor, folder) for tensor in read]]


def _type(value: onnx.ValueInfoProto) -> str:
    return str(value.type.SerializeToString(deterministic=True).hex())


def _tensor_plain(tensor: onnx.TensorProto, folder: Path | None) -> list[Any]:
    array = numpy_helper.to_array(tensor, str(folder or ""))
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return [tensor.data_type, list(tensor.dims), content]


def _attribute_plain(attribute: onnx.AttributeProto, names: Mapping[str, str]) -> list[Any]:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return [attribute.name, _tensor_plain(attribute.t, None)]
    if attribute.type == onnx.AttributeProto.GRAPH:
        return [attribute.name, _graph_plain(attribute.g, names, None)]
    bare = onnx.AttributeProto()
    bare.CopyFrom(attribute)
    bare.doc_string = ""
    return [attribute.name, bare.SerializeToString(deterministic=True).hex()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back torch's progress marks and deprecation notices about its own internals."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
