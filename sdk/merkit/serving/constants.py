"""Constants in an ensemble: what stands for the modalities that a clip was sent without.

Triton's ensembles know neither optional steps nor default values, and ONNX Runtime's and
TensorRT's backends no optional inputs of a batching model. So where a cut folds constants in, this
model makes them: a few zeros for each clip, in the only backend that every host has anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from merkit.contract import Contract, DType
from merkit.presence import absent
from merkit.serving.runner import to_bytes

BATCH: Mapping[DType, str] = {"int64": "of", "string": "of_text"}
"""Its inputs by type, [batch, 1] each: any such tensor of the clips, of either type."""


class ConstantsModel:
    """Triton's `TritonPythonModel`: nothing, for as many clips as its input has rows."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Reads the tensors' shapes from the config."""
        parameters = json.loads(args["model_config"])["parameters"]
        plain = json.loads(parameters["contract"]["string_value"])
        self.contract = Contract.from_json(plain, "config.pbtxt")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers each request with the tensors it asks for."""
        import triton_python_backend_utils as pb

        return [self._respond(request, pb) for request in requests]

    def _respond(self, request: Any, pb: Any) -> Any:
        given = [pb.get_input_tensor_by_name(request, name) for name in BATCH.values()]
        (batch,) = {len(tensor.as_numpy()) for tensor in given if tensor is not None}
        tensors = []
        for name in request.requested_output_names():
            value = absent(self.contract, name, batch)
            strings = self.contract.tensors[name].dtype == "string"
            tensors.append(pb.Tensor(name, to_bytes(value) if strings else value))
        return pb.InferenceResponse(output_tensors=tensors)
