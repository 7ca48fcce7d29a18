"""The step `tokenize`: words become ids for the text model and for the joint model's prompt.

Training and serving must cut a sentence into the same ids, so both come through here, with the
`tokenizer.json` that travels in the bundle. A joint model with a language model of its own has a
vocabulary of its own: `joint.json` beside it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from merkit.contract import Contract
from merkit.errors import BundleCorruptError, MissingExtraError
from merkit.steps.base import Array, as_text, column, padded, take
from merkit.steps.prompt import Prompt
from merkit.steps.transcribe import read_punctuator

TEXT_FILE, JOINT_FILE = "tokenizer.json", "joint.json"
PAD_ID = 0
"""What fills a batch up. Masks hide it, so any id does, whatever a vocabulary calls it."""
CHARACTERS_PER_TOKEN = 200
"""Longer text is cut by characters first, so that a novel costs no more than a page."""


class Tokenize:
    """`text` -> `text_ids`, `text_length`, `joint_ids`, `joint_length`.

    In a pipeline that hears it is `transcript` instead, and `words` beside the ids says which text
    was used: of recognised words (`word_count`) with the marks that `mark_scores` say.

    Text is normalised (NFC) and stripped; of more than `max_text_tokens` ids the first are
    kept. No words: one pad id and `text_length` 0. `joint_ids` are the contract's prompt, then
    the text (seed 2.3), or both at the places that it names (see `Prompt`). No special tokens are
    added, and text that spells one is cut like any other. Batches are padded with the pad id.
    """

    name: ClassVar[str] = "tokenize"

    def __init__(self, contract: Contract, resources: Path | None) -> None:
        self.contract = contract
        folder = resources or Path()
        self.text = self.joint = _load(folder / TEXT_FILE)
        if (folder / JOINT_FILE).exists():
            self.joint = _load(folder / JOINT_FILE)
        self.prompt = Prompt.of(contract.preprocessing.prompt, self.joint)
        step = contract.step(self.name)
        self.inputs, self.says = step.inputs, "words" in step.outputs
        self.punctuator = read_punctuator(folder) if "mark_scores" in step.inputs else None

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """See Step."""
        given = take(tensors, self.contract, *self.inputs)
        most = self.contract.preprocessing.max_text_tokens
        texts = [as_text(value) for value in given[0][:, 0]]
        if self.punctuator is not None:
            texts = [self._marked(*row) for row in zip(texts, *given[1:], strict=True)]
        cleaned = [_clean(text, most) for text in texts]
        ids = words = [_encode(self.text, one)[:most] for one in cleaned]
        if self.joint is not self.text:
            words = [_encode(self.joint, one)[:most] for one in cleaned]
        joint = [self.prompt.around(row) for row in words]
        made = {
            "text_ids": _padded(ids),
            "text_length": column([len(row) for row in ids]),
            "joint_ids": _padded(joint),
            "joint_length": column([len(row) for row in joint]),
        }
        if self.says:
            made["words"] = np.array([[text] for text in texts], dtype=np.object_)
        return made

    def _marked(self, text: str, scores: Array, count: Array) -> str:
        """A recognised text with marks and capitals; any other, or one whose scores are no
        numbers, as it is."""
        found = scores[: max(0, int(count[0]))]
        if self.punctuator is None or not len(found) or not np.isfinite(found).all():
            return text
        return self.punctuator.scored(text, found)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _padded(rows: list[list[int]]) -> Array:
    return padded([np.array(row or [PAD_ID], np.int64) for row in rows], PAD_ID)


def _clean(text: str, most: int) -> str:
    return unicodedata.normalize("NFC", text[: most * CHARACTERS_PER_TOKEN]).strip()


def _load(path: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtraError.of("tokenizers", "text") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise BundleCorruptError(
            f"{path} cannot be read ({type(error).__name__})",
            "a tokenizer.json of the tokenizers package",
            "fetch an unchanged copy of the bundle, or export it again",
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # as any text: a transcript cannot smuggle one in
    return tokenizer
