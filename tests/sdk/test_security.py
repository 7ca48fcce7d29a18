"""Both sides prove who they are, and each way of failing has its own error."""

from __future__ import annotations

import re
import socket
from typing import Any

import grpc
import pytest
from authority import Authority
from entries import decoded_entry
from fake_triton import FakeTriton, aborts
from grpc_serving import serving

from merkit.backends.security import Security, is_loopback, speaks_tls
from merkit.backends.triton import TritonBackend
from merkit.errors import (
    AccessDeniedError,
    CertificateError,
    ContractMismatchError,
    InferenceError,
    InvalidInputError,
    MerkitError,
    ServerUnavailableError,
)
from merkit.opening import connect
from merkit.serving.guard import Protection
from merkit.serving.server import free_ports


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("theirs"), "theirs")


class Guarded(FakeTriton):
    """Answers who sends the token, and remembers what was sent."""

    def __init__(self, token: str | None = None) -> None:
        super().__init__()
        self.token = token
        self.seen: dict[str, str] = {}

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.seen = dict(context.invocation_metadata())
        if self.token is not None and self.seen.get("authorization") != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "token expired")
        return super().ModelReady(request, context)


def opened(url: str, security: Security) -> None:
    TritonBackend(url, deadline=20, security=security).close()


def test_a_certificate_that_is_trusted_lets_calls_through(ours: Authority) -> None:
    with serving(FakeTriton(), ours.issue("server")) as url:
        opened(url, Security(ca=ours.file))


def test_a_wrong_certificate_is_named_for_what_is_wrong(ours: Authority, theirs: Authority) -> None:
    cases = [
        (theirs.issue("stranger"), "issuer"),
        (ours.issue("old", expired=True), "expired"),
        (ours.issue("elsewhere", host="other.example"), "mismatch|not valid for|peer name"),
    ]
    for pair, why in cases:
        with serving(FakeTriton(), pair) as url, pytest.raises(CertificateError) as caught:
            opened(url, Security(ca=ours.file))
        assert re.search(why, caught.value.found, re.IGNORECASE), caught.value


def test_a_server_that_asks_for_a_client_certificate(ours: Authority, theirs: Authority) -> None:
    with serving(FakeTriton(), ours.issue("server"), ours.file) as url:
        opened(url, Security(ours.file, *ours.issue("client")))
        with pytest.raises(CertificateError, match="none was given"):
            opened(url, Security(ours.file))
        with pytest.raises(CertificateError, match="the one that was given"):
            opened(url, Security(ours.file, *theirs.issue("client")))


def test_tls_on_one_side_alone(ours: Authority) -> None:
    with serving(FakeTriton(), ours.issue("server")) as url:
        port = int(url.rpartition(":")[2])
        assert speaks_tls("127.0.0.1", port)
        with pytest.raises(CertificateError, match="wants TLS") as caught:
            opened(url.replace("grpcs", "grpc"), Security())
        assert caught.value.expected == url
    with serving(FakeTriton()) as url, pytest.raises(CertificateError, match="does not speak TLS"):
        opened(url.replace("grpc", "grpcs"), Security(ca=ours.file))


def test_a_dead_server_is_no_matter_of_certificates(ours: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for scheme, security in (("grpc", Security()), ("grpcs", Security(ca=ours.file))):
        with pytest.raises(ServerUnavailableError):
            TritonBackend(f"{scheme}://127.0.0.1:{port}", deadline=3, security=security)


def test_the_token_is_asked_for_again_before_each_call() -> None:
    tokens = iter(f"token-{k}" for k in range(100))
    servicer = Guarded()
    with serving(servicer) as url:
        backend = TritonBackend(url, security=Security(token=lambda: next(tokens)))
        assert servicer.seen["authorization"] == "Bearer token-0"
        assert servicer.seen["triton-grpc-protocol-merkit-token"] == "token-0"
        with pytest.raises(MerkitError):  # the fake's answer is empty
            backend.infer(decoded_entry())
        assert next(tokens) >= "token-2"
        backend.close()


def test_a_missing_or_expired_token_is_access_denied_and_not_tried_again() -> None:
    servicer = Guarded("good")
    with serving(servicer) as url:
        opened(url, Security(token="good"))
        for security in (Security(), Security(token="old")):
            with pytest.raises(AccessDeniedError, match="token expired"):
                opened(url, security)
        assert "good" not in repr(Security(token="good"))
        backend = TritonBackend(url, security=Security(token="good"))
        restricted = "This protocol is restricted, expecting header 'triton-grpc-protocol-x'"
        servicer.infer = aborts(grpc.StatusCode.UNAVAILABLE, restricted)
        with pytest.raises(AccessDeniedError):
            backend.infer(decoded_entry())
        assert servicer.calls == 1
        backend.close()


def test_no_fall_back_hides_that_access_is_denied(toy_bundle: Any) -> None:
    servicer = Guarded("good")
    with serving(servicer) as url, pytest.raises((AccessDeniedError, ContractMismatchError)) as e:
        connect(url, security=Security(token="bad"), fallback=toy_bundle.root)
    assert type(e.value) is AccessDeniedError


def test_what_issues_tokens_may_fail() -> None:
    def broken() -> str:
        raise OSError("no network")

    with pytest.raises(AccessDeniedError, match="no network"):
        Security(token=broken).headers()
    for bad in ("", "two\nlines", "schlüssel", None):
        with pytest.raises(InvalidInputError):
            Security(token=lambda bad=bad: bad).headers()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("grpc://example.org:8001", {"token": "t"}),
        ("grpc://127.0.0.1:8001", {"ca": "ca.pem"}),
        ("grpc://127.0.0.1:8001", {"certificate": "c.pem", "key": "k.pem"}),
        ("grpcs://127.0.0.1:8001", {"certificate": "c.pem"}),
        ("grpcs://127.0.0.1:8001", {"key": "k.pem"}),
        ("grpcs://127.0.0.1:8001", {"ca": "/nowhere/ca.pem"}),
        ("grpcs://127.0.0.1:8001", {"ca": __file__}),
        ("https://127.0.0.1:8001", {}),
    ],
    ids=str,
)
def test_what_would_protect_nothing_is_refused(url: str, options: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        TritonBackend(url, deadline=1, security=Security(**options))
    assert caught.value.action


def test_a_key_of_another_certificate_is_refused(ours: Authority) -> None:
    certificate, _ = ours.issue("one")
    _, key = ours.issue("two")
    with pytest.raises(InvalidInputError, match="cannot be used"):
        Security(ours.file, certificate, key).credentials()


def test_which_hosts_are_this_machine() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("10.0.0.1", "localhost.example", "0.0.0.0", "")))


def test_an_error_of_the_server_stays_one(ours: Authority) -> None:
    servicer = FakeTriton()
    with serving(servicer, ours.issue("server")) as url:
        backend = TritonBackend(url, security=Security(ca=ours.file))
        servicer.infer = aborts(grpc.StatusCode.INTERNAL, "told to")
        with pytest.raises(InferenceError, match="told to"):
            backend.infer(decoded_entry())
        backend.close()


def test_a_server_does_not_start_with_a_key_of_another_certificate(
    ours: Authority, theirs: Authority
) -> None:
    (certificate, key), (_, other) = ours.issue("server"), theirs.issue("server")
    Protection(certificate, key, ours.file).check_pair()
    for wrong in ((certificate, other), (key, key), (certificate, key, key)):
        with pytest.raises(InvalidInputError, match="cannot be used"):
            Protection(*wrong).check_pair()
    with pytest.raises(InvalidInputError, match="the host"):
        free_ports("", [0])
