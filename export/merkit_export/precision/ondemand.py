"""Graphs that are opened when their step is first asked, and not before.

A search looks into preprocessing, fusion and voting all the time, and takes its candidates one by
one; opened whole, the bundle would hold every encoder in memory beside them, gigabytes that nobody
asks.
"""

from __future__ import annotations

import threading
from typing import Any

from numpy.typing import NDArray

from merkit.backends.base import Tensors
from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.sessions import CPU, Session, open_sessions
from merkit.bundle import Bundle, onnx_steps


def opened_on_demand(bundle: Bundle, threads: int) -> EmbeddedBackend:
    """The bundle on the CPU; what `open_sessions` raises comes when a step is first run."""
    runners = {s.name: _Runner(bundle, s.name, threads) for s in onnx_steps(bundle.contract)}
    return EmbeddedBackend(bundle, ["cpu"], threads, runners=runners)


class _Runner:
    """One step's `StepRunner`."""

    provider = CPU

    def __init__(self, bundle: Bundle, step: str, threads: int) -> None:
        self._bundle, self._step, self._threads = bundle, step, threads
        self._lock = threading.Lock()
        self._session: Session | None = None

    def __call__(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        with self._lock:
            if self._session is None:
                opened = open_sessions(self._bundle, ["cpu"], self._threads, only=[self._step])
                self._session = opened[self._step]
            session = self._session
        return session(tensors)

    def close(self) -> None:
        with self._lock:
            if self._session is not None:
                self._session.close()
            self._session = None
