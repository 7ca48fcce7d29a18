"""A backend that is opened when it can be.

An application that has a fall-back must start although its server is down, and move to the server
once that is up, without being restarted. So the opening itself is retried here, call by call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from merkit.backends.base import Backend, Tensors
from merkit.backends.deadline import one_deadline
from merkit.contract import Contract
from merkit.errors import BackendError, InferenceError

PAUSE = 5.0
"""Seconds after a failed attempt during which calls fail at once."""


class LateBackend:
    """Opens a backend at the first call that finds it available.

    Args:
        open_backend: makes the backend or raises a BackendError.
        contract: what it will speak; `open_backend` refuses any other.
    """

    def __init__(self, open_backend: Callable[[], Backend], contract: Contract) -> None:
        self.contract = contract
        self._open = open_backend
        self._backend: Backend | None = None
        self._refusal: BackendError | None = None
        self._next = 0.0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def identity(self) -> Mapping[str, str]:
        """The opened backend's; before that, the contract alone."""
        opened = self._backend
        return opened.identity if opened else {"contract_id": self.contract.contract_id}

    def infer(
        self, tensors: Tensors, timings: dict[str, float] | None = None
    ) -> dict[str, NDArray[Any]]:
        """See `Backend.infer`; raises what opening the backend raised, within the same deadline."""
        with one_deadline():
            return self._opened().infer(tensors, timings)

    def close(self) -> None:
        """Closes what was opened. Safe to call twice."""
        with self._lock:
            self._closed = True
            if self._backend is not None:
                self._backend.close()

    def _opened(self) -> Backend:
        with self._lock:
            if self._closed:
                raise InferenceError("the client is closed", "an open client", "connect again")
            if self._backend is None:
                if self._refusal is not None and time.monotonic() < self._next:
                    raise self._refusal.with_traceback(None)
                try:
                    self._backend = self._open()
                except BackendError as error:
                    self._refusal, self._next = error, time.monotonic() + PAUSE
                    raise
            return self._backend
