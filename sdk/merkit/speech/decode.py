"""From a recogniser's log-probabilities to transcripts, with the confidence that goes with each.

A graph says how probable each token is at each place. What was said, how sure that is (the seed
adopts self-training labels by average score, 2.4.1), and what else it may have been, for a language
model to choose from, is search. numpy alone, so that every runtime searches alike.

Paraformer decides each token by itself, so the best sequences follow from the best prefixes, and a
beam of `width` finds exactly the `width` best. CTC's many paths to one text are summed by prefix.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError

Logs = NDArray[Any]
NEVER = -math.inf


@dataclass(frozen=True)
class Hypothesis:
    """A possible transcript."""

    ids: tuple[int, ...]
    total: float  # log-probability of the whole, the end mark included
    places: int  # over which `score` averages: tokens, and the end mark if it was heard

    @property
    def score(self) -> float:
        """Average log-probability of a token; minus infinity where there is none."""
        return self.total / self.places if self.ids else NEVER

    @property
    def confidence(self) -> float:
        """`score` as a probability, 0 to 1; nothing heard is 0, however surely."""
        return math.exp(min(self.score, 0.0))


def greedy(logs: Logs, count: int, *, end: int, silent: Iterable[int] = ()) -> Hypothesis:
    """The most probable token at each place, up to the first end mark.

    Args:
        logs: float [places, vocabulary], log-probabilities.
        count: how many of the places are real.
        end: id of the end mark.
        silent: ids that stand for no text; they count as places and do not enter `ids`.

    Raises:
        InvalidInputError: not such an array, or values that are no log-probabilities.
    """
    rows = _checked(logs)[: max(count, 0)]
    best = rows.argmax(axis=1)
    stop = np.flatnonzero(best == end)
    places = int(stop[0]) + 1 if stop.size else len(rows)
    total = float(rows[np.arange(places), best[:places]].sum())
    return Hypothesis(_spoken(best[:places].tolist(), {end, *silent}), total, places)


def beam(
    logs: Logs, count: int, width: int, *, end: int, silent: Iterable[int] = ()
) -> list[Hypothesis]:
    """The `width` most probable token sequences, best first; arguments as of `greedy`.

    Of those that differ only in silent tokens the most probable stands for all, so that fewer than
    `width` may be left.
    """
    rows, marks = _checked(logs)[: max(count, 0)], {end, *silent}
    if width < 1:
        raise InvalidInputError(f"the beam's width is {width}", "1 or more")
    alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for row in rows:
        # what ends here competes with what ended before, not with what must still pay for more
        stops = ((t + float(row[end]), (*ids, end)) for t, ids in alive if np.isfinite(row[end]))
        ended = heapq.nlargest(width, [*ended, *stops])
        near = (
            np.argpartition(row, -width - 1)[-width - 1 :]
            if width + 1 < len(row)
            else range(len(row))
        )
        options = [(float(row[i]), int(i)) for i in near if i != end and np.isfinite(row[i])]
        grown = ((t + log, (*ids, i)) for t, ids in alive for log, i in options)
        alive = heapq.nlargest(width, grown)
    found: dict[tuple[int, ...], Hypothesis] = {}
    for total, ids in heapq.nlargest(width, [*alive, *ended]):
        text = _spoken(ids, marks)
        found.setdefault(text, Hypothesis(text, total, len(ids)))
    return list(found.values())


def ctc_greedy(logs: Logs, count: int, *, blank: int) -> Hypothesis:
    """The most probable CTC path, repeats merged and blanks removed.

    Args:
        logs: float [frames, vocabulary], log-probabilities.
        count: how many of the frames are real.
        blank: id of the blank.
    """
    rows = _checked(logs)[: max(count, 0)]
    best = rows.argmax(axis=1).tolist()
    ids = tuple(i for n, i in enumerate(best) if i != blank and (n == 0 or best[n - 1] != i))
    return Hypothesis(ids, float(rows.max(axis=1).sum()) if best else 0.0, len(ids))


def ctc_beam(logs: Logs, count: int, width: int, *, blank: int) -> list[Hypothesis]:
    """The most probable texts under CTC, best first, each with the sum over all of its paths.

    Args:
        logs, count, blank: as of `ctc_greedy`.
        width: prefixes kept after each frame, and texts returned at most.
    """
    rows = _checked(logs)[: max(count, 0)]
    if width < 1:
        raise InvalidInputError(f"the beam's width is {width}", "1 or more")
    alive: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}
    for row in rows:
        alive = _widest(_step(alive, row, blank, width), width)
    best = sorted(((_add(*ends), ids) for ids, ends in alive.items()), reverse=True)
    return [Hypothesis(ids, total, len(ids)) for total, ids in best if total > NEVER]


def _step(
    alive: dict[tuple[int, ...], tuple[float, float]], row: Logs, blank: int, width: int
) -> dict[tuple[int, ...], tuple[float, float]]:
    """All prefixes one frame later, each with its log-probability of ending in a blank and of
    ending in its last token."""
    grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [NEVER, NEVER])
    near = (
        np.argpartition(row, -width - 1)[-width - 1 :] if width + 1 < len(row) else range(len(row))
    )
    tokens = [int(i) for i in near if i != blank]
    for ids, (in_blank, in_token) in alive.items():
        same = grown[ids]
        same[0] = _add(same[0], _add(in_blank, in_token) + float(row[blank]))
        if ids:
            same[1] = _add(same[1], in_token + float(row[ids[-1]]))
        for token in tokens:
            before = in_blank if ids and token == ids[-1] else _add(in_blank, in_token)
            longer = grown[(*ids, token)]
            longer[1] = _add(longer[1], before + float(row[token]))
    return {ids: (ends[0], ends[1]) for ids, ends in grown.items()}


def _widest(
    grown: dict[tuple[int, ...], tuple[float, float]], width: int
) -> dict[tuple[int, ...], tuple[float, float]]:
    best = heapq.nlargest(width, grown, key=lambda ids: (_add(*grown[ids]), ids))
    return {ids: grown[ids] for ids in best}


def _add(first: float, second: float) -> float:
    """The logarithm of a sum of two probabilities, from their logarithms."""
    high, low = max(first, second), min(first, second)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))


def _spoken(ids: Iterable[int], marks: set[int]) -> tuple[int, ...]:
    return tuple(i for i in ids if i not in marks)


def _checked(logs: Logs) -> Logs:
    """The values as float64, once they can be log-probabilities."""
    values = np.asarray(logs)
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind != "f":
        raise InvalidInputError(
            f"the log-probabilities are {values.dtype} {list(values.shape)}",
            "float [places, vocabulary]",
            "give one clip's rows of the recogniser's output",
        )
    values = values.astype(np.float64)
    if np.isnan(values).any() or (values > 1e-3).any():
        raise InvalidInputError(
            "the log-probabilities hold NaN, or values above 0",
            "logarithms of probabilities",
            "take the recogniser's output as it is",
        )
    return values
