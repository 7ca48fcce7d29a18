"""sentencepiece's `tokenizer.model` as a tokeniser of the package that the SDK carries.

Baichuan and Llama publish their vocabularies in sentencepiece's format, which the SDK does not
read: one tokeniser package in an application is enough. What sentencepiece does to a text is
written down in the file: a table of characters to replace, how spaces are kept, and the score of
each piece. From these the same ids follow, without sentencepiece being installed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from merkit.errors import InvalidInputError

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of pieces
BPE = 2  # of the kinds of models


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Vocabulary:
    """What of a `tokenizer.model` decides on ids."""

    pieces: tuple[Piece, ...]
    characters: bytes  # compiled table of replacements; empty: none
    dummy_prefix: bool  # a text begins with a space
    squeeze: bool  # spaces at the ends go, several become one
    byte_fallback: bool  # an unknown character becomes its bytes


def from_sentencepiece(path: Path) -> Tokenizer:
    """A tokeniser that gives the ids that sentencepiece gives.

    One case differs: if the model puts a space before each text and defines symbols of its own,
    a text that begins with such a symbol, with a space or with the mark of one gets no space.

    Raises:
        InvalidInputError: not such a file, or one of a kind that language models do not use.
    """
    vocabulary = read_model(path)
    ids = {piece.text: i for i, piece in enumerate(vocabulary.pieces)}
    unknown = next((p.text for p in vocabulary.pieces if p.kind == UNKNOWN), None)
    model = models.BPE(
        vocab=ids,
        merges=_merges(vocabulary),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=vocabulary.byte_fallback,
    )
    tokenizer = Tokenizer(model)
    symbols = [p.text for p in vocabulary.pieces if p.kind == USER_DEFINED]
    steps: list[normalizers.Normalizer] = []
    if vocabulary.characters:
        steps.append(normalizers.Precompiled(vocabulary.characters))
    if vocabulary.squeeze:
        steps.append(normalizers.Replace(Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(Regex(" +"), " "))
    if vocabulary.dummy_prefix and not symbols:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    if vocabulary.dummy_prefix and symbols:  # `Prepend` would alter the symbols too
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    control = [p.text for p in vocabulary.pieces if p.kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in control])
    tokenizer.add_tokens([AddedToken(text, normalized=True) for text in symbols])
    return tokenizer


def read_model(path: Path) -> Vocabulary:
    """Reads the file, a serialised protocol buffer `ModelProto`; errors as above."""
    pieces: list[Piece] = []
    trained = normal = b""
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                trained = value
            elif number == 3 and isinstance(value, bytes):
                normal = value
        training, rules = dict(_fields(trained)), dict(_fields(normal))
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read ({error.strerror})", "a tokenizer.model"
        ) from None
    except (ValueError, IndexError, struct.error) as error:
        raise InvalidInputError(
            f"{path} is no sentencepiece model ({error})",
            "the tokenizer.model of a checkpoint",
            "fetch it again; large files may be pointers of git-lfs",
        ) from None
    kinds = {piece.kind for piece in pieces}
    if not pieces or training.get(3) != BPE or training.get(24) or UNUSED in kinds:
        raise InvalidInputError(
            f"{path} is no BPE model of sentencepiece ({len(pieces)} pieces, kinds {kinds})",
            "pairs merged by score, spaces before words, and no unused pieces",
            "use the checkpoint's tokenizer.json",
        )
    characters = rules.get(2, b"")
    return Vocabulary(
        tuple(pieces),
        characters if isinstance(characters, bytes) else b"",
        bool(rules.get(3, 1)),
        bool(rules.get(4, 1)),
        bool(training.get(35, 0)),
    )


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Each way to join two pieces into a third, the best third first."""
    known = {p.text: i for i, p in enumerate(vocabulary.pieces) if p.kind == NORMAL}
    found = []
    for piece in vocabulary.pieces:
        if piece.kind != NORMAL:
            continue
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in known and right in known:
                found.append((-piece.score, known[left], known[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _piece(message: bytes) -> Piece:
    text, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text.decode("utf-8"), score, kind)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer's message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if number == 0 or at + size > len(message):
            raise ValueError(f"field {number} of {size} bytes at {at}")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at {at}")
