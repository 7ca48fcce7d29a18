"""Loads and unloads bundles on a running server, so that none is ever there by half.

Triton loads and unloads single models. It loads an ensemble's steps before it, and unloads with
it those that no other ensemble needs; but an entry point left behind fails in the middle of its
requests, and so does the lazy model, whose steps Triton does not know. So a bundle's models are
taken together, in an order in which what is called is there. The server must run with explicit
model control, and administration is shut to those who do not have its key.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from merkit.backends.entries import DIGITS, suffix_of
from merkit.backends.grpc_errors import REFUSED, translate
from merkit.backends.security import RESTRICTED, Security
from merkit.errors import (
    AccessDeniedError,
    InvalidInputError,
    MissingExtraError,
    ServerNotReadyError,
)
from merkit.serving.guard import ADMIN_HEADER

ENTRY = "merkit"
"""How the names of entry points begin that are not on request."""
VERSIONED = re.compile(rf".+-[0-9a-f]{{{DIGITS}}}")


@dataclass(frozen=True)
class ServedBundle:
    """A bundle in a server's repository."""

    digits: str
    """The first of its bundle_id; "" of one whose models have plain names."""
    entries: tuple[str, ...]
    """Its entry points; of plain names, those that every repository has."""
    ready: tuple[str, ...]
    """Those of them that answer."""


def loading_order(names: Iterable[str]) -> list[str]:
    """Entry points in an order in which they can be loaded: ensembles bring their steps along,
    the lazy model wants them there."""
    return sorted(names, key=lambda name: ("lazy" in name, name))


def entries_below(repository: Path) -> list[str]:
    """The entry points of a rendered repository, in loading order.

    Steps are not among them: Triton unloads with an ensemble only those that nobody asked for by
    name.
    """
    found = {path.parent.name: path for path in repository.glob("*/config.pbtxt")}
    return loading_order(
        name
        for name, path in found.items()
        if name.startswith(ENTRY) or 'platform: "ensemble"' in path.read_text("utf-8")
    )


class ModelControl:
    """What a running server has loaded; a context manager.

    Args:
        url: `grpc://host:port`, or `grpcs://host:port`.
        admin_key: opens the server's administration; None where it is not shut.
        security: certificates and a token, as for a client.
        seconds: how long loading or unloading one model may take.

    Raises:
        MissingExtraError: tritonclient is not installed.
        InvalidInputError: another url.
    """

    def __init__(
        self,
        url: str,
        admin_key: str | None = None,
        security: Security | None = None,
        seconds: float = 300.0,
    ) -> None:
        try:
            import tritonclient.grpc as client
        except ImportError:
            raise MissingExtraError.of("tritonclient", "triton") from None
        parts = urlsplit(url)
        if parts.scheme not in ("grpc", "grpcs") or not parts.netloc:
            raise InvalidInputError(f"the url {url!r}", "grpc://host:port", "correct it")
        security = security or Security()
        encrypted = parts.scheme == "grpcs"
        security.check(parts.hostname or "", encrypted)
        self.url, self.seconds = url, seconds
        self._headers = security.headers()
        if admin_key is not None:
            self._headers |= {RESTRICTED + ADMIN_HEADER: admin_key}
        self._client = client.InferenceServerClient(
            parts.netloc, creds=security.credentials() if encrypted else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def bundles(self) -> list[ServedBundle]:
        """The bundles in the repository, loaded or not.

        Raises:
            AccessDeniedError: without its admin key.
            BackendError: the server is down.
        """
        index = self._call("get_model_repository_index").models
        states = {model.name: model.state for model in index}
        names = {name[-DIGITS:] for name in states if name.startswith(f"{ENTRY}-")}
        groups = {d: [n for n in states if n.endswith(f"-{d}")] for d in sorted(names)}
        if ENTRY in states:
            plain = (name for name in states if not VERSIONED.fullmatch(name))
            groups[""] = [name for name in plain if name.startswith(ENTRY)]
        return [
            ServedBundle(
                digits,
                tuple(loading_order(models)),
                tuple(name for name in loading_order(models) if states[name] == "READY"),
            )
            for digits, models in groups.items()
        ]

    def load(self, bundle: str | None = None) -> ServedBundle:
        """Loads a bundle: its steps, but for those that are there, then its entry points.

        Where one fails, those of its models that this call loaded are unloaded again.

        Args:
            bundle: the first digits of its id; None for the one with plain names.

        Raises:
            ServerNotReadyError: the repository does not hold it.
            BackendError: the server is down, refuses, or cannot load a model.
        """
        found = self._find(bundle)
        done: list[str] = []
        try:
            for name in found.entries:
                if name not in found.ready:
                    done.append(name)
                    self._call("load_model", name)
        except Exception:
            with contextlib.suppress(Exception):
                self._unload(done)
            raise
        return self._find(bundle)

    def unload(self, bundle: str | None = None) -> ServedBundle:
        """Unloads a bundle: its entry points, and the steps that no other bundle needs.

        Requests under way are answered first. Arguments and errors as `load`.
        """
        self._unload(self._find(bundle).ready)
        return self._find(bundle)

    def _unload(self, names: Iterable[str]) -> None:
        for name in reversed(list(names)):
            self._call("unload_model", name, unload_dependents=True)

    def _find(self, bundle: str | None) -> ServedBundle:
        digits = suffix_of(bundle)[1:] if bundle is not None else ""
        there = self.bundles()
        for found in there:
            if found.digits == digits:
                return found
        raise ServerNotReadyError(
            f"the repository of {self.url} holds no bundle {digits or 'with plain names'}",
            f"one of {', '.join(f.digits or '(plain names)' for f in there) or 'none'}",
            "render it into the repository first: merkit-export render --versioned",
        )

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, method)(
                *args, headers=self._headers, client_timeout=self.seconds, **options
            )
        except InferenceServerException as error:
            if "explicit model load" in str(error):
                raise InvalidInputError(
                    f"the server at {self.url} does not let models be loaded ({error.message()})",
                    "one with explicit model control",
                    "start it so: merkit serve --model-control explicit",
                ) from None
            if REFUSED in str(error).lower():
                raise AccessDeniedError(
                    f"the server at {self.url} does not let this client administer it",
                    "the admin key that it was started with",
                    "give it, --admin-key-file on the command line",
                ) from None
            raise translate(error, self.url, self.seconds) from None
