"""The joint model's prompt: what stands before its sound, between sound and words, and after both.

A chat model expects markup around what it is told, such as `<audio>...</audio>`, and training and
serving must agree on every token of it. So the prompt is one string of the contract, and both
sides cut it here.

    What emotion does the speaker feel?         sound, prompt, words
    <|im_start|>user\\n{audio}{text}<|im_end|>    the same, at the places that it names
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from merkit.errors import InvalidInputError

AUDIO, TEXT = "{audio}", "{text}"
MARKUP = re.compile(r"(<[^<>\s]+>)")


@dataclass(frozen=True)
class Prompt:
    """Ids around a clip's sound and words: `before` [sound] `between` [words] `after`."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]

    @staticmethod
    def of(text: str, tokenizer: Any) -> Prompt:
        """Cuts and tokenises a prompt.

        Markup such as `<|im_start|>` that the vocabulary holds becomes its one token; a transcript
        that spells it does not, so that words can never pose as markup.

        Args:
            text: at most one `{audio}`, then at most one `{text}`; what is left out stands at the
                beginning and at the end.
            tokenizer: a `tokenizers.Tokenizer`.

        Raises:
            InvalidInputError: a placeholder twice, in the other order, or nothing after the sound.
        """
        before, between, after = split(text)
        return Prompt(*(_ids(part, tokenizer) for part in (before, between, after)))

    def around(self, words: list[int]) -> list[int]:
        """The ids of a clip whose words have the ids `words`."""
        return [*self.before, *self.between, *words, *self.after]


def split(text: str) -> tuple[str, str, str]:
    """The three parts of a prompt; errors as in `Prompt.of`."""
    before, heard, rest = text.rpartition(AUDIO)
    between, _, after = rest.partition(TEXT)
    misplaced = AUDIO in before or TEXT in before or TEXT in after
    # where nothing follows the sound, a clip without words would end before it is heard
    if misplaced or (heard and not (between + after).strip()):
        raise InvalidInputError(
            f"the prompt is {text!r}",
            f"at most one {AUDIO}, then at most one {TEXT}, and words of its own after {AUDIO}",
            "correct the prompt in the recipe's [preprocessing]",
        )
    return before, between, after


def _ids(part: str, tokenizer: Any) -> tuple[int, ...]:
    ids: list[int] = []
    for piece in MARKUP.split(part):
        known = tokenizer.token_to_id(piece) if MARKUP.fullmatch(piece) else None
        if known is not None:
            ids.append(int(known))
        elif piece:
            ids.extend(tokenizer.encode(piece, add_special_tokens=False).ids)
    return tuple(ids)
