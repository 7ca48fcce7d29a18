"""Contenders in turn on the same clips in one run: on a noisy machine only ratios mean much."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from merkit.errors import InferenceError


@dataclass
class Tally:
    """What one contender did: milliseconds end to end and by step, over all answers."""

    cold_start_s: float = 0.0
    peak_mb: float = 0.0
    total_ms: list[float] = field(default_factory=list)
    step_ms: dict[str, list[float]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Contender:
    """A worker process, from spawn (when cold start begins) to the end of its input."""

    def __init__(self, name: str, bundle: Path, run: Path, threads: int) -> None:
        self.name, self.tally = name, Tally()
        self._spawned = time.perf_counter()
        options = {"contender": name, "bundle": bundle, "run": run, "threads": threads}
        flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "merkit_bench.worker", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, clip: Path | None, text: str | None) -> dict[str, Any]:
        """One answer; InferenceError when the worker has died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            request = {"clip": str(clip) if clip else None, "text": text}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise InferenceError(
                f"the contender {self.name!r} ended with status {self._process.wait()}",
                "an answer",
                "read its messages above",
            ) from None
        return reply

    def warm_up(self, clip: Path | None, text: str | None) -> None:
        """The first answer ends the cold start; a second one warms caches up."""
        self.ask(clip, text)
        self.tally.cold_start_s = time.perf_counter() - self._spawned
        self.ask(clip, text)

    def record(self, clip: Path | None, text: str | None) -> None:
        """One timed answer."""
        reply = self.ask(clip, text)
        self.tally.total_ms.append(reply["ms"])
        self.tally.peak_mb = reply["peak_mb"]
        self.tally.outcomes[str(clip)] = {k: reply[k] for k in ("label", "scores")}
        for step, ms in reply["steps"].items():
            self.tally.step_ms.setdefault(step, []).append(ms)

    def close(self) -> None:
        """Ends the input and waits."""
        self._process.communicate()


def contest(
    names: Sequence[str],
    clips: Sequence[tuple[Path | None, str | None]] | Sequence[tuple[Path, str]],
    rounds: int,
    bundle: Path,
    run: Path,
    threads: int,
) -> dict[str, Tally]:
    """Each contender answers each clip once a round, contender after contender."""
    contenders: list[Contender] = []
    try:
        for name in names:  # one after another: cold starts must not compete
            contenders.append(Contender(name, bundle, run, threads))
            contenders[-1].warm_up(*clips[0])
        for _ in tqdm(range(rounds), desc="rounds"):
            for clip, text in clips:
                for contender in contenders:
                    contender.record(clip, text)
    finally:
        for contender in contenders:
            contender.close()
    return {contender.name: contender.tally for contender in contenders}
