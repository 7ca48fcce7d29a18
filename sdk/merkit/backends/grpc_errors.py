"""The one place where tritonclient's exceptions become merkit's.

tritonclient raises a single exception type whose meaning lies in a status string and in text. A
user of merkit must meet neither, so every status maps to a typed error here, and a test walks
through all of them.
"""

from __future__ import annotations

from merkit.errors import (
    AccessDeniedError,
    CertificateError,
    ClipLimitError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    MerkitError,
    ServerNotReadyError,
    ServerUnavailableError,
)

RETRIED = "UNAVAILABLE"
"""The only status after which a request may be sent again: nothing has answered it."""

REFUSED = "this protocol is restricted"
"""Triton's words, under the status "unavailable", for a call without the key it asks for."""

FULL = ("maximum queue size", "timeout expired")
"""Triton's words where a queue's limits, set when it was rendered, turn a request away."""

STARTING = ("unknown model", "not ready", "no available versions", "stopping", "unloading")


def status_name(error: Exception) -> str:
    """`UNAVAILABLE` out of an InferenceServerException's `StatusCode.UNAVAILABLE`."""
    status = getattr(error, "status", lambda: None)()
    return str(status or "UNKNOWN").removeprefix("StatusCode.")


def translate(error: Exception, url: str, deadline: float) -> MerkitError:
    """The typed error for an exception of tritonclient or grpc.

    An error that a step raised in the server comes back as itself. What has no better type is an
    InferenceError.
    """
    text = getattr(error, "message", lambda: None)() or str(error)
    if (sent := MerkitError.from_wire(text)) is not None:
        return sent
    status, text = status_name(error), " ".join(text.split())[:500]
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceededError(
            f"no answer from {url} within the deadline",
            f"one within {round(deadline, 3):g} s",
            "raise the deadline, send less, or give the server more resources",
        )
    if REFUSED in text.lower():
        return _denied(text, url)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.rpartition("FAILED: ")[2].removesuffix(": OK")
        return CertificateError(
            f"the certificate of {url} is refused ({why})",
            "one that is valid today, names this host, and was issued by a trusted authority",
            "give its authority with Security(ca=...), or correct the server's certificate",
        )
    if status == "NOT_FOUND" or (status == RETRIED and any(s in text.lower() for s in STARTING)):
        return ServerNotReadyError(
            f"the server at {url} is not ready ({text})",
            "a server that has loaded a merkit bundle",
            "wait until it is ready, or start one: merkit serve BUNDLE",
        )
    if status == RETRIED and any(s in text.lower() for s in FULL):
        return ServerUnavailableError(
            f"the server at {url} has too much to do ({text})",
            "one with room in its queues",
            "ask again later; its operator can raise queue limits and timeouts, or add instances",
        )
    if status == RETRIED:
        return ServerUnavailableError(
            f"nothing answers at {url} ({text})",
            "a Triton server's gRPC address",
            "check the address, or start a server: merkit serve BUNDLE",
        )
    if status == "RESOURCE_EXHAUSTED":
        return ClipLimitError(
            f"the message to or from {url} is too large ({text})",
            "one within the limits of gRPC, of the server and of proxies on the way",
            "send a shorter clip, or decode on the client",
        )
    return _refused(status, text, url)


def retried(error: Exception) -> bool:
    """Whether asking again may help."""
    text = getattr(error, "message", lambda: "")() or ""
    hopeless = REFUSED in text.lower() or "CERTIFICATE_VERIFY_FAILED" in text
    return status_name(error) == RETRIED and not hopeless


def _denied(text: str, url: str) -> AccessDeniedError:
    return AccessDeniedError(
        f"the server at {url} refuses access ({text})",
        "a client with a token that is valid there",
        "give Security(token=...), or a token that has not expired; ask its operator for one",
    )


def _refused(status: str, text: str, url: str) -> MerkitError:
    if status in ("INVALID_ARGUMENT", "OUT_OF_RANGE"):
        return InvalidInputError(
            f"the server at {url} refused the request ({text})",
            "tensors as its contract states them",
            "reconnect if the server was restarted with another bundle",
        )
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return _denied(text, url)
    if status == "UNIMPLEMENTED":
        return ServerUnavailableError(
            f"what answers at {url} is no Triton server ({text})",
            "a Triton server's gRPC address",
            "check the port: Triton's gRPC port is 8001 by default, not 8000",
        )
    return InferenceError(
        f"the server at {url} failed ({status}: {text})", "an answer", "read the server's log"
    )
