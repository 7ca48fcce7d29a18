"""The protections against a real Triton: it understands each option, and does what it says."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import urllib.error
import urllib.request
import wave
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from conftest import REPOSITORY
from tritonclient.grpc import service_pb2, service_pb2_grpc

import merkit
from merkit.backends.security import Security
from merkit.bundle import Bundle
from merkit.errors import AccessDeniedError, CertificateError, ClipLimitError, InvalidInputError
from merkit.media.limits import Limits
from merkit.opening import connect
from merkit.serving.deployment import Deployment, read_deployment
from merkit.serving.guard import Protection, Tracing
from merkit.serving.server import ServeOptions, Server
from merkit.serving.tritonserver import Installation

TOKEN, ADMIN_KEY = "the-token-of-this-test", "the-key-of-this-test"
LIMITS = Limits(max_bytes=50_000, max_seconds=1.5, max_pixels=10_000)
TRACE, SPAN = "80e1afed08e019fc1110464cfa66635c", "7a085853722dc6d2"


@dataclass
class Collector:
    """What takes OTLP over HTTP; `spans` fills as they come."""

    spans: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def found(self, seconds: float = 30) -> list[dict[str, Any]]:
        """The spans of our trace, once the server has sent them."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if ours := [span for span in self.spans if span["traceId"] == TRACE]:
                time.sleep(1)  # the rest of the batch
                return [s for s in self.spans if s["traceId"] == TRACE] or ours
            time.sleep(0.1)
        return []


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            for resource in body["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    collector.spans.extend(scope["spans"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        collector.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        yield collector
        server.shutdown()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def trusted(authority: Authority) -> Security:
    return Security(authority.file, *authority.issue("client"), token=TOKEN)


@pytest.fixture(scope="module")
def fortress(
    toy_bundle: Bundle,
    triton: Installation,
    authority: Authority,
    collector: Collector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server with every protection, low limits, and one of a million requests traced."""
    folder = tmp_path_factory.mktemp("secrets")
    for name, secret in (("token", TOKEN), ("admin", ADMIN_KEY)):
        (folder / name).write_text(f"{secret}\n")
    certificate, key = authority.issue("server")
    protection = Protection(certificate, key, authority.file, folder / "token", folder / "admin")
    options = ServeOptions(
        protection=protection,
        tracing=Tracing(collector.url, rate=1_000_000),
        deployment=Deployment(limits=LIMITS),
    )
    with Server(toy_bundle, options, triton) as server:
        yield server


def test_who_has_certificate_and_token_is_answered(fortress: Server, trusted: Security) -> None:
    assert fortress.grpc.startswith("grpcs://")
    with connect(fortress.grpc, security=trusted, deadline=60) as client:
        assert client.predict(text="hello").label
        assert client.backend.step_statistics()["fusion"][0]  # type: ignore[attr-defined]


def test_who_lacks_one_of_them_is_told_which(
    fortress: Server, trusted: Security, authority: Authority, tmp_path: Path
) -> None:
    pair = (trusted.certificate, trusted.key)
    stranger = Authority(tmp_path, "stranger")
    old = authority.issue("old", expired=True)
    cases: list[tuple[Security, type[Exception], str]] = [
        (Security(authority.file, *pair), AccessDeniedError, "restricted"),
        (Security(authority.file, *pair, token="another"), AccessDeniedError, "restricted"),
        (Security(authority.file, token=TOKEN), CertificateError, "none was given"),
        (Security(authority.file, *stranger.issue("c"), TOKEN), CertificateError, "was given"),
        (Security(authority.file, *old, TOKEN), CertificateError, "the one that was given"),
        (Security(stranger.file, *pair, TOKEN), CertificateError, "certificate of grpcs"),
    ]
    for security, kind, why in cases:
        with pytest.raises(kind, match=why):
            connect(fortress.grpc, security=security, deadline=60)
    with pytest.raises(CertificateError, match="wants TLS"):
        connect(fortress.grpc.replace("grpcs", "grpc"), deadline=60)


def http(url: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> int:
    try:
        request = urllib.request.Request(url, body, headers or {})
        return int(urllib.request.urlopen(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        return error.code


def test_http_answers_health_alone_where_grpc_has_tls(fortress: Server) -> None:
    assert http(f"{fortress.http}/v2/health/ready") == 200
    assert http(f"{fortress.http}/v2/health/live") == 200
    with_token = {"merkit-token": TOKEN}
    for path in ("models/merkit/config", "models/merkit", "models/stats", "models/merkit/infer"):
        assert http(f"{fortress.http}/v2/{path}", with_token) == 403
    assert http(f"{fortress.http}/v2/repository/index", with_token, b"{}") == 403
    assert http(f"{fortress.http}/v2/repository/index", {"admin-key": ADMIN_KEY}, b"{}") == 200


def test_administration_is_shut_by_default(toy_server: Server) -> None:
    import grpc

    assert http(f"{toy_server.http}/v2/models/merkit/config") == 200
    for path in ("repository/index", "repository/models/merkit/unload", "logging"):
        assert http(f"{toy_server.http}/v2/{path}", body=b"{}") == 403
    with grpc.insecure_channel(toy_server.grpc.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.RepositoryModelUnloadRequest(model_name="merkit")
        with pytest.raises(grpc.RpcError, match="restricted"):
            stub.RepositoryModelUnload(request, timeout=20)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (width + 1) * height)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(range(0, 250, 2)) * int(seconds * 8000 * 2 / 125))
    return file.getvalue()


def test_the_server_decodes_within_its_own_limits(fortress: Server, trusted: Security) -> None:
    large = (REPOSITORY / "docs" / "media" / "sample.mp4").read_bytes()
    assert len(large) > LIMITS.max_bytes
    with connect(fortress.grpc, security=trusted, deadline=60) as client:
        for clip, limit in ((large, "50000"), (png(200, 100), "10000"), (wav(2.5), "1.5")):
            assert len(clip) < LIMITS.max_bytes or clip is large
            with pytest.raises(ClipLimitError) as caught:
                client.predict(clip, text="hello")
            assert limit in caught.value.expected.replace(",", ""), caught.value
        assert client.predict(wav(1.0), text="hello").label


def test_the_documented_limits_are_read(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    (tmp_path / "host.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    read = read_deployment(tmp_path / "host.toml").limits
    assert read == Limits(max_bytes=1 << 26, max_seconds=300, max_pixels=3840 * 2160, max_streams=8)
    for wrong in ("max_bytes = 0", "max_seconds = 'long'", "max_frames = 3"):
        (tmp_path / "host.toml").write_text(f"[limits]\n{wrong}\n")
        with pytest.raises(InvalidInputError, match="limits"):
            read_deployment(tmp_path / "host.toml")


def test_a_trace_goes_on_through_the_server(
    fortress: Server, trusted: Security, collector: Collector
) -> None:
    parent = f"00-{TRACE}-{SPAN}-01"
    with connect(fortress.grpc, security=trusted, deadline=60) as client:
        with merkit.traceparent(parent):
            list(client.predict_many([wav(1.0)], workers=1))
        client.predict(text="nobody asked for a trace of this")
    spans = collector.found()
    assert spans, "no span of the trace arrived"
    assert any(span["parentSpanId"] == SPAN for span in spans)
    assert {"merkit"} < {
        attribute["value"].get("stringValue")
        for span in spans
        for attribute in span.get("attributes", [])
    }
    assert {span["traceId"] for span in collector.spans} == {TRACE}
