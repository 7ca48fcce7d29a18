"""N-gram probabilities by interpolated modified Kneser-Ney smoothing.

What was counted once says little of how often it will occur, and what never was may occur yet. From
each count a discount is taken, which one depends on the count, and what is taken goes to shorter
contexts, whose counts say how many contexts a word follows (Chen and Goodman 1999, eq. 26 ff.;
the interpolation and the vocabulary of unigrams are those of KenLM, Heafield et al. 2013). Every
context's probabilities sum to one, seen or not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from merkit.errors import InvalidInputError
from merkit.speech.ngram import END, NEVER, START, UNKNOWN, Gram, Ngrams
from merkit_training.speech.language_model.counts import Ids, adjusted, count

LONGEST = 5


@dataclass(frozen=True)
class Discounts:
    """What is taken from a count of one, of two, and of more."""

    one: float
    two: float
    more: float

    def of(self, n: int) -> float:
        """What is taken from the count `n`."""
        return (self.one, self.two, self.more)[min(n, 3) - 1]


FALLBACK = Discounts(0.5, 1.0, 1.5)
"""Where the counts of a small or repetitive text allow no estimate; KenLM's
`--discount_fallback`."""


def discounts(counts: Iterable[int]) -> Discounts:
    """The estimate from how many n-grams occur once, twice, three and four times, or FALLBACK where
    one of the first three is none, or a discount is negative or larger than its count."""
    n = Counter(c for c in counts if c <= 4)
    if not (n[1] and n[2] and n[3]):
        return FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    found = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
    return Discounts(*found) if all(0 <= d <= k for k, d in enumerate(found, 1)) else FALLBACK


def estimate(
    sentences: Iterable[Sequence[str]],
    order: int,
    *,
    words: Iterable[str] | None = None,
    memory: int = 5_000_000,
    given: Mapping[int, Discounts] | None = None,
) -> Ngrams:
    """A language model of sentences.

    Args:
        sentences: words, without marks; read once.
        order: words of the longest n-gram, 1 to 5.
        words: all words there are; others are read as `<unk>`. None: those of the sentences.
        memory: different n-grams counted at once before they go to disk. The model itself, smaller
            than the counts, is made in memory.
        given: discounts for some orders, in place of the estimate.

    Raises:
        InvalidInputError: another order, or no sentence.
    """
    if not 1 <= order <= LONGEST:
        raise InvalidInputError(f"the order is {order}", f"1 to {LONGEST}")
    index = {word: i for i, word in enumerate((UNKNOWN, START, END))}
    for word in words or ():
        index.setdefault(word, len(index))
    unknown, start, end = (index[word] for word in (UNKNOWN, START, END))
    marks = {start, end}

    def numbered() -> Iterable[list[int]]:
        for sentence in sentences:
            if words is None:
                ids = [index.setdefault(word, len(index)) for word in sentence]
            else:
                ids = [index.get(word, unknown) for word in sentence]
            yield [unknown if i in marks else i for i in ids]

    counts = adjusted(count(numbered(), order, memory, start, end), order, start)
    if not counts[0]:
        raise InvalidInputError("there is no sentence to count", "text, a sentence a line")
    given = given or {}
    levels = [
        _Level(level, given.get(n) or discounts(level.values()))
        for n, level in enumerate(counts, 1)
    ]
    return _interpolated(levels, list(index), start)


class _Level:
    """The n-grams of one order: discounted shares, and what each context leaves to shorter ones."""

    def __init__(self, counts: Mapping[Ids, int], taken: Discounts) -> None:
        sums: Counter[Ids] = Counter()
        left: dict[Ids, float] = {}
        for gram, n in counts.items():
            sums[gram[:-1]] += n
            left[gram[:-1]] = left.get(gram[:-1], 0.0) + taken.of(n)
        self.shares = {gram: (n - taken.of(n)) / sums[gram[:-1]] for gram, n in counts.items()}
        self.left = {context: mass / sums[context] for context, mass in left.items()}


def _interpolated(levels: Sequence[_Level], words: Sequence[str], start: int) -> Ngrams:
    """Each order's shares with what its contexts leave to the order below."""
    everything = [(i,) for i in range(len(words)) if i != start]
    even = levels[0].left[()] / len(everything)
    below: dict[Ids, float] = {g: levels[0].shares.get(g, 0.0) + even for g in everything}
    logs: dict[Gram, float] = {(START,): NEVER}
    backoffs: dict[Gram, float] = {}

    def named(gram: Ids) -> Gram:
        return tuple(words[i] for i in gram)

    logs |= {named(gram): math.log(p) for gram, p in below.items()}
    for level in levels[1:]:
        below = {g: s + level.left[g[:-1]] * below[g[1:]] for g, s in level.shares.items()}
        logs |= {named(gram): math.log(p) if p > 0 else NEVER for gram, p in below.items()}
        backoffs |= {named(c): math.log(m) if m > 0 else NEVER for c, m in level.left.items()}
    return Ngrams(logs, backoffs)
