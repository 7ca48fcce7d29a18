"""Hypotheses of a recogniser put in the order that sound and language together suggest.

The recogniser decides each token by itself and cannot know that one reading is a sentence and the
other is not. An n-gram model does (seed 2.4.1). Their scores add up with a weight, and a bonus for
each token, since each further token costs probability; both are found on validation utterances.
Where the extra `lm` is installed, `merkit.speech.wfst` searches all sequences instead of the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from merkit.errors import InvalidInputError
from merkit.speech.decode import Hypothesis
from merkit.speech.edits import character_error_rate
from merkit.speech.ngram import Ngrams
from merkit.speech.vocabulary import Vocabulary


@dataclass(frozen=True)
class Scales:
    """How much language counts beside sound."""

    weight: float = 0.3  # of the language model's log-probability
    bonus: float = 0.0  # added for each token

    def __post_init__(self) -> None:
        if not 0 <= self.weight < 1e3 or not -1e3 < self.bonus < 1e3:
            raise InvalidInputError(
                f"the weight is {self.weight} and the bonus {self.bonus}",
                "finite numbers, the weight 0 or more",
            )

    def add(self, sound: float, language: float, tokens: int) -> float:
        """The score of a hypothesis; minus infinity is possible. A weight of 0 asks no language
        model, whatever it says."""
        return sound + self.bonus * tokens + (self.weight * language if self.weight else 0.0)


@dataclass(frozen=True)
class Rescorer:
    """A language model over a recogniser's tokens."""

    ngrams: Ngrams
    vocabulary: Vocabulary
    scales: Scales = Scales()

    def __call__(self, hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The hypotheses, best first; of equals the one that stood first. Their own scores, and
        so their confidence, stay what the recogniser said."""
        scored = [(self.score(h), -i) for i, h in enumerate(hypotheses)]
        return [hypotheses[-i] for _, i in sorted(scored, reverse=True)]

    def score(self, hypothesis: Hypothesis) -> float:
        """Sound and language together."""
        ids = hypothesis.ids
        return self.scales.add(hypothesis.total, self.language(ids), len(ids))

    def language(self, ids: Iterable[int]) -> float:
        """Natural logarithm of the probability of tokens as a sentence."""
        return self.ngrams.total(self.vocabulary.tokens[i] for i in ids)


def tune(
    rescorer: Rescorer,
    heard: Sequence[tuple[str, Sequence[Hypothesis]]],
    weights: Sequence[float],
    bonuses: Sequence[float],
) -> tuple[Scales, dict[Scales, float]]:
    """The scales with the fewest character errors, the first of equals, and those of all.

    Args:
        rescorer: the language model; its own scales are not asked.
        heard: of each utterance what was said, and the recogniser's hypotheses.
        weights, bonuses: tried all with all, in this order.

    Raises:
        InvalidInputError: nothing to try, or nothing to try it on.
    """
    if not weights or not bonuses or not any(found for _, found in heard):
        raise InvalidInputError(
            f"{len(weights)} weights, {len(bonuses)} bonuses and {len(heard)} utterances",
            "at least one of each, with hypotheses",
        )
    table = [(said, [(h, rescorer.language(h.ids)) for h in found]) for said, found in heard]
    text = rescorer.vocabulary.decode
    errors: dict[Scales, float] = {}
    for weight, bonus in product(weights, bonuses):
        scales = Scales(weight, bonus)
        pairs = []
        for said, scored in table:
            totals = [scales.add(h.total, language, len(h.ids)) for h, language in scored]
            best = max(range(len(totals)), key=totals.__getitem__, default=None)
            pairs.append((said, "" if best is None else text(scored[best][0].ids)))
        errors[scales] = character_error_rate(pairs)
    return min(errors, key=lambda scales: errors[scales]), errors
