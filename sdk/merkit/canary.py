"""Two bundles side by side: a share of the calls for the new one, or its answers beside the old.

A retrained bundle that does better on a test set may do worse on somebody's clips. `Split` gives it
a share of the real calls, the same callers always, and takes it out when it fails; `Shadow` asks it
behind everybody's back and counts where the two differ. Neither needs more of the two sides than a
client each: two bundles embedded, two servers, or two bundles in one server.
"""

from __future__ import annotations

import hashlib
import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

from merkit.backends.deadline import one_deadline
from merkit.errors import BackendError, BundleError, InvalidInputError
from merkit.results import Prediction

Arm = Literal["current", "candidate"]
RECENT = 10_000  # calls of which latencies are kept
STOP_SECONDS = 5.0
PATIENCE = 0.5
"""The share of a call's deadline that the candidate may take: the current side, which answers where
the candidate does not, must have time to."""


class Predictor(Protocol):
    """What is split: `merkit.Client`, or anything that predicts as it does."""

    @property
    def predict(self) -> Callable[..., Prediction]:
        """Called with a clip, a text, or both, and options by name."""
        ...

    def close(self) -> None:
        """Releases what it holds."""
        ...


@dataclass(frozen=True)
class ArmCount:
    """What one side of a split did."""

    calls: int
    failures: int
    """Calls that failed through no fault of the clip's."""


class Split:
    """A client that asks the candidate in a share of the calls, and the current one in the rest.

    With a `key` (a user's or a session's name) the same caller always meets the same side, and
    raising the share moves callers to the candidate only. Where the candidate fails, the current
    side answers, and after `trip_after` failures in a row it is asked no more until `reset`.

    A call ends within the deadline that the clients were connected with, whoever answers: the
    candidate has half of it, and the current side what is left. Sides that run here have none.

    Safe to share between threads. Closes both clients.

    Args:
        current: answers as before.
        candidate: is tried.
        share: of the calls (without a key) or callers (with one) for the candidate, 0 to 1.
        salt: another salt picks other callers; keep it as long as callers are to be kept.
        trip_after: failures in a row after which the candidate is out; 0: never.
    """

    def __init__(
        self,
        current: Predictor,
        candidate: Predictor,
        share: float,
        *,
        salt: str = "",
        trip_after: int = 5,
    ) -> None:
        if trip_after < 0:
            raise InvalidInputError(f"trip_after is {trip_after}", "0 or more", "correct it")
        self._arms: Mapping[Arm, Predictor] = {"current": current, "candidate": candidate}
        self.share = share
        self._salt, self._trip_after = salt, trip_after
        self._lock = threading.Lock()
        self._calls: Counter[Arm] = Counter()
        self._failures: Counter[Arm] = Counter()
        self._in_a_row = 0

    @property
    def share(self) -> float:
        """The candidate's share; may be set at any time."""
        return self._share

    @share.setter
    def share(self, value: float) -> None:
        self._share = _checked_share(value)

    @property
    def tripped(self) -> bool:
        """Whether the candidate failed too often and is out."""
        return 0 < self._trip_after <= self._in_a_row

    @property
    def counts(self) -> Mapping[Arm, ArmCount]:
        """Calls and failures of each side since the beginning."""
        with self._lock:
            return {arm: ArmCount(self._calls[arm], self._failures[arm]) for arm in self._arms}

    def arm(self, key: str | None = None) -> Arm:
        """The side that a caller meets; without a key, by chance."""
        if self.tripped:
            return "current"
        place = random.random() if key is None else _place(key, self._salt)
        return "candidate" if place < self._share else "current"

    def predict(
        self, clip: Any = None, text: str | None = None, *, key: str | None = None, **options: Any
    ) -> Prediction:
        """As `Client.predict`; `Prediction.bundle` says which side answered.

        Raises:
            MerkitError: as `Client.predict`; of the candidate's errors only those that the clip
                is to blame for.
        """
        if self.arm(key) == "current":
            return self._ask("current", clip, text, options)
        with one_deadline() as budget:
            whole, budget.share = budget.share, PATIENCE * budget.share
            try:
                return self._ask("candidate", clip, text, options)
            except (BackendError, BundleError) as error:
                budget.share = whole
                answer = self._ask("current", clip, text, options)
                note = f"the candidate failed ({error.found}); the current bundle answered"
                return replace(answer, warnings=(*answer.warnings, note))

    def reset(self) -> None:
        """Lets a candidate that was taken out answer again."""
        with self._lock:
            self._in_a_row = 0

    def close(self) -> None:
        """Closes both clients. Safe to call twice."""
        for client in self._arms.values():
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, arm: Arm, clip: Any, text: str | None, options: Any) -> Prediction:
        failed = False
        try:
            return self._arms[arm].predict(clip, text, **options)
        except (BackendError, BundleError):
            failed = True
            raise
        finally:
            with self._lock:
                self._calls[arm] += 1
                self._failures[arm] += failed
                if arm == "candidate":
                    self._in_a_row = self._in_a_row + 1 if failed else 0


@dataclass(frozen=True)
class Comparison:
    """How the candidate's answers compare with the current ones so far.

    Attributes:
        compared: calls that both sides answered.
        agreed: of these, calls with the same label.
        flips: for each pair of labels, current and candidate, how often the one became the other.
        errors: the candidate's errors by kind, where the current side had an answer.
        dropped: calls that were not compared, because as many were waiting as may wait.
        score_difference: mean over the compared calls of the largest difference of any label's
            score; 0 to 1.
        latency_ms: for each side, of recent calls, `p50` and `p95` in milliseconds.
    """

    compared: int
    agreed: int
    flips: Mapping[tuple[str, str], int]
    errors: Mapping[str, int]
    dropped: int
    score_difference: float
    latency_ms: Mapping[Arm, Mapping[str, float]]

    @property
    def agreement(self) -> float:
        """Share of the compared calls with the same label; 1 where none was compared."""
        return self.agreed / self.compared if self.compared else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "compared": self.compared,
            "agreement": self.agreement,
            "flips": [{"from": a, "to": b, "times": n} for (a, b), n in self.flips.items()],
            "errors": dict(self.errors),
            "dropped": self.dropped,
            "score_difference": self.score_difference,
            "latency_ms": {arm: dict(values) for arm, values in self.latency_ms.items()},
        }


@dataclass(frozen=True)
class _Task:
    clip: Any
    text: str | None
    options: Mapping[str, Any]
    answer: Prediction
    milliseconds: float
    context: Context


class Shadow:
    """A client whose calls a second one repeats in the background, to be compared.

    The current side's answer or error is given as it is, at once: the candidate is asked after it,
    by threads of its own, and where more calls wait than `waiting`, further ones are counted and
    let go. A clip given by its path must live until it has been compared. On machines that both
    sides share, the candidate still takes processor time: choose a `share` for it.

    Safe to share between threads. Closes both clients.

    Args:
        current: answers.
        candidate: is compared.
        share: of the calls to compare, 0 to 1.
        waiting: how many calls may wait to be compared.
        workers: how many are compared at a time.
        on_flip: called from a worker with both answers where their labels differ.
    """

    def __init__(
        self,
        current: Predictor,
        candidate: Predictor,
        share: float = 1.0,
        *,
        waiting: int = 32,
        workers: int = 1,
        on_flip: Callable[[Prediction, Prediction], None] | None = None,
    ) -> None:
        if waiting < 1 or workers < 1:
            found = f"waiting is {waiting}, workers {workers}"
            raise InvalidInputError(found, "1 or more of each", "correct it")
        self._current, self._candidate = current, candidate
        self._share, self._on_flip = _checked_share(share), on_flip
        self._tasks: queue.Queue[_Task] = queue.Queue(waiting)
        self._lock = threading.Lock()
        self._agreed, self._dropped, self._difference = 0, 0, 0.0
        self._compared = 0
        self._flips: Counter[tuple[str, str]] = Counter()
        self._errors: Counter[str] = Counter()
        self._latencies: dict[Arm, deque[float]] = {
            "current": deque(maxlen=RECENT),
            "candidate": deque(maxlen=RECENT),
        }
        self._closing = threading.Event()
        self._workers = [
            threading.Thread(target=self._work, name=f"merkit-shadow-{number}", daemon=True)
            for number in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def predict(self, clip: Any = None, text: str | None = None, **options: Any) -> Prediction:
        """As `Client.predict` of the current side."""
        begin = time.perf_counter()
        answer = self._current.predict(clip, text, **options)
        milliseconds = (time.perf_counter() - begin) * 1e3
        if random.random() < self._share and not self._closing.is_set():
            try:
                self._tasks.put_nowait(
                    _Task(clip, text, options, answer, milliseconds, copy_context())
                )
            except queue.Full:
                with self._lock:
                    self._dropped += 1
        return answer

    @property
    def comparison(self) -> Comparison:
        """What has been found so far."""
        with self._lock:
            latencies = {arm: _quantiles(values) for arm, values in self._latencies.items()}
            return Comparison(
                self._compared,
                self._agreed,
                dict(self._flips.most_common()),
                dict(self._errors.most_common()),
                self._dropped,
                self._difference / self._compared if self._compared else 0.0,
                latencies,
            )

    def drain(self, seconds: float) -> bool:
        """Waits until no call waits or is being compared; False if that takes longer."""
        end = time.monotonic() + seconds
        with self._tasks.all_tasks_done:
            while self._tasks.unfinished_tasks:
                if not self._tasks.all_tasks_done.wait(end - time.monotonic()):
                    return False
        return True

    def close(self) -> None:
        """Lets go what waits, gives what is being compared five seconds, closes both clients.

        Safe to call twice.
        """
        self._closing.set()
        end = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            worker.join(max(0.0, end - time.monotonic()))
        self._current.close()
        self._candidate.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                task = self._tasks.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                task.context.run(self._compare, task)  # the caller's trace goes on in it
            finally:
                self._tasks.task_done()

    def _compare(self, task: _Task) -> None:
        begin = time.perf_counter()
        try:
            answer = self._candidate.predict(task.clip, task.text, **task.options)
        except Exception as error:  # whatever it is, it must end no worker
            with self._lock:
                self._errors[type(error).__name__] += 1
            return
        milliseconds = (time.perf_counter() - begin) * 1e3
        labels = set(task.answer.scores) | set(answer.scores)
        difference = max(
            abs(task.answer.scores.get(label, 0.0) - answer.scores.get(label, 0.0))
            for label in labels
        )
        same = task.answer.label == answer.label
        with self._lock:
            self._compared += 1
            self._agreed += same
            self._difference += difference
            self._latencies["current"].append(task.milliseconds)
            self._latencies["candidate"].append(milliseconds)
            if not same:
                self._flips[task.answer.label, answer.label] += 1
        if not same and self._on_flip is not None:
            try:
                self._on_flip(task.answer, answer)
            except Exception as error:
                with self._lock:
                    self._errors[f"on_flip: {type(error).__name__}"] += 1


def _checked_share(value: float) -> float:
    if not 0 <= value <= 1:
        raise InvalidInputError(f"a share of {value}", "0 to 1", "correct it")
    return float(value)


def _place(key: str, salt: str) -> float:
    """Where a key lies between 0 and 1: evenly spread, and the same in every process."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def _quantiles(values: deque[float]) -> dict[str, float]:
    """`p50` and `p95` by the nearest rank; empty without values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {f"p{share}": ordered[round(last * share / 100)] for share in (50, 95)}
