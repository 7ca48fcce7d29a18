"""What a Triton admits: TLS, client certificates, a token, and who may administer it.

By itself Triton answers whoever reaches its ports, loading other models and mapping shared memory
included, and its option for closing them is documented with a comma where it wants a colon. The
options that shut it are made here, for `merkit serve` and for the container alike.
"""

from __future__ import annotations

import re
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from merkit.backends.security import TOKEN_HEADER
from merkit.errors import InvalidInputError

ADMINISTRATION = "model-repository,shared-memory,trace,logging"
ANSWERS = "inference,metadata,model-config,statistics"
"""All that Triton can restrict but health, which probes of every kind must reach."""
ADMIN_HEADER = "admin-key"
SECRET = re.compile(r"[A-Za-z0-9._~+/-]{16,4096}")
"""What a restriction's value may be: Triton splits its option at `:`, `=` and `,`."""


@dataclass(frozen=True)
class Protection:
    """What shuts a server. Files are read once, when it starts."""

    certificate: Path | None = None
    """PEM file of the server's certificate chain. With it gRPC speaks TLS alone, and HTTP, which
    has no TLS in Triton, answers nothing but health."""
    key: Path | None = None
    """PEM file of that certificate's private key."""
    client_ca: Path | None = None
    """PEM file of the authorities whose certificates clients must show (mTLS)."""
    token_file: Path | None = None
    """File of the one token without which the server answers nothing but health."""
    admin_key_file: Path | None = None
    """File of the key that opens administration; None: a random one that nobody knows."""

    def flags(self) -> list[str]:
        """Options of tritonserver.

        Raises:
            InvalidInputError: files that do not belong together, cannot be read, or hold a secret
                that is too short or has characters that Triton's option cannot carry.
        """
        self._check()
        admin = _secret(self.admin_key_file) if self.admin_key_file else secrets.token_urlsafe(32)
        token = _secret(self.token_file) if self.token_file else None
        flags = [*self._tls(), _restrict("grpc", ADMINISTRATION, ADMIN_HEADER, admin)]
        if token is not None:
            flags.append(_restrict("grpc", ANSWERS, TOKEN_HEADER, token))
        if self.certificate is not None or token is None:
            closed = ADMINISTRATION if self.certificate is None else f"{ADMINISTRATION},{ANSWERS}"
            return [*flags, _restrict("http", closed, ADMIN_HEADER, admin)]
        return [
            *flags,
            _restrict("http", ADMINISTRATION, ADMIN_HEADER, admin),
            _restrict("http", ANSWERS, TOKEN_HEADER, token),
        ]

    def check_pair(self) -> None:
        """Refuses a certificate that its key does not open: Triton starts with any, says that it
        is ready, and no client ever gets through.

        Raises:
            InvalidInputError: the files are no certificate and key that belong together.
        """
        self._check()
        if self.certificate is None or self.key is None:
            return
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key, password="")  # never asks for one
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise InvalidInputError(
                f"{self.certificate} and {self.key} cannot be used ({error})",
                "a certificate, its own key without a password, and authorities' certificates",
                "correct the files",
            ) from None

    def _check(self) -> None:
        if (self.certificate is None) != (self.key is None) or (self.client_ca and not self.key):
            raise InvalidInputError(
                "a certificate without its key, a key alone, or clients' authorities without both",
                "certificate and key of the server, and with them, if wished, clients' authorities",
                "give both files",
            )
        for path in (self.certificate, self.key, self.client_ca):
            if path is not None and "-----BEGIN" not in _text(path):
                raise InvalidInputError(f"{path} holds no PEM block", "a PEM file", "correct it")

    def _tls(self) -> list[str]:
        if self.certificate is None or self.key is None:
            return []
        files = [
            f"--grpc-server-cert={self.certificate.absolute()}",
            f"--grpc-server-key={self.key.absolute()}",
        ]
        if self.client_ca is None:
            return ["--grpc-use-ssl=true", *files]
        root = f"--grpc-root-cert={self.client_ca.absolute()}"
        return ["--grpc-use-ssl-mutual=true", *files, root]


@dataclass(frozen=True)
class Tracing:
    """Where a server sends its spans, as OpenTelemetry's protocol over HTTP has it."""

    url: str
    """A collector's traces, as `http://host:4318/v1/traces`."""
    rate: int = 1000
    """One of so many requests is traced; one that comes with a trace context, always."""
    service: str = "merkit"
    """The name under which spans are found."""

    def flags(self) -> list[str]:
        """Options of tritonserver; InvalidInputError where they cannot be right."""
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise InvalidInputError(
                f"the collector's url {self.url!r}",
                "http://host:4318/v1/traces",
                "give the address that takes OTLP over HTTP",
            )
        if self.rate < 1:
            raise InvalidInputError(f"a trace rate of {self.rate}", "1 or more", "correct it")
        settings = [
            "mode=opentelemetry",
            "level=TIMESTAMPS",
            f"rate={self.rate}",
            f"opentelemetry,url={self.url}",
            f"opentelemetry,resource=service.name={self.service}",
        ]
        return [f"--trace-config={setting}" for setting in settings]


PLAIN = Protection()
"""For a server on loopback: open but for administration."""
METRICS = ["--metrics-config=summary_latencies=true"]
"""Quantiles of latency beside the counters, which are all that Triton gives by itself."""


def _restrict(service: str, protocols: str, header: str, value: str) -> str:
    kind = "restricted-protocol" if service == "grpc" else "restricted-api"
    return f"--{service}-{kind}={protocols}:{header}={value}"


def _secret(path: Path) -> str:
    secret = _text(path).strip()
    if not SECRET.fullmatch(secret):
        raise InvalidInputError(
            f"{path} holds a secret of {len(secret)} characters that cannot be used",
            "at least 16 letters, digits and characters out of . _ ~ + / -",
            "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return secret


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read ({error.strerror})", "a readable file", "correct the path"
        ) from None
