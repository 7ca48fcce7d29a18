"""Search against all sequences and all paths, and confidence that says what it claims."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from merkit.errors import InvalidInputError
from merkit.speech.decode import beam, ctc_beam, ctc_greedy, greedy

Logs = NDArray[np.float32]
seeds = st.integers(0, 2**32 - 1)


def logs(seed: int, places: int, vocabulary: int) -> Logs:
    values = 2 * np.random.default_rng(seed).standard_normal((places, vocabulary))
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values.astype(np.float32)


def stopped(path: tuple[int, ...], end: int) -> tuple[int, ...]:
    return path[: path.index(end) + 1] if end in path else path


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 12))
def test_a_beam_finds_exactly_the_best_sequences(seed: int, places: int, width: int) -> None:
    # summed in float64, as the beam sums: in float32 two sequences may seem to tie
    rows, end, blank = logs(seed, places + 1, 4).astype(np.float64), 2, 0
    best: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(4), repeat=places):
        whole = stopped(path, end)
        total = float(sum(rows[i, token] for i, token in enumerate(whole)))
        best[whole] = total
    ranked = sorted(best.items(), key=lambda item: -item[1])[:width]
    texts: dict[tuple[int, ...], float] = {}
    for path, total in ranked:
        texts.setdefault(tuple(i for i in path if i not in (end, blank)), total)
    found = beam(rows, places, width, end=end, silent=[blank])
    assert [h.ids for h in found] == list(texts)
    assert [h.total for h in found] == pytest.approx(list(texts.values()), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(0, 6))
def test_greedy_stops_at_the_end_mark_and_averages_what_it_heard(seed: int, places: int) -> None:
    rows = logs(seed, 6, 5)
    path = stopped(tuple(int(i) for i in rows[:places].argmax(1)), 2)
    found = greedy(rows, places, end=2, silent=[0])
    assert found.ids == tuple(i for i in path if i not in (0, 2))
    assert found.total == pytest.approx(sum(rows[i, t] for i, t in enumerate(path)), abs=1e-5)
    if found.ids:
        assert found.confidence == pytest.approx(math.exp(found.total / len(path)))
        # a beam's best may end earlier, where that is more probable
        assert found.total <= beam(rows, places, 8, end=2, silent=[0])[0].total + 1e-6
    else:
        assert found.confidence == 0


def all_texts(rows: Logs, blank: int) -> dict[tuple[int, ...], float]:
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(rows.shape[1]), repeat=len(rows)):
        merged = [i for n, i in enumerate(path) if n == 0 or path[n - 1] != i]
        sums[tuple(i for i in merged if i != blank)] += math.exp(
            sum(rows[n, i] for n, i in enumerate(path))
        )
    return sums


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 5), st.sampled_from([0, 2]))
def test_ctc_sums_all_paths_of_a_text(seed: int, frames: int, blank: int) -> None:
    rows = logs(seed, frames, 3)
    truth = all_texts(rows, blank)
    found = ctc_beam(rows, frames, 1000, blank=blank)
    assert {h.ids: math.exp(h.total) for h in found} == pytest.approx(truth, rel=1e-5)
    assert sum(truth.values()) == pytest.approx(1, abs=1e-4)
    totals = [h.total for h in found]
    assert totals == sorted(totals, reverse=True)
    narrow = ctc_beam(rows, frames, 2, blank=blank)
    assert len(narrow) <= 2 and all(math.exp(h.total) <= truth[h.ids] * (1 + 1e-5) for h in narrow)


def test_ctc_greedy_merges_repeats_and_drops_blanks() -> None:
    rows = np.full((7, 4), -9.0, np.float32)
    for frame, token in enumerate([1, 1, 0, 1, 3, 3, 0]):
        rows[frame, token] = -0.01
    assert ctc_greedy(rows, 7, blank=0).ids == (1, 1, 3)
    assert ctc_greedy(rows, 3, blank=0).ids == (1,)
    assert ctc_greedy(rows, 0, blank=0).confidence == 0


@pytest.mark.parametrize(
    "rows",
    [np.zeros((2, 3, 4), np.float32), np.zeros((3, 0), np.float32), np.zeros((2, 3), np.int64),
     np.array([[np.nan, -1.0]]), np.array([[0.5, -1.0]])],
)  # fmt: skip
def test_what_are_no_log_probabilities_is_refused(rows: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidInputError, match="log-probabilities"):
        greedy(rows, 2, end=1)


def test_a_beam_needs_a_width() -> None:
    with pytest.raises(InvalidInputError, match="width is 0"):
        beam(logs(0, 2, 3), 2, 0, end=1)
    with pytest.raises(InvalidInputError, match="width is 0"):
        ctc_beam(logs(0, 2, 3), 2, 0, blank=0)
