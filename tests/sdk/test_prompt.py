"""A prompt's markup becomes single tokens; a transcript's never does."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from merkit.errors import InvalidInputError
from merkit.steps.prompt import Prompt

WORDS = ("<pad>", "<|im_start|>", "<|im_end|>", "user", "feel", "<", ">", "|", "im", "_", "start")
PLAIN = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
PLAIN.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()]
)


def test_a_prompt_without_places_stands_between_sound_and_words() -> None:
    prompt = Prompt.of("user feel", PLAIN)
    assert prompt == Prompt((), (3, 4), ())
    assert prompt.around([4]) == [3, 4, 4]


def test_markup_is_one_token_at_its_place_and_only_in_the_prompt() -> None:
    prompt = Prompt.of("<|im_start|>user {audio}feel{text}<|im_end|>", PLAIN)
    assert prompt == Prompt((1, 3), (4,), (2,))
    spelt = PLAIN.encode("<|im_start|>").ids
    assert 1 not in spelt and prompt.around(spelt) == [1, 3, 4, *spelt, 2]


def test_markup_that_the_vocabulary_lacks_is_text() -> None:
    assert Prompt.of("<start> feel", PLAIN).between == (5, 10, 6, 4)


def test_no_prompt_is_none() -> None:
    assert Prompt.of("", PLAIN).around([4]) == [4]


@pytest.mark.parametrize(
    "text",
    ["{audio}{audio}feel", "{text}feel{text}", "{text} feel {audio}", "feel {audio}{text}"],
)
def test_places_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="at most one"):
        Prompt.of(text, PLAIN)
