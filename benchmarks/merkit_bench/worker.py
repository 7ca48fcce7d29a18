"""One contender in a process of its own, so that its memory and cold start are its alone.

The orchestrator writes one JSON line per clip and reads one per answer; a contender that is not
asked is idle, so contenders take turns on the same cores within one run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import merkit
from merkit.backends.triton import TritonBackend
from merkit.client import Client


@contextlib.contextmanager
def contender(name: str, bundle: str, run: str, threads: int) -> Iterator[Client]:
    """A client whose backend is PyTorch eager, embedded ONNX Runtime, or a Triton of its own."""
    if name == "embedded":
        with merkit.load(bundle, threads=threads) as client:
            yield client
    elif name == "torch":
        import torch

        from merkit_export.reference import TorchBackend

        torch.set_num_threads(threads)
        with Client(TorchBackend(Path(run), keep=True)) as client:
            yield client
    else:
        from merkit.serving import ServeOptions, Server

        options = ServeOptions(threads=threads)
        with Server(bundle, options) as server, merkit.connect(server.grpc) as client:
            yield client


def tree_peak_mb() -> float:
    """Peak resident memory of this process and its children, summed, in MB (Linux: VmHWM)."""
    import psutil

    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text("ascii")
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            total += int(peak.split()[1])
    return total / 1024


class Stopwatch:
    """Predicts clips and says what each step took, where the server must be asked for that."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._spent = self._counters()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Predicts one clip; milliseconds are the caller's, around the whole call."""
        start = time.perf_counter()
        prediction = self._client.predict(request["clip"], text=request["text"])
        elapsed = 1e3 * (time.perf_counter() - start)
        before, self._spent = self._spent, self._counters()
        served = {name: ms - before.get(name, 0.0) for name, ms in self._spent.items()}
        return {
            "ms": elapsed,
            "steps": {**prediction.timings_ms, **served},
            "label": prediction.label,
            "scores": dict(prediction.scores),
            "peak_mb": tree_peak_mb(),
        }

    def _counters(self) -> dict[str, float]:
        """Milliseconds that a server has spent in each step so far."""
        backend = self._client.backend
        if not isinstance(backend, TritonBackend):
            return {}
        return {name: ms for name, (_, ms) in backend.step_statistics().items()}


def main() -> None:
    """Reads requests from standard input until it ends."""
    parser = argparse.ArgumentParser()
    for option in ("--contender", "--bundle", "--run"):
        parser.add_argument(option, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    with contender(args.contender, args.bundle, args.run, args.threads) as client:
        stopwatch = Stopwatch(client)
        for line in sys.stdin:
            print(json.dumps(stopwatch.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
