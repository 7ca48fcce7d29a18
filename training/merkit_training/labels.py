"""Class names in their fixed orders, and the one place that reads their spellings.

MER's files spell one class in several ways (anger, angry; sadness, sad). Were each reader to
guess, a misspelt label would silently become a seventh class.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from merkit.errors import InvalidInputError

MER6 = ("neutral", "angry", "happy", "sad", "worried", "surprise")
"""MER's six classes in the order of every score axis."""

FACE8 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral", "worried")
"""The eight classes of the seed's face fine-tuning (2.2.1)."""

FACE3 = ("positive", "negative", "neutral")
"""The three classes that the seed compares the eight with (Table 2)."""

TO_FACE3 = {
    "happy": "positive",
    "angry": "negative",
    "disgust": "negative",
    "fear": "negative",
    "sad": "negative",
    "worried": "negative",
    "neutral": "neutral",
    "surprise": "neutral",
}
"""The seed does not say which goes where. Surprise is glad as often as not: neutral."""

ALIASES = {
    "anger": "angry",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "worry": "worried",
}
FACE_ALIASES = ALIASES | {
    "anxious": "worried",
    "disgusted": "disgust",
    "fearful": "fear",
    "scared": "fear",
    "weakly negative": "negative",
    "weakly positive": "positive",
}
"""Also what face sets and CH-SIMS write."""


def alias(name: str) -> str:
    """The canonical spelling of a class name; InvalidInputError if it is no known class."""
    plain = name.strip().lower()
    plain = ALIASES.get(plain, plain)
    if plain not in MER6 and plain not in FACE8:
        known = ", ".join(sorted({*MER6, *FACE8, *ALIASES}))
        raise InvalidInputError(
            f"the label {name!r} is unknown", f"one of {known}", "correct the label file"
        )
    return plain


def place(name: str, classes: Sequence[str]) -> int | None:
    """The number in `classes` of a face set's class, None where it has no place there.

    Spellings as `alias` reads them. The seven basic expressions of RAF-DB, ExpW and FER find
    their places among the eight by name ("worried" stays empty), and all eight among FACE3.

    Args:
        name: as the set spells it.
        classes: FACE8, FACE3, or any names of one's own.
    """
    if name in classes:
        return classes.index(name)
    plain = name.strip().lower()
    plain = FACE_ALIASES.get(plain, plain)
    if plain not in classes and plain in TO_FACE3 and set(classes) <= set(FACE3):
        plain = TO_FACE3[plain]
    return classes.index(plain) if plain in classes else None


def classes_of(corpus: Path) -> tuple[str, ...]:
    """The emotion classes of a corpus, in order: those that its card names, else MER6."""
    return _names(corpus, "labels") or MER6


def face_classes_of(corpus: Path) -> tuple[str, ...]:
    """The classes of a corpus' single faces, in order: those that its card names, else FACE8."""
    return _names(corpus, "face_labels") or FACE8


def _names(corpus: Path, key: str) -> tuple[str, ...]:
    path = corpus / "card.json"
    if not path.is_file():
        return ()
    try:
        names = json.loads(path.read_text("utf-8")).get(key, ())
    except (ValueError, AttributeError) as error:
        raise InvalidInputError(f"{path} is damaged ({error})", "the JSON of a corpus") from None
    return tuple(names) if isinstance(names, list) else ()
