"""The step `tokenize`: words become ids for the text model and for the joint model's prompt.

Training and serving must cut a sentence into the same ids, so both come through here, with the
`tokenizer.json` that travels in the bundle.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from merkit.contract import Contract
from merkit.errors import BundleCorruptError, InvalidInputError, MissingExtraError
from merkit.steps.base import Array, column, padded, take
from merkit.steps.prompt import Prompt

PAD = "<pad>"
CHARACTERS_PER_TOKEN = 200
"""Longer text is cut by characters first, so that a novel costs no more than a page."""


class Tokenize:
    """`text` -> `text_ids`, `text_length`, `joint_ids`, `joint_length`.

    Text is normalised (NFC) and stripped; of more than `max_text_tokens` ids the first are
    kept. No words: one pad id and `text_length` 0. `joint_ids` are the contract's prompt, then
    the text (seed 2.3), or both at the places that it names (see `Prompt`). No special tokens are
    added. Batches are padded with the pad id.
    """

    name: ClassVar[str] = "tokenize"

    def __init__(self, contract: Contract, resources: Path | None) -> None:
        self.contract = contract
        self.tokenizer = _load(resources)
        self.pad = int(self.tokenizer.token_to_id(PAD))
        self.prompt = Prompt.of(contract.preprocessing.prompt, self.tokenizer)

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """See Step."""
        (text,) = take(tensors, self.contract, "text")
        most = self.contract.preprocessing.max_text_tokens
        ids = [self._encode(_clean(value, most))[:most] for value in text[:, 0]]
        joint = [self.prompt.around(row) for row in ids]
        return {
            "text_ids": self._padded(ids),
            "text_length": column([len(row) for row in ids]),
            "joint_ids": self._padded(joint),
            "joint_length": column([len(row) for row in joint]),
        }

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _padded(self, rows: list[list[int]]) -> Array:
        return padded([np.array(row or [self.pad], np.int64) for row in rows], self.pad)


def _clean(value: Any, most: int) -> str:
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise TypeError(type(text).__name__)
        text.encode("utf-8")  # a lone surrogate is no text
    except (UnicodeError, TypeError) as error:
        raise InvalidInputError(
            f"the text is no text ({type(error).__name__})",
            "Unicode text, encoded as UTF-8 on the wire",
            "decode it with its own encoding first",
        ) from None
    return unicodedata.normalize("NFC", text[: most * CHARACTERS_PER_TOKEN]).strip()


def _load(resources: Path | None) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtraError.of("tokenizers", "text") from None
    path = (resources or Path()) / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise BundleCorruptError(
            f"{path} cannot be read ({type(error).__name__})",
            "a tokenizer.json of the tokenizers package",
            "fetch an unchanged copy of the bundle, or export it again",
        ) from None
    if tokenizer.token_to_id(PAD) is None:
        raise BundleCorruptError(
            f"{path} has no token {PAD}", f"a vocabulary with {PAD}", "export the bundle again"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
