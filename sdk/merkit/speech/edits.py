"""Character errors between two transcripts, counted in one way everywhere.

A recogniser writes no punctuation, one transcript says "I'm" and another "i'm", and Chinese has no
spaces: were each place to count in its own way, an error rate of training could not be compared
with one of evaluation, nor with the similarity that picks a source (seed 2.4.2).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'"})
_BARE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
_PUNCTUATION = re.compile(r"[^\w\s']|_")
_WIDE = "\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3040-\u30ff\uac00-\ud7af"
_BESIDE_WIDE = re.compile(rf"(?<=[{_WIDE}])\s+|\s+(?=[{_WIDE}])")
WIDE = re.compile(rf"[{_WIDE}]")
"""A character of a script that is written without spaces, and is a token by itself."""


def normalised(text: str) -> str:
    """The text without what a recogniser does not write: lower case, no punctuation but the
    apostrophe inside a word, single spaces between words, none beside Chinese characters."""
    plain = unicodedata.normalize("NFKC", text).translate(APOSTROPHES).lower()
    plain = _BARE_APOSTROPHE.sub(" ", _PUNCTUATION.sub(" ", plain))
    return _BESIDE_WIDE.sub("", " ".join(plain.split()))


def edit_distance(first: Sequence[object], second: Sequence[object]) -> int:
    """The least number of insertions, deletions and substitutions from one to the other."""
    if len(first) < len(second):
        first, second = second, first
    above = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        row = [i]
        for j, right in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
        above = row
    return above[-1]


def character_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Errors of all pairs (reference, found), normalised, over the characters of all references.

    Without one character of reference: 0 if nothing was found either, else infinite.
    """
    errors = length = 0
    for reference, found in pairs:
        truth = normalised(reference)
        errors += edit_distance(truth, normalised(found))
        length += len(truth)
    if not length:
        return float("inf") if errors else 0.0
    return errors / length
