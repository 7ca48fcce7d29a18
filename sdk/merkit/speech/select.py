"""Which sound to listen to: the original, or one of its separated sources (seed 2.4.2).

Separation may take away more than noise. The words tell: the source whose transcript is much
nearer to the noisy sound's own than the other's is the speaker's; where neither is, the noisy
sound was not a mixture worth taking apart, and stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

from merkit.errors import InvalidInputError
from merkit.speech.edits import character_error_rate, normalised

THRESHOLD = 0.1
"""By how much similarities must differ (seed 2.4.2)."""
ROUNDING = 1e-9
"""What a difference of two decimal fractions may exceed the threshold by and still equal it."""

Similarity = Callable[[str, str], float]


@dataclass(frozen=True)
class Selection:
    """What was chosen, and why."""

    source: int | None  # which source; None: the original
    similarities: tuple[float, ...]  # of each source's transcript to the original's, 0 to 1
    reason: str  # one clause, for a log or a result

    @property
    def name(self) -> str:
        """`original`, `source0` or `source1`."""
        return "original" if self.source is None else f"source{self.source}"


def select_source(
    original: str,
    sources: Sequence[str],
    *,
    threshold: float = THRESHOLD,
    measure: str = "cer",
) -> Selection:
    """The seed's rule on transcripts.

    Args:
        original: the transcript of the noisy sound.
        sources: those of its sources, two or more; of more than two the best two count.
        threshold: the best source is taken if its similarity exceeds the next one's by more.
        measure: a key of `MEASURES`.

    Raises:
        InvalidInputError: fewer than two sources, a threshold outside 0 to 1, no such measure.
    """
    similarity = _checked(sources, threshold, measure)
    if not normalised(original):
        none = (0.0,) * len(sources)
        return Selection(None, none, "the original has no words to compare with")
    found = tuple(similarity(original, source) for source in sources)
    best, second = sorted(range(len(found)), key=lambda i: -found[i])[:2]
    lead = found[best] - found[second]
    if not any(normalised(source) for source in sources):
        return Selection(None, found, "no source has words")
    if lead > threshold + ROUNDING:
        reason = f"source {best} is nearer to the original by {lead:.2f}, over {threshold:g}"
        return Selection(best, found, reason)
    return Selection(None, found, f"similarities differ by {lead:.2f}, not over {threshold:g}")


def _checked(sources: Sequence[str], threshold: float, measure: str) -> Similarity:
    if len(sources) < 2:
        found = f"{len(sources)} transcripts of sources"
        raise InvalidInputError(found, "two or more", "give the transcript of each source")
    if not 0 <= threshold <= 1:
        raise InvalidInputError(f"the threshold is {threshold}", "0 to 1", "the seed's is 0.1")
    if measure not in MEASURES:
        expected = f"one of {', '.join(MEASURES)}"
        raise InvalidInputError(f"the measure {measure!r} is unknown", expected, "correct it")
    return MEASURES[measure]


def by_characters(reference: str, found: str) -> float:
    """1 - CER, at least 0: a transcript with more errors than characters has nothing in common."""
    return max(0.0, 1.0 - character_error_rate([(reference, found)]))


def by_bigrams(reference: str, found: str) -> float:
    """Dice coefficient of neighbouring characters: forgives words that moved."""
    counts = [Counter(pairwise(text)) for text in _spaced(reference, found)]
    total = sum(counts[0].values()) + sum(counts[1].values())
    return 2 * sum((counts[0] & counts[1]).values()) / total if total else 0.0


def by_blocks(reference: str, found: str) -> float:
    """Share of characters in matching blocks (Ratcliff and Obershelp): forgives insertions."""
    texts = normalised(reference), normalised(found)
    return SequenceMatcher(None, *texts, autojunk=False).ratio() if all(texts) else 0.0


def _spaced(*texts: str) -> list[str]:
    """Normalised, with a space to each side, so that a single character has neighbours, too."""
    return [f" {plain} " if (plain := normalised(text)) else "" for text in texts]


MEASURES: Mapping[str, Similarity] = {
    "cer": by_characters,
    "bigrams": by_bigrams,
    "blocks": by_blocks,
}
"""Similarities by name, each from 0 to 1."""
