"""Marks are set where the classifier says, once, and however the text arrives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit.speech.punctuate import MARKS, Punctuator, is_punctuated, split_words

TOKENS = ("<unk>", "。", "，", "吗", "了", "stop", "well", "why")


def by_words(ids: NDArray[np.int64], _: NDArray[np.int64]) -> NDArray[Any]:
    """A classifier by rote: after some words always the same mark."""
    marks = np.array([1, 1, 1, 4, 3, 3, 2, 4])
    return np.eye(len(MARKS))[marks[ids]]


def silent(ids: NDArray[np.int64], _: NDArray[np.int64]) -> NDArray[Any]:
    """A classifier that sets none."""
    return np.eye(len(MARKS))[np.ones_like(ids)]


PUNCTUATE = Punctuator(TOKENS, MARKS, by_words, window=4, limit=9)
TEXTS = st.text(
    st.sampled_from("ab吗了好 .,，。？!-3'…é") | st.characters(max_codepoint=0x3100), max_size=60
)
SPOKEN = st.lists(
    st.sampled_from(["well", "stop", "why", "a", "i", "吗", "了", "好", "我"]), max_size=60
)


def keys(text: str) -> list[str]:
    return [word.key for word in split_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("   ", ""),
        ("好", "好。"),
        ("you came well i stayed stop it is", "You came well, I stayed stop. It is."),
        ("我好吗我走了", "我好吗？我走了。"),
        ("我 like 你吗 ok", "我 like 你吗？Ok."),
        ("a b c why 好", "A b c why? 好。"),
        ("it cost 3.5 euros well", "It cost 3.5 euros well."),
        ("i'll go and i'm fine", "I'll go and I'm fine."),
        ("NASA said so", "NASA said so."),
    ],
)
def test_marks_spaces_and_capitals_follow_the_script_of_the_word_before(
    text: str, expected: str
) -> None:
    assert PUNCTUATE(text) == expected


def test_a_text_that_has_marks_stays_as_it_is() -> None:
    for text in ("Really?! You came.", "你来了！", "well, yes"):
        assert is_punctuated(text)
        assert PUNCTUATE(text) == text
    assert PUNCTUATE("你来了！好", again=True) == "你来了。好。"


@settings(deadline=None)
@given(TEXTS)
def test_setting_marks_twice_changes_nothing_and_no_word_is_lost(text: str) -> None:
    for again in (False, True):
        once = PUNCTUATE(text, again=again)
        assert keys(once) == keys(text)
        assert PUNCTUATE(once, again=again) == once


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 60), max_size=8))
def test_how_a_stream_is_cut_does_not_show(text: str, cuts: list[int]) -> None:
    assert streamed(text, cuts) == PUNCTUATE(text, again=True)


@settings(deadline=None)
@given(SPOKEN, st.lists(st.integers(0, 200), max_size=8))
def test_how_speech_is_cut_does_not_show(words: list[str], cuts: list[int]) -> None:
    text = " ".join(words)
    assert streamed(text, cuts) == PUNCTUATE(text)


def streamed(text: str, cuts: Sequence[int]) -> str:
    stream = PUNCTUATE.stream()
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [stream.feed(text[a:b]) for a, b in pairwise(places)]
    return "".join(parts) + stream.finish()


def test_a_sentence_is_returned_as_soon_as_the_next_has_begun() -> None:
    stream = PUNCTUATE.stream()
    assert stream.feed("we go home stop then we stay in my") == ""
    assert stream.feed(" house for") == "We go home stop."
    assert stream.finish() == " Then we stay in my house for."


def test_what_never_ends_is_cut_and_costs_bounded_memory() -> None:
    longest = 0

    def watching(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        nonlocal longest
        longest = max(longest, ids.shape[1])
        return silent(ids, lengths)

    punctuate = Punctuator(TOKENS, MARKS, watching, window=4, limit=9)
    text = " ".join("x" * 1000)
    assert punctuate(text) == "X" + text[1:] + "."
    assert longest <= 2 * 9 + 4


def test_a_long_sentence_ends_at_its_last_comma() -> None:
    out = PUNCTUATE("a b c d e well f g h j k l m n o p")
    assert out == "A b c d e well. F g h j k l m n o p."


def test_a_model_and_vocabulary_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BundleCorruptError, match="<unk>"):
        Punctuator(("a",), MARKS, by_words)
    with pytest.raises(InvalidInputError, match="window"):
        Punctuator(TOKENS, MARKS, by_words, window=1)
    short = Punctuator(TOKENS, (*MARKS, "！"), by_words)
    with pytest.raises(InvalidInputError, match="belong together"):
        short("a b")
