"""The load benchmark counts what happened, and its script runs from end to end."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPOSITORY

from merkit.bundle import Bundle
from merkit.contract import Preprocessing
from merkit.errors import DeadlineExceededError, InvalidInputError
from merkit.serving import ServeOptions
from merkit.serving.tritonserver import Installation
from merkit_bench.endurance import Chaos, Soak, kill_under_load, memory
from merkit_bench.load import Bench, cold, main, opened
from merkit_bench.traffic import PATTERNS, Tally, closed_loop, mixed_requests, open_loop

SAMPLE = REPOSITORY / "docs" / "media" / "sample.mp4"
CLIPS = [(SAMPLE, "well, this is it")]


def test_requests_differ_in_length_and_in_what_is_there() -> None:
    requests = mixed_requests(CLIPS, 3 * len(PATTERNS), Preprocessing())
    shown = {
        (r.tensors["face_count"].item() > 0, r.tensors["waveform"].shape[1] > 0, r.text is not None)
        for r in requests
    }
    assert shown == set(PATTERNS)
    lengths = {r.tensors["waveform"].shape[1] for r in requests} - {0}
    assert len(lengths) == 3
    assert all((r.clip is None) == (r.tensors["face_count"].item() == 0) for r in requests[:6:3])
    for r in requests:
        assert r.tensors["waveform_length"].item() == r.tensors["waveform"].shape[1]
        assert r.tensors["text"][0, 0] == (r.text or "")
    with pytest.raises(InvalidInputError):
        mixed_requests([], 3, Preprocessing())


def test_a_closed_loop_keeps_every_client_busy_and_counts_errors_by_type() -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def ask(number: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        if number % 5 == 0:
            raise DeadlineExceededError("too late")

    tally = closed_loop(ask, clients=4, calls=40)
    assert most == 4
    assert len(tally.waits) == 32
    assert tally.errors == {"DeadlineExceededError": 8}
    assert tally.failed() == "8 DeadlineExceededError"
    assert 20 <= tally.quantile(0.5) < 200
    assert tally.rate == pytest.approx(32 / tally.seconds)


def test_waiting_in_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """A server that answers one at a time falls behind, and the waits say so."""
    turn = threading.Lock()

    def ask(_: int) -> None:
        with turn:
            time.sleep(0.02)

    tally = open_loop(ask, rate=200, calls=40)
    assert len(tally.waits) == 40
    assert max(tally.waits) > 0.25, "the last was due after 0.2 s, and its turn came after 0.8 s"


def test_no_answers_give_no_numbers() -> None:
    assert np.isnan(Tally().quantile(0.5))
    assert Tally().rate == 0
    assert Tally().failed() == "none"


def test_what_must_hold() -> None:
    fine = Tally(longest=5.5)
    assert Chaos(fine, 5, 1, 1).held
    assert not Chaos(Tally(longest=7), 5, 1, 1).held, "a call outlived its deadline"
    assert not Chaos(fine, 5, 1, float("inf")).held, "a client got no answer any more"
    fine.errors["ValueError"] += 1
    assert not Chaos(fine, 5, 1, 1).held, "an error that is not merkit's"
    grown = Soak(Tally(), np.linspace(100, 120, 50))
    assert grown.growth == pytest.approx(0.12, abs=0.02)
    loaded = Soak(Tally(), np.array([50.0] * 5 + [100.0] * 45))
    assert loaded.growth == 0, "what is loaded at first is no growth"


def test_errors_under_load_decide_the_exit_status(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(number: int) -> None:
        if number % 3 == 0:
            raise DeadlineExceededError("too late")

    bench = Bench(toy_bundle, SimpleNamespace(), [], 6)  # type: ignore[arg-type]
    monkeypatch.setattr(Bench, "tensors", lambda *_: ask)
    lines = opened(bench, SimpleNamespace(), best=1000.0)  # type: ignore[arg-type]
    assert "2 DeadlineExceededError" in lines[-1]
    assert bench.errors == {"DeadlineExceededError": 6}


@pytest.mark.parametrize(("slow", "fine"), [(False, True), (True, False)])
def test_a_slow_first_request_decides_the_exit_status(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, slow: bool, fine: bool
) -> None:
    """Without warm-up the first may be slow; with it only as slow as the others."""

    class Started:
        grpc = ""

        def __init__(self, _: Bundle, options: ServeOptions) -> None:
            self.waits = [0.5] if slow or not options.deployment.warm_up else []

        def __enter__(self) -> Started:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def tensors(bench: Bench, _: object) -> object:
        waits = bench.server.waits  # type: ignore[attr-defined]
        return lambda _: time.sleep(waits.pop() if waits else 0.1)

    monkeypatch.setattr("merkit_bench.load.Server", Started)
    monkeypatch.setattr("merkit_bench.load.TritonBackend", lambda *_: SimpleNamespace(close=print))
    monkeypatch.setattr(Bench, "tensors", tensors)
    arguments = SimpleNamespace(calls=3)
    text, held = cold(toy_bundle, ServeOptions(), [], arguments)  # type: ignore[arg-type]
    assert held == fine and text.count("\n| ") == 4


def test_memory_of_a_group_that_is_gone() -> None:
    assert memory(2**22 + 1) == 0


@pytest.mark.usefixtures("triton")
def test_the_page(
    toy_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    sizes = ["--count", "4", "--calls", "4", "--clients", "2", "--only", "load"]
    assert main(["--bundle", str(toy_bundle.root), *sizes, "--soak", "2"]) == 0
    told, begun = capsys.readouterr()
    for measured in (
        "decoding",
        "closed loop",
        "open loop",
        "one client",
        "lazy",
        "steady load",
    ):
        assert re.search(rf"^\d\d:\d\d:\d\d {measured}", begun, re.MULTILINE), measured
    headings = [line for line in told.splitlines() if line.startswith("#")]
    assert [h.split(":")[0] for h in headings] == [
        "# Load",
        "## Closed loop",
        "## Open loop",
        "## One client",
        "## Lazy voting, 2 clients",
        "## Steady load",
    ]
    assert "Error" not in told
    widths = [line.count("|") for line in told.splitlines() if line.startswith("| 2 |")]
    assert widths == [12]


def test_a_kill_under_load(toy_bundle: Bundle, triton: Installation) -> None:
    assert triton
    requests = mixed_requests(CLIPS, 7, toy_bundle.contract.preprocessing)
    seen = kill_under_load(toy_bundle, ServeOptions(), requests, 3, deadline=5, before=0.5)
    assert seen.held, seen
    assert seen.recovered < 60
    assert seen.tally.errors, "nobody noticed the kill"


def test_bad_arguments_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bundle", str(tmp_path), "--only", "none"]) == 2
    assert capsys.readouterr().err.startswith("merkit_bench.load: ")
