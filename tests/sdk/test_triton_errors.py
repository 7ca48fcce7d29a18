"""The Triton backend against servers that misbehave, without a Triton."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from entries import decoded_entry
from fake_triton import CONTRACT, FakeTriton, aborts, parameters
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from merkit.backends.breaker import CircuitBreaker
from merkit.backends.grpc_errors import translate
from merkit.backends.outlive import survives_cancelling
from merkit.backends.triton import TritonBackend
from merkit.errors import (
    ClipUnreadableError,
    ContractMismatchError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    MerkitError,
    NoEvidenceError,
    ServerNotReadyError,
    ServerUnavailableError,
)
from merkit.pipeline import GROUPS, standard_contract


@contextmanager
def running(servicer: Any = None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    if servicer is not None:
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.fixture
def fake() -> Iterator[tuple[FakeTriton, str]]:
    servicer = FakeTriton()
    with running(servicer) as url:
        yield servicer, url


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_every_status_becomes_a_typed_error(
    fake: tuple[FakeTriton, str], code: grpc.StatusCode
) -> None:
    servicer, url = fake
    backend = TritonBackend(url)
    servicer.infer = aborts(code, "told to")
    with pytest.raises(MerkitError) as caught:
        backend.infer(decoded_entry())
    assert url in caught.value.found
    assert caught.value.expected
    assert caught.value.action
    backend.close()


def test_an_unknown_exception_is_an_inference_error() -> None:
    error = translate(InferenceServerException("surprise", "StatusCode.NEW"), "grpc://x:1", 1)
    assert type(error) is InferenceError
    assert "surprise" in str(error)


def test_what_a_step_raised_comes_back_as_itself(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    sent = ClipUnreadableError("the clip is empty", "a clip — any", "give one")
    text = f"in ensemble 'merkit', Failed to process: {sent.to_wire()}"
    servicer.infer = aborts(grpc.StatusCode.INVALID_ARGUMENT, text)
    backend = TritonBackend(url)
    with pytest.raises(ClipUnreadableError) as caught:
        backend.infer(decoded_entry())
    assert str(caught.value) == str(sent)
    backend.close()


def test_only_unavailable_is_tried_again(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    backend = TritonBackend(url)
    servicer.infer = aborts(grpc.StatusCode.INTERNAL)
    with pytest.raises(InferenceError):
        backend.infer(decoded_entry())
    assert servicer.calls == 1
    outcomes = iter([grpc.StatusCode.UNAVAILABLE] * 2 + [grpc.StatusCode.INTERNAL])
    servicer.infer = lambda context: context.abort(next(outcomes), "later")
    with pytest.raises(InferenceError):
        backend.infer(decoded_entry())
    assert servicer.calls == 4
    backend.close()


def test_one_deadline_holds_for_all_attempts_and_cancels(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    backend = TritonBackend(url, deadline=0.4)
    cancelled = threading.Event()

    def hang(context: Any) -> Any:
        context.add_callback(cancelled.set)
        cancelled.wait(5)
        return service_pb2.ModelInferResponse()

    servicer.infer = hang
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"0\.4 s"):
        backend.infer(decoded_entry())
    assert 0.3 < time.monotonic() - start < 2
    assert cancelled.wait(2), "the server was not told that nobody waits any more"
    backend.close()


def test_a_server_that_a_cancelled_call_would_kill_is_not_told(
    fake: tuple[FakeTriton, str],
) -> None:
    servicer, url = fake
    servicer.version = "2.51.0"
    backend = TritonBackend(url, deadline=0.4)
    cancelled, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(context: Any) -> Any:
        context.add_callback(lambda: None if ended.is_set() else cancelled.set())
        go_on.wait(10)
        ended.set()
        return service_pb2.ModelInferResponse()

    servicer.infer = hang
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"0\.4 s"):
        backend.infer(decoded_entry())
    assert 0.3 < time.monotonic() - start < 2
    assert not cancelled.wait(0.5)
    threading.Timer(0.5, go_on.set).start()
    backend.close()  # lets the call end first
    assert ended.is_set()
    assert not cancelled.is_set()


@pytest.mark.parametrize(
    ("version", "survives"), [("2.51.0", False), ("2.67.0", True), ("3.0.1", True), ("dev", True)]
)
def test_servers_that_survive_a_cancelled_call(version: str, survives: bool) -> None:
    assert survives_cancelling(version) == survives


def test_a_server_that_accepts_and_never_answers_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises((DeadlineExceededError, ServerUnavailableError)):
            TritonBackend(url, deadline=0.5)
        assert time.monotonic() - start < 3


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServerUnavailableError, match="merkit serve"):
        TritonBackend(f"grpc://127.0.0.1:{port}", deadline=3)


def test_something_else_listens() -> None:
    with running() as url, pytest.raises(ServerUnavailableError, match="no Triton server"):
        TritonBackend(url)


def test_a_server_whose_model_is_not_ready(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    servicer.ready = False
    with pytest.raises(ServerNotReadyError, match="'merkit' is not ready"):
        TritonBackend(url)


@pytest.mark.parametrize("value", [{}, {"contract": "{"}, {"contract": '{"labels": 3}'}])
def test_a_server_of_something_else(fake: tuple[FakeTriton, str], value: dict[str, str]) -> None:
    servicer, url = fake
    servicer.parameters = value
    with pytest.raises(ContractMismatchError):
        TritonBackend(url)


def test_another_contract_than_the_one_insisted_on(fake: tuple[FakeTriton, str]) -> None:
    _, url = fake
    with pytest.raises(ContractMismatchError) as caught:
        TritonBackend(url, contract_id="0" * 32)
    assert CONTRACT.contract_id in caught.value.found
    assert caught.value.expected == "0" * 32


def test_a_refusal_after_the_contract_changed_says_so(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    backend = TritonBackend(url)
    servicer.infer = aborts(grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape")
    with pytest.raises(InvalidInputError, match="unexpected shape"):
        backend.infer(decoded_entry())
    servicer.parameters = parameters(standard_contract(("a", "b"), dict.fromkeys(GROUPS, 3)))
    with pytest.raises(ContractMismatchError) as caught:
        backend.infer(decoded_entry())
    assert caught.value.expected == CONTRACT.contract_id
    backend.close()


def test_an_answer_without_its_tensors_is_an_error(fake: tuple[FakeTriton, str]) -> None:
    backend = TritonBackend(fake[1])
    with pytest.raises(InferenceError, match="lacks"):
        backend.infer(decoded_entry())
    backend.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8001",
        "http://127.0.0.1:8000",
        "grpc://host",
        "grpc://h:99999",
        "grpc://h:1/x",
    ],
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="grpc://host:port"):
        TritonBackend(url)


@pytest.mark.parametrize("deadline", [0, -1, math.nan, math.inf, 1e300, "3", None])
def test_a_wrong_deadline_is_refused(deadline: Any) -> None:
    with pytest.raises(InvalidInputError, match="deadline"):
        TritonBackend("grpc://127.0.0.1:1", deadline=deadline)


def test_tensors_are_checked_before_they_are_sent(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    backend = TritonBackend(url)
    entry = decoded_entry()
    for wrong in (
        {"waveform": entry["waveform"]},
        entry | {"clip": entry["waveform"]},
        entry | {"waveform": entry["waveform"].astype("float64")},
        entry | {"text": entry["text"].astype(object) + "\ud800"},
    ):
        with pytest.raises(InvalidInputError):
            backend.infer(wrong)
    assert servicer.calls == 0
    backend.close()


def test_close_ends_the_thread_and_may_be_repeated(fake: tuple[FakeTriton, str]) -> None:
    def threads() -> int:
        return sum(t.name == "merkit-triton" for t in threading.enumerate())

    before = threads()
    backend = TritonBackend(fake[1])
    assert threads() == before + 1
    backend.close()
    backend.close()
    assert threads() == before
    with pytest.raises(InferenceError, match="closed"):
        backend.infer(decoded_entry())


def test_a_failed_connect_leaves_no_thread() -> None:
    before = set(threading.enumerate())  # among them what other tests left for their end
    with pytest.raises(ServerUnavailableError), running() as url:
        TritonBackend(url)
    assert not [t for t in set(threading.enumerate()) - before if t.name == "merkit-triton"]


def test_closing_under_a_call_ends_it(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    backend = TritonBackend(url)
    entered, leave = threading.Event(), threading.Event()

    def hang(_: Any) -> Any:
        entered.set()
        leave.wait(5)
        return service_pb2.ModelInferResponse()

    servicer.infer = hang
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(backend.infer, decoded_entry())
        assert entered.wait(5)
        backend.close()
        with pytest.raises(InferenceError, match="closed"):
            call.result(5)
        leave.set()


def test_the_breaker_opens_tries_once_and_closes() -> None:
    now = 0.0
    breaker = CircuitBreaker(threshold=2, cooldown=5, clock=lambda: now)
    breaker.failed()
    assert breaker.remaining() == 0
    breaker.failed()
    assert breaker.remaining() == 5
    now = 4.0
    assert breaker.remaining() == 1
    now = 5.0
    assert breaker.remaining() == 0, "one trial passes"
    assert breaker.remaining() == 5, "and no second one beside it"
    breaker.failed()
    assert breaker.remaining() == 5
    now = 11.0
    assert breaker.remaining() == 0
    breaker.succeeded()
    assert breaker.remaining() == 0


def test_an_open_breaker_answers_at_once(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    backend = TritonBackend(url, breaker=CircuitBreaker(threshold=1, cooldown=60))
    servicer.infer = aborts(grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(ServerUnavailableError):
        backend.infer(decoded_entry())
    tried = servicer.calls
    with pytest.raises(ServerUnavailableError, match="in a row"):
        backend.infer(decoded_entry())
    assert servicer.calls == tried
    backend.close()


def test_an_error_of_the_clip_does_not_open_the_breaker(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    backend = TritonBackend(url, breaker=CircuitBreaker(threshold=1, cooldown=60))
    wire = NoEvidenceError("nothing", "something", "give it").to_wire()
    servicer.infer = aborts(grpc.StatusCode.INVALID_ARGUMENT, wire)
    for _ in range(3):
        with pytest.raises(NoEvidenceError):
            backend.infer(decoded_entry())
    backend.close()


def test_a_frozen_server_opens_the_breaker(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    breaker = CircuitBreaker(threshold=2, cooldown=60)
    backend = TritonBackend(url, deadline=0.2, breaker=breaker)
    servicer.infer = lambda _: time.sleep(0.5)
    for _ in range(2):
        with pytest.raises(DeadlineExceededError):
            backend.infer(decoded_entry())
    tried = servicer.calls
    with pytest.raises(ServerUnavailableError, match="in a row"):
        backend.infer(decoded_entry())
    assert servicer.calls == tried
    backend.close()


def test_an_interrupted_call_says_nothing_of_the_server(
    fake: tuple[FakeTriton, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaker = CircuitBreaker(threshold=2, cooldown=60)
    backend = TritonBackend(fake[1], breaker=breaker)

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    breaker.failed()
    with monkeypatch.context() as patch:
        patch.setattr(backend, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.infer(decoded_entry())
    assert breaker.remaining() == 0, "it was not counted"
    breaker.failed()
    assert breaker.remaining() > 0, "nor was the failure before it forgotten"
    backend.close()


def test_statistics_fail_in_our_words(fake: tuple[FakeTriton, str]) -> None:
    servicer, url = fake
    backend = TritonBackend(url)
    servicer.infer = aborts(grpc.StatusCode.INTERNAL, "lost")
    with pytest.raises(InferenceError, match="lost"):
        backend.step_statistics()
    backend.close()
