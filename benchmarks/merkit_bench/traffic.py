"""Traffic for a server: clips of mixed lengths and modalities, asked by many clients at once.

Identical clips one after another flatter a server: they batch perfectly and hit every cache. So
requests differ in length and in what is there. Two kinds of load: closed, where each client waits
for its answer before it asks again, and open, where requests come at random times whether or not
the server keeps up, and waiting counts from the time a request was due.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import strings
from merkit.contract import MODALITIES, Preprocessing
from merkit.entry import Clip, decoded_entry
from merkit.errors import InvalidInputError
from merkit.media.limits import Limits

PATTERNS = tuple(p for p in itertools.product((True, False), repeat=len(MODALITIES)) if any(p))
"""What is left of a clip (video, audio, text), in turn; all of it first."""
LENGTHS = (1.0, 0.4, 0.8, 0.6)
"""Shares of a sound that are kept, in turn."""
OPEN_WORKERS = 128
Ask = Callable[[int], object]
"""Sends the request of that number; raises what went wrong."""


@dataclass(frozen=True)
class Request:
    """One clip in both forms in which it can be sent."""

    clip: bytes | None
    text: str | None
    tensors: dict[str, NDArray[Any]]


def mixed_requests(
    clips: Iterable[tuple[Path, str]], count: int, p: Preprocessing
) -> list[Request]:
    """`count` requests out of clips with transcripts, each of another pattern and length.

    Where sound or picture is left out of the tensors, the other form leaves out the whole file
    or the words, since a file cannot be cut in passing.
    """
    found = []
    read = [
        (path.read_bytes(), text, decoded_entry(Clip(path, text), p, Limits(), None, False).tensors)
        for path, text in itertools.islice(clips, count)
    ]
    if not read:
        raise InvalidInputError("no clip", "at least one to make requests of", "give a split")
    kinds = itertools.cycle(itertools.product(LENGTHS, PATTERNS))
    for (data, text, tensors), (share, pattern) in zip(
        itertools.islice(itertools.cycle(read), count), kinds, strict=False
    ):
        video, audio, words = pattern
        kept = text if words else None
        found.append(
            Request(data if video or audio else None, kept, _cut(dict(tensors), pattern, share))
        )
    return found


def _cut(
    tensors: dict[str, NDArray[Any]], pattern: tuple[bool, ...], share: float
) -> dict[str, NDArray[Any]]:
    video, audio, words = pattern
    samples = int(tensors["waveform"].shape[1] * share) if audio else 0
    tensors["waveform"] = np.ascontiguousarray(tensors["waveform"][:, :samples])
    tensors["waveform_length"] = np.array([[samples]], np.int64)
    if not video:
        tensors["face_crops"] = tensors["face_crops"][:, :0]
        tensors["face_count"] = np.zeros((1, 1), np.int64)
    if not words:
        tensors["text"] = strings("")
    return tensors


@dataclass
class Tally:
    """What came of a load."""

    seconds: float = 0.0  # from the first request to the last answer
    waits: list[float] = field(default_factory=list)  # of answered requests, in seconds
    errors: Counter[str] = field(default_factory=Counter)  # others, by the error's type
    longest: float = 0.0  # until an answer or an error, in seconds

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.waits) / self.seconds if self.seconds else 0.0

    def quantile(self, share: float) -> float:
        """Milliseconds within which this share of the answers came; NaN without any."""
        return float(np.quantile(self.waits, share)) * 1e3 if self.waits else float("nan")

    def quantiles(self) -> str:
        """p50, p95 and p99 in milliseconds, as cells of a table."""
        return " | ".join(f"{self.quantile(share):.0f}" for share in (0.5, 0.95, 0.99))

    def failed(self) -> str:
        """The errors, for people to read."""
        return ", ".join(f"{n} {name}" for name, n in sorted(self.errors.items())) or "none"


class Clerk:
    """Asks, and writes down what came of it; for many threads at once."""

    def __init__(self, ask: Ask) -> None:
        self.tally = Tally()
        self._ask, self._lock = ask, threading.Lock()

    def ask(self, number: int, due: float | None = None) -> bool:
        """One request, which was `due` at a time of `perf_counter`; whether it was answered."""
        start = time.perf_counter() if due is None else due
        error = ""
        try:
            self._ask(number)
        except Exception as caught:
            error = type(caught).__name__
        took = time.perf_counter() - start
        with self._lock:
            self.tally.longest = max(self.tally.longest, took)
            if error:
                self.tally.errors[error] += 1
            else:
                self.tally.waits.append(took)
        return not error


def closed_loop(ask: Ask, clients: int, calls: int) -> Tally:
    """So many clients that each ask again as soon as they have an answer; `calls` in all."""
    clerk, numbers = Clerk(ask), iter(range(calls))
    turn = threading.Lock()

    def client(_: int) -> None:
        while True:
            with turn:
                number = next(numbers, None)
            if number is None:
                return
            clerk.ask(number)

    start = time.perf_counter()
    with ThreadPoolExecutor(clients, thread_name_prefix="client") as pool:
        list(pool.map(client, range(clients)))
    clerk.tally.seconds = time.perf_counter() - start
    return clerk.tally


def open_loop(ask: Ask, rate: float, calls: int, seed: int = 0) -> Tally:
    """Requests at random times (Poisson), `rate` a second on average, whoever still waits."""
    clerk = Clerk(ask)
    gaps: Sequence[float] = np.random.default_rng(seed).exponential(1 / rate, calls).tolist()
    start = time.perf_counter()
    with ThreadPoolExecutor(OPEN_WORKERS, thread_name_prefix="arrival") as pool:
        due = start
        for number, gap in enumerate(gaps):
            due += gap
            time.sleep(max(0.0, due - time.perf_counter()))
            pool.submit(clerk.ask, number, due)
    clerk.tally.seconds = time.perf_counter() - start
    return clerk.tally
