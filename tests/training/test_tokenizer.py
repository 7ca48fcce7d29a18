"""The tokeniser knows every text, keeps its special tokens to itself and repeats itself."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from merkit.errors import BundleCorruptError, BundleNotFoundError
from merkit.pipeline import GROUPS, standard_contract
from merkit.steps.tokenize import Tokenize
from merkit_training.encoders.text import tokenizer
from merkit_training.labels import MER6

TEXTS = (
    "I am so happy about the exam.",
    "考试没考好，我很难过。",
    "What is that supposed to mean?",
) * 5
PROMPT = "What emotion does the speaker feel?"
BUILT = tokenizer.build((*TEXTS, *[PROMPT] * 20), 420, MER6)


def test_special_tokens_come_first_and_padding_is_zero() -> None:
    assert BUILT.token_to_id(tokenizer.PAD) == 0
    assert [BUILT.token_to_id(f"<{name}>") for name in MER6] == [1, 2, 3, 4, 5, 6]
    assert BUILT.get_vocab_size() <= 420


@pytest.mark.parametrize("text", ["<pad>", "so <happy> now", "<neutral>", " <pad> <sad>"])
def test_a_transcript_cannot_spell_a_special_token(text: str) -> None:
    ids = BUILT.encode(text).ids
    assert min(ids) > len(MER6)
    assert BUILT.decode(ids) == text.strip()


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_text_survives_in_normal_form(text: str) -> None:
    expected = unicodedata.normalize("NFC", text)
    assert BUILT.decode(BUILT.encode(text).ids).strip() == expected.strip()


def test_composed_and_decomposed_accents_are_one_text() -> None:
    assert BUILT.encode("caf\u00e9").ids == BUILT.encode("cafe\u0301").ids


def test_building_twice_gives_the_same_tokeniser() -> None:
    assert tokenizer.build((*TEXTS, *[PROMPT] * 20), 420, MER6).to_str() == BUILT.to_str()


def test_batches_are_padded_cut_and_led_by_the_prompt() -> None:
    ids, lengths = tokenizer.encode(BUILT, ["", "I am so happy", "a b c d e f g"], limit=3)
    assert lengths[:, 0].tolist()[0] == 0 and lengths.max() == 3
    assert ids.shape == (3, 3) and not ids[0].any()
    head = BUILT.encode(PROMPT).ids
    ids, lengths = tokenizer.encode(BUILT, ["", "I"], limit=3, prompt=PROMPT)
    assert ids[0, : len(head)].tolist() == head and lengths[0, 0] == len(head)
    assert lengths[1, 0] > len(head)


def test_no_text_at_all_is_one_padding_token() -> None:
    ids, lengths = tokenizer.encode(BUILT, [""], limit=8)
    assert ids.tolist() == [[0]] and lengths.tolist() == [[0]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=120), min_size=1))
def test_training_and_the_sdk_make_the_same_ids(texts: list[str]) -> None:
    step = sdk_step()
    made = step({"text": np.array([[text] for text in texts], object)})
    p = step.contract.preprocessing
    for prefix, prompt in (("text", ""), ("joint", p.prompt)):
        ids, lengths = tokenizer.encode(BUILT, texts, p.max_text_tokens, prompt)
        np.testing.assert_array_equal(made[f"{prefix}_ids"], ids)
        np.testing.assert_array_equal(made[f"{prefix}_length"], lengths)


@cache
def sdk_step() -> Tokenize:
    with TemporaryDirectory() as folder:
        Path(folder, tokenizer.FILE).write_text(BUILT.to_str(), "utf-8")
        return Tokenize(standard_contract(MER6, dict.fromkeys(GROUPS, 8)), Path(folder))


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="tokenizer"):
        tokenizer.load(tmp_path)
    path = tmp_path / tokenizer.STEP / tokenizer.FILE
    path.parent.mkdir()
    path.write_text("{", "utf-8")
    with pytest.raises(BundleCorruptError, match="no tokeniser"):
        tokenizer.load(tmp_path)
    path.write_text(BUILT.to_str(), "utf-8")
    loaded: Tokenizer = tokenizer.load(tmp_path)
    assert loaded.encode(TEXTS[1]).ids == BUILT.encode(TEXTS[1]).ids
