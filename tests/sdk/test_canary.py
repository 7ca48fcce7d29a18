"""Two bundles side by side: sticky shares, failures that hurt nobody, silent comparison."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from fake_triton import FakeTriton, aborts
from grpc_serving import serving

from merkit.backends.breaker import CircuitBreaker
from merkit.backends.deadline import one_deadline, seconds_left
from merkit.backends.triton import TritonBackend
from merkit.canary import Shadow, Split
from merkit.client import Client
from merkit.errors import (
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    MerkitError,
    NoEvidenceError,
    ServerUnavailableError,
)
from merkit.results import Prediction
from merkit.testing import CannedBackend

HAPPY, SAD = {"happy": 0.7, "sad": 0.3}, {"happy": 0.2, "sad": 0.8}
DOWN = ServerUnavailableError("nothing answers", "a server", "start it")
KEYS = [f"user-{number}" for number in range(4000)]


def client(*answers: Any) -> Client:
    return Client(CannedBackend(answers))


def test_a_share_of_the_callers_meets_the_candidate_and_always_the_same() -> None:
    split = Split(client(HAPPY), client(SAD), 0.2)
    chosen = {key for key in KEYS if split.arm(key) == "candidate"}
    assert abs(len(chosen) / len(KEYS) - 0.2) < 0.02
    again = Split(client(HAPPY), client(SAD), 0.2)
    assert chosen == {key for key in KEYS if again.arm(key) == "candidate"}
    for key in KEYS[:50]:
        assert split.predict(text="x", key=key).label == ("sad" if key in chosen else "happy")


def test_raising_the_share_only_adds_callers_and_another_salt_picks_others() -> None:
    split = Split(client(HAPPY), client(SAD), 0.1)
    few = {key for key in KEYS if split.arm(key) == "candidate"}
    split.share = 0.3
    assert few < {key for key in KEYS if split.arm(key) == "candidate"}
    other = Split(client(HAPPY), client(SAD), 0.1, salt="second")
    assert few != {key for key in KEYS if other.arm(key) == "candidate"}


def test_without_a_key_calls_are_split_by_weight() -> None:
    split = Split(client(HAPPY), client(SAD), 0.5)
    share = sum(split.arm() == "candidate" for _ in range(4000)) / 4000
    assert abs(share - 0.5) < 0.05
    assert Split(client(HAPPY), client(SAD), 0).arm() == "current"
    assert Split(client(HAPPY), client(SAD), 1).arm() == "candidate"


def test_a_failing_candidate_costs_nobody_an_answer_and_is_taken_out() -> None:
    split = Split(client(HAPPY), client(DOWN), 1, trip_after=3)
    answers = [split.predict(text="x") for _ in range(5)]
    assert [answer.label for answer in answers] == ["happy"] * 5
    assert "the candidate failed" in answers[0].warnings[0]
    assert not answers[4].warnings
    assert split.tripped
    assert (split.counts["candidate"].calls, split.counts["candidate"].failures) == (3, 3)
    assert split.counts["current"].calls == 5
    split.reset()
    assert split.arm() == "candidate"


def test_failures_now_and_then_do_not_take_it_out() -> None:
    split = Split(client(HAPPY), client(DOWN, DOWN, SAD), 1, trip_after=3)
    for _ in range(9):
        split.predict(text="x")
    assert not split.tripped
    assert split.counts["candidate"].failures == 6


def test_what_the_clip_is_to_blame_for_is_the_callers_to_know() -> None:
    blank = NoEvidenceError("no face, no sound", "either", "give another clip")
    split = Split(client(HAPPY), client(blank), 1)
    with pytest.raises(NoEvidenceError):
        split.predict(text="x")
    assert not split.counts["candidate"].failures
    with pytest.raises(ServerUnavailableError):
        Split(client(DOWN), client(HAPPY), 0).predict(text="x")


def test_shadowing_counts_agreement_flips_and_latencies() -> None:
    flips: list[tuple[Prediction, Prediction]] = []
    with Shadow(
        client(HAPPY), client(HAPPY, SAD), on_flip=lambda *pair: flips.append(pair)
    ) as shadow:
        assert [shadow.predict(text="x").label for _ in range(10)] == ["happy"] * 10
        assert shadow.drain(10)
        found = shadow.comparison
    assert (found.compared, found.agreed, found.agreement) == (10, 5, 0.5)
    assert found.flips == {("happy", "sad"): 5}
    assert found.score_difference == pytest.approx(0.25)
    assert [(a.label, b.label) for a, b in flips] == [("happy", "sad")] * 5
    assert set(found.latency_ms["candidate"]) == {"p50", "p95"}
    assert found.to_json()["flips"] == [{"from": "happy", "to": "sad", "times": 5}]


def test_a_failing_candidate_is_counted_and_never_seen() -> None:
    with Shadow(client(HAPPY), client(DOWN, SAD)) as shadow:
        assert [shadow.predict(text="x").label for _ in range(4)] == ["happy"] * 4
        assert shadow.drain(10)
        found = shadow.comparison
    assert found.errors == {"ServerUnavailableError": 2}
    assert found.compared == 2


def test_the_current_sides_errors_are_raised_and_not_compared() -> None:
    with Shadow(client(DOWN), client(HAPPY)) as shadow:
        with pytest.raises(ServerUnavailableError):
            shadow.predict(text="x")
        assert shadow.comparison.compared == 0
    assert shadow.comparison.agreement == 1


class Stuck:
    """A client that answers when it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.asked = threading.Event()

    def predict(self, clip: Any = None, text: str | None = None, **_: Any) -> Prediction:
        self.asked.set()
        self.free.wait(30)
        return client(HAPPY).predict(clip, text)

    def close(self) -> None:
        self.free.set()


def test_a_stuck_candidate_delays_nobody_and_its_queue_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("merkit.canary.STOP_SECONDS", 0.2)
    stuck = Stuck()
    shadow = Shadow(client(HAPPY), stuck, waiting=3)
    shadow.predict(text="x")
    assert stuck.asked.wait(10)
    begin = time.monotonic()
    for _ in range(20):
        assert shadow.predict(text="x").label == "happy"
    shadow_seconds = time.monotonic() - begin
    assert shadow_seconds < 5
    assert shadow.comparison.dropped == 17
    assert not shadow.drain(0.01)
    begin = time.monotonic()
    shadow.close()
    shadow.close()
    assert time.monotonic() - begin < 5


def test_a_share_of_nothing_compares_nothing() -> None:
    with Shadow(client(HAPPY), client(SAD), share=0) as shadow:
        shadow.predict(text="x")
        assert shadow.drain(1)
        assert shadow.comparison.compared == 0


def test_an_observer_that_fails_ends_no_worker() -> None:
    def fails(_one: Prediction, _other: Prediction) -> None:
        raise ValueError

    with Shadow(client(HAPPY), client(SAD), on_flip=fails) as shadow:
        for _ in range(3):
            shadow.predict(text="x")
        assert shadow.drain(10)
        assert shadow.comparison.flips == {("happy", "sad"): 3}
        assert shadow.comparison.errors == {"on_flip: ValueError": 3}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Split(client(HAPPY), client(SAD), 1.5),
        lambda: Split(client(HAPPY), client(SAD), float("nan")),
        lambda: Split(client(HAPPY), client(SAD), 0.1, trip_after=-1),
        lambda: Shadow(client(HAPPY), client(SAD), -0.1),
        lambda: Shadow(client(HAPPY), client(SAD), waiting=0),
    ],
)
def test_wrong_choices_are_refused(make: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert isinstance(caught.value, MerkitError)


@contextmanager
def served(deadline: float, answer: Callable[[Any], Any]) -> Iterator[Client]:
    """A client of a server that answers each request with what `answer` makes of its context."""
    servicer = FakeTriton()
    servicer.infer = answer
    with serving(servicer) as url:
        backend = TritonBackend(url, deadline, breaker=CircuitBreaker(threshold=1000))
        with Client(backend) as made:
            yield made


def hangs(context: Any) -> Any:
    while context.is_active():
        time.sleep(0.01)


@pytest.mark.parametrize("current", [hangs, aborts(grpc.StatusCode.INTERNAL, "later")])
def test_a_candidate_that_does_not_answer_costs_no_second_deadline(
    current: Callable[[Any], Any],
) -> None:
    """Two seconds, not four, and the current side has been asked within them."""
    with served(2, current) as old, served(2, hangs) as new, Split(old, new, 1) as split:
        begin = time.monotonic()
        with pytest.raises((DeadlineExceededError, InferenceError)) as caught:
            split.predict(text="x")
        took = time.monotonic() - begin
        assert 0.9 < took < 3.2
        assert split.counts["current"].failures == split.counts["candidate"].failures == 1
        assert isinstance(caught.value, DeadlineExceededError) == (current is hangs)


def test_one_deadline_counts_from_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("merkit.backends.deadline.time.monotonic", lambda: now[0])
    assert seconds_left(4) == 4
    with one_deadline() as budget:
        now[0] += 50  # decoding, say, which is before the first call
        budget.share = 0.5
        assert seconds_left(4) == 2
        now[0] += 1.5
        assert seconds_left(4) == 0.5
        with one_deadline():
            budget.share = 1
            assert seconds_left(4) == 2.5
        now[0] += 3
        assert seconds_left(4) == -0.5
    assert seconds_left(4) == 4
