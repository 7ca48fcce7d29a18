"""The recogniser's tokens: which id is which piece of text, and back.

A recogniser, its language model and sherpa-onnx must agree on ids to the last one. So the file is
FunASR's own `tokens.json`, a list whose order is the id: a Chinese character is a token, an English
word one or several pieces, of which all but the last end in `@@`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from merkit.errors import BundleCorruptError, BundleNotFoundError
from merkit.speech.edits import WIDE, normalised

BLANK, START, END, UNKNOWN = "<blank>", "<s>", "</s>", "<unk>"
SPECIAL = frozenset({BLANK, START, END, UNKNOWN, "<sos/eos>", "<sos>", "<eos>"})
GOES_ON = "@@"
"""Ends a piece of a word that another piece of the same word follows."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in order of id, without doubles; `</s>` is among them."""

    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.tokens)) != len(self.tokens) or END not in self.tokens:
            different, marked = len(set(self.tokens)), "with" if END in self.tokens else "without"
            raise BundleCorruptError(
                f"the vocabulary has {len(self.tokens)} tokens, {different} of them different, "
                f"{marked} {END}",
                f"different tokens, {END} among them",
                "take tokens.json from the folder that the model came in",
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: i for i, token in enumerate(self.tokens)}

    @property
    def blank(self) -> int:
        """The id of CTC's blank; FunASR has it first."""
        return self.ids.get(BLANK, 0)

    @property
    def end(self) -> int:
        """The id of the end mark, which the last real token is followed by."""
        return self.ids[END]

    @cached_property
    def silent(self) -> frozenset[int]:
        """Ids that stand for no text."""
        return frozenset(i for token, i in self.ids.items() if token in SPECIAL)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, normalised: of each word the longest pieces, from its beginning.

        What the vocabulary cannot spell is `<unk>`, where it has one, and else left out.
        """
        units = [unit for word in normalised(text).split() for unit in _units(word)]
        pieces = [piece for unit in units for piece in self._pieces(unit)]
        unknown = self.ids.get(UNKNOWN)
        ids = [self.ids.get(piece, unknown) for piece in pieces]
        return [i for i in ids if i is not None]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: words with spaces around them, Chinese characters without; ids that
        stand for no text, or for none of this vocabulary, are left out."""
        parts: list[str] = []
        goes_on = narrow = False
        for i in ids:
            if i in self.silent or not 0 <= i < len(self.tokens):
                continue
            piece = self.tokens[i]
            wide = WIDE.match(piece) is not None
            if parts and not goes_on and not (wide and not narrow):
                parts.append(" ")
            goes_on, narrow = piece.endswith(GOES_ON), not wide
            parts.append(piece.removesuffix(GOES_ON))
        return "".join(parts)

    def save(self, path: Path) -> None:
        """Writes `tokens.json`, through a temporary name."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.tokens, ensure_ascii=False, indent=0) + "\n", "utf-8")
        temporary.replace(path)

    @staticmethod
    def load(path: Path) -> Vocabulary:
        """Reads `tokens.json`.

        Raises:
            BundleNotFoundError: there is none.
            BundleCorruptError: it is no list of different strings.
        """
        try:
            tokens = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise BundleNotFoundError(
                f"{path} cannot be read ({error.strerror})", "tokens.json beside the model"
            ) from None
        except ValueError as error:
            raise BundleCorruptError(f"{path} is no JSON ({error})", "a list of tokens") from None
        if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
            raise BundleCorruptError(f"{path} is no list of strings", "a list of tokens")
        return Vocabulary(tuple(tokens))

    def _pieces(self, unit: str) -> list[str]:
        found: list[str] = []
        rest = unit
        while rest:
            if rest in self.ids:
                return [*found, rest]
            longest = next(
                (n for n in range(len(rest) - 1, 0, -1) if rest[:n] + GOES_ON in self.ids), 0
            )
            if not longest:
                return [*found, UNKNOWN]
            found.append(rest[:longest] + GOES_ON)
            rest = rest[longest:]
        return found


def _units(word: str) -> list[str]:
    """A word as its Chinese characters and what lies between them."""
    units: list[str] = []
    for character in word:
        if WIDE.match(character) or not units or WIDE.match(units[-1]):
            units.append(character)
        else:
            units[-1] += character
    return units
