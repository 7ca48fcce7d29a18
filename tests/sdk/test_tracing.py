"""Whose request it is reaches the server, and nothing is loaded for those who do not trace."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from fake_triton import FakeTriton
from grpc_serving import serving
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import merkit
from merkit.backends.tracing import trace_headers
from merkit.backends.triton import TritonBackend
from merkit.client import Client
from merkit.errors import InvalidInputError
from merkit.testing import CannedBackend

GIVEN = "00-80e1afed08e019fc1110464cfa66635c-7a085853722dc6d2-01"


class Listening(FakeTriton):
    """Remembers the traces of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.traces: list[str | None] = []

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.traces.append(dict(context.invocation_metadata()).get("traceparent"))
        return super().ModelReady(request, context)


@pytest.fixture(scope="module")
def tracer() -> trace.Tracer:
    return TracerProvider().get_tracer("tests")


def test_the_callers_trace_travels_with_each_call(tracer: trace.Tracer) -> None:
    servicer = Listening()
    with serving(servicer) as url:
        TritonBackend(url).close()
        with merkit.traceparent(GIVEN):
            TritonBackend(url).close()
        with tracer.start_as_current_span("request") as span:
            TritonBackend(url).close()
            seen = span.get_span_context()
    active = f"00-{seen.trace_id:032x}-{seen.span_id:016x}-{seen.trace_flags:02x}"
    assert servicer.traces == [None, GIVEN, active]


def test_what_is_given_goes_before_the_active_span_and_ends_with_its_block(
    tracer: trace.Tracer,
) -> None:
    with tracer.start_as_current_span("request"):
        with merkit.traceparent(GIVEN):
            assert trace_headers() == {"traceparent": GIVEN}
        assert trace_headers()["traceparent"] != GIVEN
    assert trace_headers() == {}


def test_the_workers_of_predict_many_belong_to_the_trace() -> None:
    seen = []

    class Noting(CannedBackend):
        def infer(self, *args: Any, **options: Any) -> Any:
            seen.append(trace_headers())
            return super().infer(*args, **options)

    with Client(Noting({"happy": 1.0})) as client, merkit.traceparent(GIVEN):
        list(client.predict_many([merkit.Clip(text=f"number {k}") for k in range(3)]))
    assert seen == [{"traceparent": GIVEN}] * 3


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "00-0-0-01",
        GIVEN.upper(),
        GIVEN + "\n",
        GIVEN.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-7a085853722dc6d2-01",
        f"00-{'1' * 32}-{'0' * 16}-01",
        None,
    ],
)
def test_what_is_no_traceparent_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInputError), merkit.traceparent(wrong):
        pass


def test_opentelemetry_is_not_loaded_for_its_own_sake() -> None:
    code = (
        "import sys; from merkit.backends.tracing import trace_headers; "
        "assert trace_headers() == {}; assert not any('opentelemetry' in m for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
