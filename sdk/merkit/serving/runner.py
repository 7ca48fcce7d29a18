"""What Triton's Python backend runs: one class for every step, so no model.py holds logic.

Were preprocessing written into `model.py` files, the served pipeline would drift from the
embedded one. Each rendered `model.py` only imports `StepModel`, which calls the same
`merkit.steps` classes, or runs the same `model.onnx`, as the embedded backend does.

It reads the contract from its model's config parameters, not from `bundle.json`: where a
repository lies in an object store, Triton hands a model no more than its own folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import check_sizes, check_tensors, check_truths
from merkit.contract import Contract, StepSpec
from merkit.errors import (
    ContractMismatchError,
    InferenceError,
    InputError,
    InvalidInputError,
    MerkitError,
)
from merkit.media.limits import Limits
from merkit.ort import import_onnxruntime
from merkit.presence import nothing
from merkit.ragged import graph_feed
from merkit.serving.batching import can_batch

Arrays = Mapping[str, NDArray[Any]]
Compute = Callable[[Arrays, Sequence[str]], Arrays]
SIDE_BY_SIDE = ("decode", "faces")
"""Steps in Python that compute several clips at a time, a thread each. They spend their time in
codecs and detectors, which let go of the interpreter; in others threads would take turns."""


@dataclass(frozen=True)
class Asked:
    """What a request brings, [batch, ...] each, and which outputs it wants."""

    inputs: Arrays
    wanted: Sequence[str]


class StepModel:
    """Triton's `TritonPythonModel`: one step of the pipeline, python or ONNX."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Reads the step from the config and opens what computes it; raises to refuse the load."""
        try:
            self._open(args)
        except MerkitError as error:  # the stub passes on text alone
            raise RuntimeError(error.to_wire()) from None

    def _open(self, args: Mapping[str, str]) -> None:
        self.compute: Compute
        self.batches: Callable[[Sequence[Asked]], list[Arrays]] | None = None
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        contract = Contract.from_json(json.loads(parameters["contract"]), "config.pbtxt")
        self.contract, self.step = contract, contract.step(parameters["step"])
        graphs = {name for s in contract.steps if s.kind == "onnx" for name in s.outputs}
        self.given = set(self.step.inputs) - graphs
        """What a client may have sent; what a graph made of it is not checked again."""
        folder = Path(args["model_repository"]) / args["model_version"]
        if self.step.kind == "onnx":
            threads = int(parameters["threads"])
            graph = Graph(folder / "model.onnx", contract.contract_id, self.step, threads)
            self.compute = graph.alone
            self.batches = graph.together if can_batch(contract, self.step) else None
        else:
            limits = Limits(**json.loads(parameters.get("limits", "{}")))
            self.compute = python_compute(contract, self.step, folder, limits)
        threads = int(parameters["threads"]) or os.cpu_count() or 1
        side_by_side = self.step.name in SIDE_BY_SIDE and threads > 1
        self.pool = ThreadPoolExecutor(threads, "clip") if side_by_side else None
        self.strings = {
            name
            for name in (*self.step.inputs, *self.step.outputs)
            if contract.tensors[name].dtype == "string"
        }

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers each request with tensors, or with an error that the client raises again.

        Where the step can, requests share one run. Should that fail, and in all other steps, each
        runs alone, so that an error reaches only whose request it is.
        """
        import triton_python_backend_utils as pb

        asked = [self._read(request, pb) for request in requests]
        shared = self._run_together([a for a in asked if isinstance(a, Asked)])
        if shared is not None:
            made = iter(shared)
            answers = [next(made) if isinstance(one, Asked) else one for one in asked]
        else:
            side_by_side = self.pool.map if self.pool and len(asked) > 1 else map
            answers = list(side_by_side(self._run_alone, asked))
        return [self._respond(answer, pb) for answer in answers]

    def _read(self, request: Any, pb: Any) -> Asked | MerkitError:
        wanted = set(request.requested_output_names())
        try:
            inputs = self._inputs(request, pb)
            check_sizes(self.contract, inputs)
            check_truths(self.contract, inputs)
            check_tensors(self.contract, {n: v for n, v in inputs.items() if n in self.given})
        except Exception as error:
            return self._typed(error)
        return Asked(inputs, [name for name in self.step.outputs if name in wanted])

    def _run_together(self, asked: Sequence[Asked]) -> list[Arrays] | None:
        """The outputs of several requests out of one run, or None if each has to run alone."""
        if self.batches is None or len(asked) < 2:
            return None
        try:
            return self.batches(asked)
        except Exception:  # a bad request must fail alone, and its run alone tells why
            return None

    def _run_alone(self, one: Asked | MerkitError) -> Arrays | MerkitError:
        if isinstance(one, MerkitError):
            return one
        try:
            idle = nothing(self.contract, self.step, one.inputs)
            if idle is not None:
                return {name: idle[name] for name in one.wanted}
            return self.compute(one.inputs, one.wanted)
        except Exception as error:  # whatever a codec or runtime throws must not end the stub
            return self._typed(error)

    def _respond(self, answer: Arrays | MerkitError, pb: Any) -> Any:
        if not isinstance(answer, MerkitError):
            try:
                tensors = [pb.Tensor(name, self._to_wire(name, v)) for name, v in answer.items()]
                return pb.InferenceResponse(output_tensors=tensors)
            except Exception as error:
                answer = self._typed(error)
        return failure(pb, answer)

    def _typed(self, error: Exception) -> MerkitError:
        return error if isinstance(error, MerkitError) else failed(self.step.name, error)

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


def python_compute(
    contract: Contract, step: StepSpec, resources: Path, limits: Limits | None = None
) -> Compute:
    """The step of kind `python` out of the registry that the embedded backend uses too.

    What is decoded is decoded within `limits`; None: the default ones.
    """
    from merkit.steps import REGISTRY, Decode

    made_by = REGISTRY[step.name]
    decodes = made_by is Decode
    run = Decode(contract, resources, limits) if decodes else made_by(contract, resources)

    def compute(tensors: Arrays, wanted: Sequence[str]) -> Arrays:
        made = run(tensors)
        return {name: made[name] for name in wanted}

    return compute


class Graph:
    """An ONNX step: one request alone, or several in one run."""

    def __init__(self, path: Path, contract_id: str, step: StepSpec, threads: int) -> None:
        """Opens the graph at `path`; ContractMismatchError if it belongs elsewhere.

        Threads do not spin: several sessions share few cores, and spinning ones starve the rest.
        """
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found = self._session.get_modelmeta().custom_metadata_map.get("contract_id")
        if found != contract_id:
            raise ContractMismatchError(
                f"{path} carries contract_id {found}", contract_id, "export the bundle again"
            )
        self._read = {value.name for value in self._session.get_inputs()}
        self._step = step

    def alone(self, tensors: Arrays, wanted: Sequence[str]) -> Arrays:
        """The outputs that are wanted of one request."""
        return self._run([tensors], wanted)

    def together(self, asked: Sequence[Asked]) -> list[Arrays]:
        """Each request's wanted outputs out of one run; rows follow each other in the batch."""
        union = {name for one in asked for name in one.wanted}
        wanted = [name for name in self._step.outputs if name in union]
        rows = [{len(value) for value in one.inputs.values()} for one in asked]
        ends = np.cumsum([size for (size,) in rows])[:-1]  # uneven ones must run alone to fail
        made = self._run([one.inputs for one in asked], wanted)
        split = {name: np.split(value, ends) for name, value in made.items()}
        return [{name: split[name][i] for name in one.wanted} for i, one in enumerate(asked)]

    def _run(self, requests: Sequence[Arrays], wanted: Sequence[str]) -> Arrays:
        feed = graph_feed(self._step, requests)
        given = {name: value for name, value in feed.items() if name in self._read}
        return dict(zip(wanted, self._session.run(list(wanted), given), strict=True))


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


def failure(pb: Any, error: MerkitError) -> Any:
    """The response that carries a typed error; `pb` is the stub's own module."""
    refused = isinstance(error, InputError)
    code = pb.TritonError.INVALID_ARG if refused else pb.TritonError.INTERNAL
    told = pb.TritonError(error.to_wire(), code)
    return pb.InferenceResponse(output_tensors=[], error=told)
