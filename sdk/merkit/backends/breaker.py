"""A circuit breaker: stops asking a server that does not answer.

Without it each call to a dead server costs its retries and their waits, and a server that is
coming back is met by everybody at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class CircuitBreaker:
    """Counts failed calls in a row. Safe to share between threads.

    Closed, all calls pass. After `threshold` failures in a row it opens for `cooldown` seconds;
    then one call passes as a trial, and its outcome closes it or opens it again.
    """

    def __init__(
        self,
        threshold: int = 5,
        cooldown: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold, self._cooldown, self._clock = threshold, cooldown, clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0

    def remaining(self) -> float:
        """Seconds for which a call must not be tried; 0 lets this call pass."""
        with self._lock:
            now = self._clock()
            if self._failures < self._threshold:
                return 0.0
            if now < self._open_until:
                return self._open_until - now
            self._open_until = now + self._cooldown  # others wait for this trial's outcome
            return 0.0

    def succeeded(self) -> None:
        """The server answered."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """The server did not answer."""
        with self._lock:
            self._failures += 1
            self._open_until = self._clock() + self._cooldown
