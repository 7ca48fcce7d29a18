"""Who a server is, and who a client is: TLS, client certificates and bearer tokens.

Faces, voices and words of people go over this wire. gRPC by itself says of a wrong certificate
only that nothing answers, and sends a token to whoever listens; so what proves each side to the
other is one checked value here, and a refused handshake is repeated once to learn its reason.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merkit.errors import AccessDeniedError, CertificateError, InvalidInputError, MerkitError

PathLike = str | os.PathLike[str]
TOKEN_HEADER = "merkit-token"
RESTRICTED = "triton-grpc-protocol-"
"""What Triton puts before the name of a header that opens a restricted protocol."""
PROBE_SECONDS = 2.0
"""The longest that looking for a reason may take."""


@dataclass(frozen=True)
class Security:
    """How a client makes sure of a server (`grpcs://`) and proves who it is itself."""

    ca: PathLike | None = None
    """PEM file of the authorities to trust; None: the public ones that gRPC brings along."""
    certificate: PathLike | None = None
    """PEM file of this client's certificate chain, for a server that asks for one (mTLS)."""
    key: PathLike | None = None
    """PEM file of that certificate's private key."""
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    """Bearer token, or what returns one, asked before each call so that it can be refreshed.
    Travels only over TLS or within this machine."""

    def check(self, host: str, encrypted: bool) -> None:
        """Refuses what would not protect anything; InvalidInputError says what to do instead."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidInputError(
                "a client certificate without its key, or a key alone",
                "both files, or neither",
                "give certificate= and key=",
            )
        if not encrypted and (self.ca is not None or self.certificate is not None):
            raise InvalidInputError(
                "certificates for an address without TLS", "grpcs://host:port", "use grpcs://"
            )
        if not encrypted and self.token is not None and not is_loopback(host):
            raise InvalidInputError(
                f"a token for {host} without TLS, where anybody on the way could read it",
                "grpcs://, or a server on this machine",
                "use grpcs://",
            )

    def credentials(self) -> Any:
        """`grpc.ChannelCredentials` out of the files; InvalidInputError where one is wrong."""
        import grpc

        self._context()
        parts = [
            None if p is None else Path(p).read_bytes()
            for p in (self.ca, self.key, self.certificate)
        ]
        return grpc.ssl_channel_credentials(*parts)

    def _context(self) -> ssl.SSLContext:
        """Python's own reading of the files: gRPC says nothing of those that it cannot use."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(str(p) for p in (self.ca, self.certificate, self.key) if p)
            raise InvalidInputError(
                f"one of {files} cannot be used ({error.strerror or error})",
                "readable PEM files, and the key that belongs to the certificate",
                "correct the path or the file",
            ) from None
        context.set_alpn_protocols(["h2"])
        return context

    def headers(self) -> dict[str, str]:
        """Metadata of a call: the token, for proxies and for Triton's own check.

        Raises:
            AccessDeniedError: what should return the token failed.
            InvalidInputError: the token cannot stand in a header.
        """
        if self.token is None:
            return {}
        try:
            token = self.token() if callable(self.token) else self.token
        except MerkitError:
            raise
        except Exception as error:
            raise AccessDeniedError(
                f"no token could be had ({type(error).__name__}: {error})",
                "a function that returns a token",
                "check what issues the tokens",
            ) from error
        if not (isinstance(token, str) and token and token.isascii() and token.isprintable()):
            raise InvalidInputError(
                "a token that is empty or holds characters that no header can carry",
                "printable ASCII",
                "remove line ends and the like",
            )
        return {"authorization": f"Bearer {token}", RESTRICTED + TOKEN_HEADER: token}

    def refusal(
        self, host: str, port: int, url: str, seconds: float = PROBE_SECONDS
    ) -> CertificateError | None:
        """Why a TLS handshake with the server fails, or None if it does not, or nothing answers.

        Looks the server up once more, because gRPC tells a certificate that is not trusted, a
        client certificate that is missing and a dead server apart only in text, or not at all.
        """
        try:
            with self._shake_hands(host, port, min(seconds, PROBE_SECONDS)) as answer:
                refused = answer.recv(1) == b""
        except ssl.SSLCertVerificationError as error:
            return CertificateError(
                f"the certificate of {url} is refused ({error.verify_message})",
                "one that is valid today, names this host, and was issued by a trusted authority",
                "give its authority with Security(ca=...), or correct the server's certificate",
            )
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                return self._unwelcome(url, error.reason)
            return CertificateError(
                f"{url} does not speak TLS ({error.reason})",
                "a server with TLS",
                "use grpc:// within this machine, or let the server have a certificate",
            )
        except OSError:
            return None
        return self._unwelcome(url, "closed") if refused else None

    def _unwelcome(self, url: str, reason: str) -> CertificateError:
        has = "the one that was given" if self.certificate else "none was given"
        return CertificateError(
            f"{url} ends the handshake ({reason}): it asks for a client certificate; {has}",
            "one from an authority that the server trusts",
            "give Security(certificate=..., key=...) as the server's operator issued them",
        )

    def _shake_hands(self, host: str, port: int, seconds: float) -> ssl.SSLSocket:
        raw = socket.create_connection((host, port), seconds)
        try:
            return self._context().wrap_socket(raw, server_hostname=host)
        except BaseException:
            raw.close()
            raise


def speaks_tls(host: str, port: int, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a server answers a TLS handshake, whoever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent to it
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), min(seconds, PROBE_SECONDS)) as raw:
            context.wrap_socket(raw, server_hostname=host).close()
    except OSError:  # ssl.SSLError is one
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by name or number."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
