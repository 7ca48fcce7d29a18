"""Published vocabularies in their several formats, as the one kind of tokeniser the SDK reads.

A language model is worth nothing with another vocabulary than its own, and checkpoints bring
theirs as tokenizer.json, as sentencepiece's tokenizer.model (Baichuan, Llama) or as tiktoken's
list of ranks (Qwen). Each becomes a tokeniser that gives the ids which its own package gives.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from merkit.errors import BundleNotFoundError, InvalidInputError
from merkit_training.encoders.joint.markup import QWEN_AUDIO_SPECIAL
from merkit_training.encoders.text.spm import from_sentencepiece

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen cuts a text before merging."""
QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(205)),
)
"""Qwen's special tokens, numbered after its ranks."""
NAMES = ("tokenizer.json", "tokenizer.model", "*.tiktoken")
"""What a checkpoint's folder may hold, best first."""


def read_vocabulary(source: Path) -> Tokenizer:
    """The tokeniser of a checkpoint's folder, or in a file of one of the three formats.

    A `.tiktoken` file is taken for Qwen's, or Qwen-Audio's where config.json beside it says so.

    Raises:
        BundleNotFoundError: no such file, or none of the three in the folder.
        InvalidInputError: the file is of another kind than its name says.
    """
    path = next((p for n in NAMES for p in sorted(source.glob(n))), source)
    if not path.is_file():
        raise BundleNotFoundError(
            f"{source} holds no tokeniser" if source.is_dir() else f"there is no {source}",
            f"a folder with {', '.join(NAMES)}, or such a file",
            "give the recipe's `tokenizer` a path",
        )
    if path.suffix == ".tiktoken":
        return from_tiktoken(path, special=_qwen_special(path.parent))
    if path.suffix == ".model":
        return from_sentencepiece(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise InvalidInputError(
            f"{path} is no tokeniser ({error})",
            f"one of {', '.join(NAMES)}, called so",
            "give the file that lies beside the model's weights",
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def from_tiktoken(
    path: Path, pattern: str = QWEN_PATTERN, special: Sequence[str] = QWEN_SPECIAL
) -> Tokenizer:
    """A tokeniser that gives the ids that tiktoken gives.

    Args:
        path: lines of a token's bytes in base 64 and its rank, which is its id.
        pattern: a regular expression of the parts within which bytes are merged.
        special: names of special tokens, numbered after the ranks.

    Raises:
        InvalidInputError: not such a file.
    """
    ranks = _ranks(path)
    letters = byte_letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                found.append((rank, ranks[left], ranks[right], names[left], names[right]))
    merges = [(left, right) for *_, left, right in sorted(found)]
    vocabulary = {names[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    return tokenizer


def byte_letters() -> list[str]:
    """The letter that stands for each byte, as GPT-2 chose them: printable ones for themselves,
    the others by the first letters from U+0100 on."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


def check_size(tokenizer: Tokenizer, rows: int) -> None:
    """Refuses a tokeniser whose ids go beyond an embedding of `rows` rows.

    Special tokens do not count: no text reaches them.

    Raises:
        InvalidInputError: a token has no row.
    """
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    largest = max((i for i in tokenizer.get_vocab().values() if i not in special), default=-1)
    if largest >= rows:
        raise InvalidInputError(
            f"the tokeniser has ids up to {largest}, and the language model {rows} embeddings",
            "an embedding for each token",
            "give the tokeniser that belongs to the checkpoint, or raise `vocabulary`",
        )


def _qwen_special(folder: Path) -> tuple[str, ...]:
    """The special tokens of a Qwen, or of a Qwen-Audio, whose config.json describes its tower."""
    try:
        audio = "audio" in json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        audio = False
    return (*QWEN_SPECIAL, *QWEN_AUDIO_SPECIAL) if audio else QWEN_SPECIAL


def _ranks(path: Path) -> dict[bytes, int]:
    try:
        rows = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except OSError as error:
        raise BundleNotFoundError(
            f"{path} cannot be read ({error.strerror})", "a list of tokens and ranks"
        ) from None
    except (ValueError, binascii.Error) as error:
        raise InvalidInputError(
            f"{path} is no tiktoken vocabulary ({error})",
            "lines of a token in base 64 and its rank",
            "give the file that lies beside the model's weights",
        ) from None
    whole = sorted(ranks.values()) == list(range(len(rows)))
    if not whole or any(bytes([byte]) not in ranks for byte in range(256)):
        raise InvalidInputError(
            f"{path} has {len(rows)} tokens with gaps",
            "every byte, and ranks from 0 on, each once",
            "fetch the file again",
        )
    return ranks
