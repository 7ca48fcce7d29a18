"""The vocabulary of a corpus: its Chinese characters, and pieces of its English words.

One token an English letter would ask for more tokens than the recogniser has frames (60 ms each);
one a word could not spell a word that training lacked. So the most frequent pairs of pieces are
joined, as byte pair encoding does it (Sennrich et al. 2016), and every letter stays a piece too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from merkit.speech.edits import WIDE, normalised
from merkit.speech.vocabulary import BLANK, END, GOES_ON, START, UNKNOWN, Vocabulary

LEAST_PAIRS = 2  # a pair that occurs less often is not worth a piece


def learn_vocabulary(texts: Iterable[str], word_pieces: int) -> Vocabulary:
    """Tokens for all characters of the texts, with at most `word_pieces` joins of letters."""
    words: Counter[str] = Counter()
    wide: set[str] = set()
    for text in texts:
        plain = normalised(text)
        wide.update(WIDE.findall(plain))
        words.update(WIDE.sub(" ", plain).split())
    letters = sorted({letter for word in words for letter in word})
    spelt = {word: (*(letter + GOES_ON for letter in word[:-1]), word[-1]) for word in words}
    joins = _joins(spelt, words, word_pieces)
    singles = [piece for letter in letters for piece in (letter + GOES_ON, letter)]
    known = dict.fromkeys((BLANK, START, END, *sorted(wide), *singles, *joins, UNKNOWN))
    return Vocabulary(tuple(known))


def _joins(spelt: dict[str, tuple[str, ...]], words: Counter[str], most: int) -> list[str]:
    """New pieces in order of their making; `spelt` becomes words as pieces."""
    made: list[str] = []
    for _ in range(most):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelt.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < LEAST_PAIRS:
            break
        whole = best[0].removesuffix(GOES_ON) + best[1]
        made.append(whole)
        for word, pieces in spelt.items():
            if best[0] in pieces:
                spelt[word] = _joined(pieces, best, whole)
    return made


def _joined(pieces: tuple[str, ...], pair: tuple[str, str], whole: str) -> tuple[str, ...]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] = whole
        else:
            out.append(piece)
    return tuple(out)
