"""Published vocabularies give the ids that their own packages give, and rubbish is named."""

from __future__ import annotations

import base64
import io
import random
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import sentencepiece
from tokenizers import Tokenizer, models

from merkit.errors import BundleNotFoundError, InvalidInputError
from merkit_training.encoders.text import tokenizer as own
from merkit_training.encoders.text.vocabularies import (
    QWEN_PATTERN,
    check_size,
    from_tiktoken,
    read_vocabulary,
)

ZH = ["我", "今天", "很", "开心", "难过", "生气", "担心", "你好", "世界", "没有", "不是", "的"]
EN = [
    "I",
    "am",
    "happy",
    "angry",
    "the",
    "they",
    "there",
    "there's",
    "isn't",
    "aaa",
    "aaaa",
    "abab",
]
ODD = ["😀", "👨‍👩‍👧", "é", "e\u0301", "ｆｕｌｌ", "①", "ñ", "한국", "aaaaaaa", "0123"]
ODD += ["<s>", "</s>", "<0x41>", "▁", "[MASK]", "<sym>", "<|im_end|>"]
SPACES = [" ", "  ", "\n", "\t", "\u3000"]


def corpus(count: int) -> list[str]:
    rng = random.Random(0)
    return [
        "".join(rng.choices(ZH, k=rng.randint(1, 6))) + " " + " ".join(rng.choices(EN, k=4))
        for _ in range(count)
    ]


def odd_texts(count: int) -> list[str]:
    rng = random.Random(1)
    pool = [*ZH, *EN, *ODD, *SPACES, *SPACES]
    made = ["".join(rng.choices(pool, k=rng.randint(0, 10))) for _ in range(count)]
    return ["", " ", "a", *made]


def sentencepiece_model(path: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(600)),
        model_writer=written,
        **{"model_type": "bpe", "vocab_size": 420, "hard_vocab_limit": False, "minloglevel": 2}
        | options,
    )
    path.write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    tokenizer.encode_special_tokens = True
    return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


AS_LLAMA = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


@pytest.mark.parametrize(
    "options",
    [
        AS_LLAMA,
        AS_LLAMA | {"add_dummy_prefix": False},
        AS_LLAMA | {"allow_whitespace_only_pieces": True, "split_digits": True},
        AS_LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": ["<sym>"]},
        {"byte_fallback": True},
        {"byte_fallback": False, "character_coverage": 0.99},
    ],
)
def test_sentencepiece_and_ours_give_the_same_ids(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = sentencepiece_model(tmp_path / "tokenizer.model", **options)
    ours = read_vocabulary(tmp_path)
    texts = odd_texts(1500) + corpus(100)
    assert ids(ours, texts) == [theirs.encode(text) for text in texts]
    assert ours.get_vocab_size() == theirs.get_piece_size()
    assert ours.token_to_id("</s>") == theirs.eos_id()
    assert ours.decode(ids(ours, ["今天 happy"])[0]).strip() == "今天 happy"


def test_symbols_of_the_files_own_are_kept_whole(tmp_path: Path) -> None:
    theirs = sentencepiece_model(tmp_path / "tokenizer.model", user_defined_symbols=["<sym>"])
    ours = read_vocabulary(tmp_path / "tokenizer.model")
    texts = ["a<sym>b", "很 <sym>  the<sym>", "they"]
    assert ids(ours, texts) == [theirs.encode(text) for text in texts]


def test_the_sdk_reads_what_was_converted(tmp_path: Path) -> None:
    theirs = sentencepiece_model(tmp_path / "tokenizer.model", **AS_LLAMA)
    again = Tokenizer.from_str(read_vocabulary(tmp_path).to_str())
    made, lengths = own.encode(again, ["  今天很开心 ", ""], 64)
    expected = theirs.encode("今天很开心")
    assert made[0].tolist() == expected and lengths.tolist() == [[len(expected)], [0]]


def ranks_of(texts: Sequence[str], size: int) -> dict[bytes, int]:
    """A byte-pair vocabulary, learnt in the plainest way."""
    ranks = {bytes([byte]): byte for byte in np.random.default_rng(0).permutation(256)}
    ranks = {token: rank for rank, token in enumerate(ranks)}
    words = [[bytes([b]) for b in part.encode()] for t in texts for part in parts_of(t)]
    while len(ranks) < size:
        pairs: dict[tuple[bytes, bytes], int] = {}
        for word in words:
            for pair in pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks.setdefault(b"".join(best), len(ranks))
        words = [joined(word, best) for word in words]
    return ranks


def joined(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out


def parts_of(text: str) -> list[str]:
    found: list[str] = regex.findall(QWEN_PATTERN, text)
    return found


def reference(text: str, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule: of neighbours that join into a token, the lowest rank first."""
    out = []
    for part in parts_of(unicodedata.normalize("NFC", text)):
        word = [bytes([byte]) for byte in part.encode()]
        while True:
            joins = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(word)) if a + b in ranks]
            if not joins:
                break
            at = min(joins)[1]
            word[at : at + 2] = [word[at] + word[at + 1]]
        out += [ranks[token] for token in word]
    return out


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    path.write_text("".join(lines))
    return path


def test_tiktoken_and_ours_give_the_same_ids(tmp_path: Path) -> None:
    ranks = ranks_of(corpus(150), 400)
    path = write_ranks(tmp_path / "qwen.tiktoken", ranks)
    ours = read_vocabulary(tmp_path)
    texts = odd_texts(800) + corpus(100)
    assert ids(ours, texts) == [reference(text, ranks) for text in texts]
    assert ours.token_to_id("<|endoftext|>") == 400 and ours.token_to_id("<|im_end|>") == 402
    named = from_tiktoken(path, special=("<a>", "<b>"))
    assert named.token_to_id("<b>") == 401
    assert ours.decode(ids(ours, ["今天 happy"])[0]) == "今天 happy"


def test_rubbish_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="holds no tokeniser"):
        read_vocabulary(tmp_path)
    with pytest.raises(BundleNotFoundError, match="there is no"):
        read_vocabulary(tmp_path / "tokenizer.json")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4\n"
    for name, said in {
        "tokenizer.json": "is no tokeniser",
        "tokenizer.model": "sentencepiece",
        "qwen.tiktoken": "tiktoken",
    }.items():
        for content in (pointer, b"", b"\x00\xff" * 40):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InvalidInputError, match=said):
                read_vocabulary(tmp_path / name)


def test_other_kinds_and_gaps_are_refused(tmp_path: Path) -> None:
    sentencepiece_model(tmp_path / "u.model", model_type="unigram", vocab_size=200)
    with pytest.raises(InvalidInputError, match="no BPE model"):
        read_vocabulary(tmp_path / "u.model")
    ranks = ranks_of(corpus(20), 260)
    del ranks[b"a"]
    with pytest.raises(InvalidInputError, match="gaps"):
        from_tiktoken(write_ranks(tmp_path / "x.tiktoken", ranks))


def test_a_vocabulary_larger_than_the_embedding_is_refused() -> None:
    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    made.add_special_tokens(["<end>"])  # no text reaches it
    check_size(made, 2)
    with pytest.raises(InvalidInputError, match="ids up to 1"):
        check_size(made, 1)
