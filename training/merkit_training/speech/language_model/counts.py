"""How often each n-gram occurs, in bounded memory.

A language model wants as much text as there is (seed 2.4.1: "a large amount of text data"), and
the different n-grams of a large text fit no dictionary. Beyond a limit they are sorted onto disk,
and read back merged. Only the longest n-grams are counted: the shorter ones follow from them.
"""

from __future__ import annotations

import heapq
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TextIO

Ids = tuple[int, ...]
Counts = list[dict[Ids, int]]
"""Of each order, from 1, the adjusted counts."""


def count(
    sentences: Iterable[Sequence[int]], order: int, memory: int, start: int, end: int
) -> Iterator[tuple[Ids, int]]:
    """The windows of sentences and how often each occurs, in order.

    Args:
        sentences: ids of words, without the marks.
        order: words of a window, at most. Only windows that begin with `start` are shorter.
        memory: different windows held at once; beyond, they are sorted into temporary files.
        start, end: ids of the marks.
    """
    with tempfile.TemporaryDirectory(prefix="ngrams-") as folder:
        seen: Counter[Ids] = Counter()
        files: list[TextIO] = []
        try:
            for sentence in sentences:
                ids = (start, *sentence, end)
                seen.update(ids[max(0, i - order + 1) : i + 1] for i in range(1, len(ids)))
                if len(seen) > memory:
                    files.append(_spilt(seen, Path(folder) / str(len(files))))
                    seen = Counter()
            parts = [_read(file) for file in files]
            merged = heapq.merge(sorted(seen.items()), *parts)
            for window, same in groupby(merged, key=lambda pair: pair[0]):
                yield window, sum(n for _, n in same)
        finally:
            for file in files:
                file.close()


def adjusted(windows: Iterable[tuple[Ids, int]], order: int, start: int) -> Counts:
    """Kneser-Ney's counts: of the longest n-grams, and of those at the beginning of a sentence,
    how often they occur; of the others after how many different words (Chen and Goodman 1999,
    section 3; Heafield et al. 2013, section 3.2)."""
    counts: Counts = [{} for _ in range(order)]
    for window, n in windows:
        counts[len(window) - 1][window] = n
    for longer, shorter in zip(counts[:0:-1], counts[-2::-1], strict=True):
        for window in longer:
            rest = window[1:]
            if rest[0] != start:
                shorter[rest] = shorter.get(rest, 0) + 1
    return counts


def _spilt(seen: Counter[Ids], path: Path) -> TextIO:
    """Writes counts in order, and opens them for reading."""
    with path.open("w", encoding="ascii") as file:
        for window, n in sorted(seen.items()):
            file.write(f"{' '.join(map(str, window))} {n}\n")
    return path.open(encoding="ascii")


def _read(file: TextIO) -> Iterator[tuple[Ids, int]]:
    for line in file:
        *window, n = map(int, line.split())
        yield tuple(window), n
