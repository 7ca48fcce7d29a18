"""What Triton's Python backend runs: one class for every step, so no model.py holds logic.

Were preprocessing written into `model.py` files, the served pipeline would drift from the
embedded one. Each rendered `model.py` only imports `StepModel`, which calls the same
`merkit.steps` classes, or runs the same `model.onnx`, as the embedded backend does.

It reads the contract from its model's config parameters, not from `bundle.json`: where a
repository lies in an object store, Triton hands a model no more than its own folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Contract, StepSpec
from merkit.errors import (
    ContractMismatchError,
    InferenceError,
    InputError,
    InvalidInputError,
    MerkitError,
)
from merkit.ort import import_onnxruntime

Arrays = Mapping[str, NDArray[Any]]
Compute = Callable[[Arrays, Sequence[str]], Arrays]


class StepModel:
    """Triton's `TritonPythonModel`: one step of the pipeline, python or ONNX."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Reads the step from the config and opens what computes it; raises to refuse the load."""
        try:
            self._open(args)
        except MerkitError as error:  # the stub passes on text alone
            raise RuntimeError(error.to_wire()) from None

    def _open(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        contract = Contract.from_json(json.loads(parameters["contract"]), "config.pbtxt")
        self.step = contract.step(parameters["step"])
        folder = Path(args["model_repository"]) / args["model_version"]
        if self.step.kind == "onnx":
            threads = int(parameters["threads"])
            self.compute = onnx_compute(folder / "model.onnx", contract.contract_id, threads)
        else:
            self.compute = python_compute(contract, self.step, folder)
        self.strings = {
            name
            for name in (*self.step.inputs, *self.step.outputs)
            if contract.tensors[name].dtype == "string"
        }

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers each request with tensors, or with an error that the client raises again."""
        import triton_python_backend_utils as pb

        return [self._respond(request, pb) for request in requests]

    def _respond(self, request: Any, pb: Any) -> Any:
        try:
            wanted = [
                name for name in self.step.outputs if name in request.requested_output_names()
            ]
            outputs = self.compute(self._inputs(request, pb), wanted)
            tensors = [pb.Tensor(name, self._to_wire(name, outputs[name])) for name in wanted]
        except MerkitError as error:
            code = pb.TritonError.INVALID_ARG if isinstance(error, InputError) else None
            return _failure(pb, error, code or pb.TritonError.INTERNAL)
        except Exception as error:  # whatever a codec or runtime throws must not end the stub
            return _failure(pb, failed(self.step.name, error), pb.TritonError.INTERNAL)
        return pb.InferenceResponse(output_tensors=tensors)

    def _inputs(self, request: Any, pb: Any) -> dict[str, NDArray[Any]]:
        found = {}
        for name in self.step.inputs:
            array = pb.get_input_tensor_by_name(request, name).as_numpy()
            found[name] = from_bytes(name, array) if name in self.strings else array
        return found

    def _to_wire(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name not in self.strings:
            return np.ascontiguousarray(array)
        return to_bytes(array)


def python_compute(contract: Contract, step: StepSpec, resources: Path) -> Compute:
    """The step of kind `python` out of the registry that the embedded backend uses too."""
    from merkit.steps import REGISTRY

    run = REGISTRY[step.name](contract, resources)
    return lambda tensors, _: run(tensors)


def onnx_compute(path: Path, contract_id: str, threads: int) -> Compute:
    """A session on the graph at `path`; ContractMismatchError if it belongs elsewhere.

    Threads do not spin: several sessions share few cores, and spinning ones starve the rest.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map.get("contract_id")
    if found != contract_id:
        raise ContractMismatchError(
            f"{path} carries contract_id {found}", contract_id, "export the bundle again"
        )
    known = {value.name for value in session.get_inputs()}

    def compute(tensors: Arrays, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
        feed = {name: array for name, array in tensors.items() if name in known}
        return dict(zip(wanted, session.run(list(wanted), feed), strict=True))

    return compute


def from_bytes(name: str, array: NDArray[Any]) -> NDArray[np.object_]:
    """UTF-8 bytes, as strings travel, to `str`; InvalidInputError where they are not UTF-8."""
    try:
        values = [v if isinstance(v, str) else bytes(v).decode("utf-8") for v in array.flat]
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"the tensor {name!r} holds bytes that are not UTF-8 (at byte {error.start})",
            "text encoded as UTF-8",
            "encode the text as UTF-8",
        ) from None
    made: NDArray[np.object_] = np.array(values, dtype=np.object_).reshape(array.shape)
    return made


def to_bytes(array: NDArray[Any]) -> NDArray[np.object_]:
    """`str` to UTF-8 bytes; the other way of `from_bytes`."""
    values = [v if isinstance(v, bytes) else str(v).encode("utf-8") for v in array.flat]
    made: NDArray[np.object_] = np.array(values, dtype=np.object_).reshape(array.shape)
    return made


def failed(step: str, error: Exception) -> InferenceError:
    """The typed error for a foreign exception inside a step."""
    text = " ".join(str(error).split())[:300]
    return InferenceError(
        f"the step {step!r} failed ({type(error).__name__}: {text})",
        "",
        "check the input's shapes; if they are right, report this message",
    )


def _failure(pb: Any, error: MerkitError, code: int) -> Any:
    return pb.InferenceResponse(output_tensors=[], error=pb.TritonError(error.to_wire(), code))
