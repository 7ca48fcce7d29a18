"""What calls cost as the client sees it: the part that no server's metrics can show.

A server counts what it answered. Timeouts, refused connections and time on the wire are seen
here alone, so each call of a backend can be shown to a function, and `CallCounters` is one that
keeps what Prometheus wants to know.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from numpy.typing import NDArray

from merkit.backends.base import Backend, Tensors
from merkit.contract import Contract
from merkit.errors import MerkitError

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds, upper ends


@dataclass(frozen=True)
class Call:
    """One call of a backend."""

    seconds: float
    sent_bytes: int
    """Of the tensors; strings count as characters."""
    error: str | None
    """The kind of the error it ended in (`DeadlineExceededError`), None after an answer."""


Observer = Callable[[Call], None]


class ObservedBackend:
    """Shows each call of `backend` to `observe`, in the thread that called.

    What `observe` raises is raised to the caller: a silent counter would be worse than a loud one.
    """

    def __init__(self, backend: Backend, observe: Observer) -> None:
        self._backend, self._observe = backend, observe

    @property
    def contract(self) -> Contract:
        """See Backend."""
        return self._backend.contract

    @property
    def identity(self) -> Mapping[str, str]:
        """See Backend."""
        return self._backend.identity

    def infer(
        self, tensors: Tensors, timings: dict[str, float] | None = None
    ) -> dict[str, NDArray[Any]]:
        """See `Backend.infer`."""
        start = time.perf_counter()
        kind: str | None = "Interrupted"
        try:
            outputs = self._backend.infer(tensors, timings)
            kind = None
            return outputs
        except MerkitError as error:
            kind = type(error).__name__
            raise
        finally:
            seconds = time.perf_counter() - start
            self._observe(Call(seconds, sum(map(_size, tensors.values())), kind))

    def close(self) -> None:
        """See Backend."""
        self._backend.close()


class CallCounters:
    """Counts calls for Prometheus; an `Observer`, and safe to share between threads.

    `text()` is what a `/metrics` page of the application appends to its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_outcome: defaultdict[str, int] = defaultdict(int)
        self._below = [0] * (len(BUCKETS) + 1)
        self._seconds, self._bytes = 0.0, 0

    def __call__(self, call: Call) -> None:
        """See Observer."""
        place = sum(call.seconds > end for end in BUCKETS)
        with self._lock:
            self._by_outcome[call.error or "ok"] += 1
            self._below[place] += 1
            self._seconds += call.seconds
            self._bytes += call.sent_bytes

    def text(self) -> str:
        """All counters in Prometheus's text format."""
        with self._lock:
            outcomes, below = dict(self._by_outcome), list(accumulate(self._below))
            seconds, sent = self._seconds, self._bytes
        name = "merkit_client_call_duration_seconds"
        lines = [
            "# TYPE merkit_client_calls_total counter",
            *(f'merkit_client_calls_total{{outcome="{k}"}} {n}' for k, n in outcomes.items()),
            "# TYPE merkit_client_sent_bytes_total counter",
            f"merkit_client_sent_bytes_total {sent}",
            f"# TYPE {name} histogram",
            *(f'{name}_bucket{{le="{e}"}} {n}' for e, n in zip((*BUCKETS, "+Inf"), below)),  # noqa: B905
            f"{name}_sum {seconds}",
            f"{name}_count {below[-1]}",
        ]
        return "\n".join(lines) + "\n"


def _size(array: NDArray[Any]) -> int:
    return sum(map(len, array.flat)) if array.dtype == object else array.nbytes
