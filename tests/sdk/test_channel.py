"""The channel's options: with several servers behind a name, each is asked."""

from __future__ import annotations

import time

import grpc
from fake_triton import FakeTriton
from grpc_serving import serving
from tritonclient.grpc import service_pb2, service_pb2_grpc

from merkit.backends.triton import CHANNEL


class Counting(FakeTriton):
    """Counts who asks."""

    asked = 0

    def ModelReady(self, request, context):  # noqa: N802
        self.asked += 1
        return super().ModelReady(request, context)


def test_calls_are_dealt_out_to_all_addresses() -> None:
    one, two = Counting(), Counting()
    with serving(one) as first, serving(two) as second:
        addresses = ",".join(url.removeprefix("grpc://") for url in (first, second))
        with grpc.insecure_channel(f"ipv4:{addresses}", CHANNEL) as channel:
            ask = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelReady
            request = service_pb2.ModelReadyRequest(name="merkit")
            end = time.monotonic() + 20
            while not (one.asked and two.asked) and time.monotonic() < end:
                assert ask(request, wait_for_ready=True, timeout=10).ready
            before = one.asked
            for _ in range(10):
                ask(request, timeout=10)
            assert one.asked - before == 5
