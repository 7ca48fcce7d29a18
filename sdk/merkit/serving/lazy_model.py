"""Lazy voting on Triton: the model that asks branches only while they can change the label.

An ensemble runs every step; most clips are decided by half of the voters (`merkit.backends.lazy`
says whom it asks next). This model walks the same pipeline by calling the server's own models, so
that what concurrent requests ask of an encoder still shares its batches. It answers when a clip is
decided and holds up no other meanwhile: `execute` only hands requests over to threads, which spend
their time waiting. So Triton sees no queue here that it could limit, and the limit is this model's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import Tensors
from merkit.backends.entries import complete, wanted
from merkit.backends.grpc_errors import FULL
from merkit.backends.lazy import pull_votes, step_costs
from merkit.backends.walk import Timed, Walk
from merkit.bundle import Bundle
from merkit.contract import Contract, StepSpec
from merkit.errors import DeadlineExceededError, InferenceError, MerkitError
from merkit.pipeline import BYTES_IN, DECODED_IN, DETAIL, HEARD, OUTCOME, cut
from merkit.serving.batching import wire
from merkit.serving.config import Names, config_text
from merkit.serving.ensembles import bundle_parameters
from merkit.serving.runner import failed, failure, from_bytes, to_bytes

Array = NDArray[Any]

NAME = "merkit_lazy"
INPUTS = tuple(dict.fromkeys((*BYTES_IN, *DECODED_IN)))
"""A clip's bytes and words, or what was decoded of it; each is optional."""
CLIPS = 64  # that may be under way at once
WAITING = 256  # that may wait for these, where the host's queues have no limit of their own
STEPS = 2 * CLIPS  # threads for steps beside the clips' own


class LazyModel:
    """Triton's `TritonPythonModel`: the outcome of a clip, by as few branches as decide it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Reads pipeline, costs and the models' names from the config."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self.contract = Contract.from_json(json.loads(parameters["contract"]), "config.pbtxt")
        self.costs: dict[str, float] = json.loads(parameters["costs"])
        self.models: dict[str, str] = json.loads(parameters["models"])
        self.most = CLIPS + int(parameters.get("waiting", WAITING))
        self._room = threading.BoundedSemaphore(self.most)
        self._clips = ThreadPoolExecutor(CLIPS, thread_name_prefix="clip")
        self._steps = ThreadPoolExecutor(STEPS, thread_name_prefix="step")

    def execute(self, requests: Sequence[Any]) -> None:
        """Takes requests on while there is room, and answers each when its clip is decided; others
        are refused as by a full queue."""
        for request in requests:
            sender = request.get_response_sender()
            if self._room.acquire(blocking=False):
                self._clips.submit(self._answer, request, sender)
            else:
                self._send(sender, self._refusal(f"Exceeds {FULL[0]}: {NAME} has {self.most}"))

    def finalize(self) -> None:
        """Waits for what is under way."""
        self._clips.shutdown(wait=True)
        self._steps.shutdown(wait=True)

    def timed(self, step: StepSpec, values: Tensors) -> Timed:
        """See `walk.Executor`: the step as a request to its model on this server."""
        start = time.perf_counter()
        return self._call(step, values), 1e3 * (time.perf_counter() - start)

    def submit(self, step: StepSpec, values: Tensors) -> Future[Timed]:
        """See `walk.Executor`."""
        return self._steps.submit(self.timed, step, {name: values[name] for name in step.inputs})

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        """The outcome of entry tensors, and of the detail what was made on the way."""
        values = dict(complete(self.contract, tensors))
        asked = wanted(self.contract, tensors)

        def walk(plan: Sequence[StepSpec], found: dict[str, Array]) -> None:
            Walk(self, plan, found, {}).run()

        pull_votes(self.contract, self.costs, values, walk)
        walk(cut(self.contract.steps, values.keys(), asked), values)
        return {name: values[name] for name in asked}

    def _answer(self, request: Any, sender: Any) -> None:
        try:
            response = self._response(request, sender)
        finally:
            self._room.release()
        self._send(sender, response)

    def _response(self, request: Any, sender: Any) -> Any:
        import triton_python_backend_utils as pb

        try:
            if sender.is_cancelled():  # while it waited
                return failure(pb, DeadlineExceededError("nobody waits for this answer any more"))
            asked = set(request.requested_output_names())
            outputs = self.infer(self._inputs(request, pb))
            tensors = [
                pb.Tensor(name, self._to_wire(name, value))
                for name, value in outputs.items()
                if name in asked
            ]
            return pb.InferenceResponse(output_tensors=tensors)
        except RefusedError as error:
            return self._refusal(str(error))
        except Exception as error:  # else the request would never be answered
            return failure(pb, error if isinstance(error, MerkitError) else failed(NAME, error))

    def _refusal(self, words: str) -> Any:
        import triton_python_backend_utils as pb

        busy = pb.TritonError(words, pb.TritonError.UNAVAILABLE)
        return pb.InferenceResponse(output_tensors=[], error=busy)

    def _send(self, sender: Any, response: Any) -> None:
        import triton_python_backend_utils as pb

        sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _inputs(self, request: Any, pb: Any) -> dict[str, Array]:
        given = {name: pb.get_input_tensor_by_name(request, name) for name in INPUTS}
        return {
            name: self._from_wire(name, tensor.as_numpy())
            for name, tensor in given.items()
            if tensor is not None
        }

    def _call(self, step: StepSpec, values: Tensors) -> dict[str, Array]:
        import triton_python_backend_utils as pb

        request = pb.InferenceRequest(
            model_name=self.models[step.name],
            requested_output_names=list(step.outputs),
            inputs=[pb.Tensor(name, self._to_wire(name, values[name])) for name in step.inputs],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise raised(step, response.error().message())
        return {
            name: self._from_wire(name, pb.get_output_tensor_by_name(response, name).as_numpy())
            for name in step.outputs
        }

    def _from_wire(self, name: str, array: Array) -> Array:
        """A copy in the contract's shape: the server takes its memory back."""
        spec = self.contract.tensors[name]
        if spec.dtype == "string":
            return from_bytes(name, array)
        return np.array(array).reshape(array.shape[: len(spec.shape)])

    def _to_wire(self, name: str, array: Array) -> Array:
        if self.contract.tensors[name].dtype == "string":
            return to_bytes(array)
        return np.ascontiguousarray(array)


def lazy_config(bundle: Bundle, names: Names, waiting: int = 0) -> str:
    """The config.pbtxt of the model; `waiting`: of how many requests beside `CLIPS`, 0 for
    `WAITING`."""
    tensors = bundle.contract.tensors
    steps = {step.name: names.models[step.name] for step in bundle.contract.steps}
    parameters = {
        **bundle_parameters(bundle, names),
        "costs": json.dumps(step_costs(bundle), sort_keys=True),
        "models": json.dumps(steps, sort_keys=True),
        **({"waiting": str(waiting)} if waiting else {}),
    }
    config = {
        "name": names.entry(NAME),
        "backend": "python",
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "input": [{**tensor, "optional": True} for tensor in wire(tensors, INPUTS)],
        "output": wire(tensors, OUTCOME + DETAIL + (HEARD if bundle.contract.hearing else ())),
    }
    return config_text(config, parameters)


class RefusedError(Exception):
    """A queue turned a request away, in Triton's words, which clients understand."""


def raised(step: StepSpec, message: str) -> Exception:
    """The error behind what a model answered instead of tensors."""
    if any(words in message.lower() for words in FULL):  # the status does not come through
        return RefusedError(message)
    return MerkitError.from_wire(message) or InferenceError(
        f"the step {step.name!r} did not answer ({message})",
        "an answer of the model that runs it",
        "try again; if it stays so, read the server's log",
    )
