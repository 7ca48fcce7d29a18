"""A server that is killed under load, and one that is never left alone: what does it come to?

Latency tables say nothing about the day the server dies. Here it dies for real (kill -9) while
clients call, and every call must end in an answer or an error of merkit's own within its
deadline. And a server that grows by a megabyte a minute passes every test but a long one.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle
from merkit.errors import MerkitError
from merkit.serving import ServeOptions, Server
from merkit_bench.traffic import Clerk, Request, Tally

GRACE = 1.0  # seconds that a busy machine may take to tell a caller that its time is up
AFTER = 20  # answers that every client gets from the server that came back
PATIENCE = 120.0  # seconds that clients wait for those
PAUSE = 0.05  # seconds after an error
FLAT = 0.03  # growth of memory that counts as none


@dataclass(frozen=True)
class Chaos:
    """What clients saw of a kill."""

    tally: Tally
    deadline: float
    away: float  # seconds from the kill until the new server was ready
    recovered: float  # seconds from then until each client had an answer

    @property
    def held(self) -> bool:
        """Whether each call ended in time, in nothing but merkit's own errors, and every client
        got answers again."""
        in_time = self.tally.longest <= self.deadline + GRACE
        return in_time and set(self.tally.errors) <= TYPED and bool(np.isfinite(self.recovered))


TYPED = set(MerkitError.kinds)


def kill_under_load(
    bundle: Bundle, options: ServeOptions, requests: Sequence[Request], clients: int,
    deadline: float, before: float = 3.0,
) -> Chaos:  # fmt: skip
    """Starts a server, lets clients call, kills it after `before` seconds, and starts it again."""
    server = Server(bundle, options)
    port = int(server.grpc.rpartition(":")[2])
    backend = TritonBackend(server.grpc, deadline=deadline)
    clerk = Clerk(lambda number: backend.infer(requests[number % len(requests)].tensors))
    first = [float("inf")] * clients  # answer of the new server, by client
    ready, until = float("inf"), float("inf")

    def client(me: int) -> None:
        answers = 0
        for number in itertools.count(me, clients):
            if answers >= AFTER or time.perf_counter() > until:
                return
            if not clerk.ask(number):
                time.sleep(PAUSE)
            elif (now := time.perf_counter()) > ready:
                first[me] = min(first[me], now)
                answers += 1

    threads = [threading.Thread(target=client, args=(me,)) for me in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    try:
        time.sleep(before)
        os.kill(server.pid, signal.SIGKILL)
        killed = time.perf_counter()
        server.stop()
        server = Server(bundle, replace(options, grpc_port=port))
        ready = time.perf_counter()
        until = ready + PATIENCE
        for thread in threads:
            thread.join()
    finally:
        until = 0.0
        for thread in threads:
            thread.join()
        backend.close()
        server.stop()
    clerk.tally.seconds = time.perf_counter() - start
    return Chaos(clerk.tally, deadline, ready - killed, max(first) - ready)


@dataclass(frozen=True)
class Soak:
    """Memory of a server and its stubs under steady load."""

    tally: Tally
    megabytes: NDArray[np.float64]  # proportional set size, at even times

    @property
    def growth(self) -> float:
        """Of the last fifth against the second, in which everything has been loaded."""
        fifths = np.array_split(self.megabytes, 5)
        return float(np.median(fifths[-1]) / np.median(fifths[1]) - 1)


def soak(
    server: Server, requests: Sequence[Request], clients: int, seconds: float, samples: int = 120
) -> Soak:
    """Clients that ask without a pause for so many seconds, and what memory did meanwhile."""
    backend = TritonBackend(server.grpc, deadline=60)
    clerk = Clerk(lambda number: backend.infer(requests[number % len(requests)].tensors))
    start = time.perf_counter()

    def client(me: int) -> None:
        for number in itertools.count(me, clients):
            if time.perf_counter() - start > seconds:
                return
            clerk.ask(number)

    threads = [threading.Thread(target=client, args=(me,)) for me in range(clients)]
    for thread in threads:
        thread.start()
    found = []
    for i in range(samples):
        time.sleep(max(0.0, start + (i + 1) * seconds / samples - time.perf_counter()))
        found.append(memory(server.pid))
    for thread in threads:
        thread.join()
    backend.close()
    clerk.tally.seconds = time.perf_counter() - start
    return Soak(clerk.tally, np.array(found))


def memory(leader: int) -> float:
    """Megabytes of the processes that `leader` leads; what they share counts once."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = int((folder / "stat").read_text().rpartition(")")[2].split()[2])
            if group == leader:
                total += _proportional(folder / "smaps_rollup")
        except OSError:  # it ended meanwhile
            continue
    return total / 1024


def _proportional(rollup: Path) -> float:
    fields: dict[str, Any] = dict(
        line.split(":", 1) for line in rollup.read_text().splitlines() if ":" in line[:20]
    )
    return float(fields["Pss"].split()[0])
