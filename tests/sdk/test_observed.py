"""What the client counts: answers, failures by kind, time and bytes."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from merkit.backends.observed import BUCKETS, Call, CallCounters, ObservedBackend
from merkit.client import Client
from merkit.errors import DeadlineExceededError
from merkit.testing import CannedBackend


class Slow(CannedBackend):
    """Misses its deadline at every second call."""

    calls = 0

    def infer(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls % 2 == 0:
            raise DeadlineExceededError("no answer")
        return super().infer(*args, **options)


def value(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


def test_calls_are_counted_by_what_became_of_them() -> None:
    counters = CallCounters()
    with Client(ObservedBackend(Slow({"happy": 1.0}), counters)) as client:
        for _ in range(3):
            assert client.predict(text="four").label == "happy"
            with pytest.raises(DeadlineExceededError):
                client.predict(text="four")
    text = counters.text()
    assert value(text, 'merkit_client_calls_total{outcome="ok"}') == 3
    assert value(text, 'merkit_client_calls_total{outcome="DeadlineExceededError"}') == 3
    assert value(text, "merkit_client_call_duration_seconds_count") == 6
    assert value(text, "merkit_client_sent_bytes_total") >= 6 * len("four")


def test_the_histogram_is_cumulative_and_complete() -> None:
    counters = CallCounters()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(counters, [Call(s, 1, None) for s in (0.0, 0.01, 0.3, 99.0) * 50]))
    text = counters.text()
    name = "merkit_client_call_duration_seconds_bucket"
    counts = [value(text, f'{name}{{le="{end}"}}') for end in (*BUCKETS, "+Inf")]
    assert counts == sorted(counts)
    assert counts[0] == 100, "a bucket's upper end belongs to it"
    assert counts[-1] == 200 == value(text, "merkit_client_call_duration_seconds_count")
    assert value(text, "merkit_client_call_duration_seconds_sum") == pytest.approx(50 * 99.31)


def test_a_counter_that_fails_is_heard() -> None:
    def broken(_: Call) -> None:
        raise ZeroDivisionError

    backend = CannedBackend({"happy": 1.0})
    with Client(ObservedBackend(backend, broken)) as client, pytest.raises(ZeroDivisionError):
        client.predict(text="a")


def test_it_is_a_backend_like_any_other() -> None:
    backend = CannedBackend({"happy": 1.0})
    observed = ObservedBackend(backend, lambda _: None)
    assert observed.contract is backend.contract
    assert observed.identity == backend.identity
    observed.close()
