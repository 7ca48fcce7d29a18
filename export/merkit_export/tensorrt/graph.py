"""A graph as TensorRT's parser would be given it, with what checks ask of it close at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper, shape_inference

from merkit.errors import BundleCorruptError
from merkit_export.tensorrt import operators as table
from merkit_export.tensorrt.restate import restate

Severity = Literal["error", "warning"]


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
        self.readers: dict[str, set[str]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, set()).add(node.op_type)
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
