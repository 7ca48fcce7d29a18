"""A gRPC server that stands in for Triton and answers as a test tells it to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
from toy import LABELS, WIDTH
from tritonclient.grpc import service_pb2, service_pb2_grpc

from merkit.contract import Contract
from merkit.pipeline import GROUPS, standard_contract

CONTRACT = standard_contract(LABELS, dict.fromkeys(GROUPS, WIDTH))


def parameters(contract: Contract) -> dict[str, str]:
    return {"contract": json.dumps(contract.to_json()), "bundle_id": "b1"}


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A gRPC server that answers as told."""

    def __init__(self) -> None:
        self.ready = True
        self.version = "2.70.0"
        self.parameters = parameters(CONTRACT)
        self.calls = 0
        self.infer: Callable[[Any], Any] = lambda _: service_pb2.ModelInferResponse()

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        return service_pb2.ModelReadyResponse(ready=self.ready)

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        return service_pb2.ServerMetadataResponse(version=self.version)

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        answer = service_pb2.ModelConfigResponse()
        for key, value in self.parameters.items():
            answer.config.parameters[key].string_value = value
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        self.calls += 1
        return self.infer(context)

    ModelStatistics = ModelInfer


def aborts(code: grpc.StatusCode, text: str = "x") -> Callable[[Any], Any]:
    return lambda context: context.abort(code, text)
