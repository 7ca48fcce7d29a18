"""An in-process gRPC server, with TLS where it is given certificates."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from fake_triton import FakeTriton
from tritonclient.grpc import service_pb2_grpc


@contextmanager
def serving(
    servicer: FakeTriton, pair: tuple[Path, Path] | None = None, clients: Path | None = None
) -> Iterator[str]:
    """The url of a server, with TLS where it is given certificate and key."""
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    if pair is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        chain, key = pair[0].read_bytes(), pair[1].read_bytes()
        root = clients.read_bytes() if clients else None
        shown = grpc.ssl_server_credentials([(key, chain)], root, clients is not None)
        port = server.add_secure_port("127.0.0.1:0", shown)
    server.start()
    try:
        yield f"grpc{'s' if pair else ''}://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
