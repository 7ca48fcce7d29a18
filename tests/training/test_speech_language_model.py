"""Modified Kneser-Ney: a published example to seven digits, sums of one, counts on disk, ARPA."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merkit.errors import InvalidInputError
from merkit.speech.ngram import TEN, read_arpa
from merkit_training.speech.language_model.arpa import perplexity, write_arpa
from merkit_training.speech.language_model.counts import adjusted, count
from merkit_training.speech.language_model.estimate import (
    FALLBACK,
    Discounts,
    discounts,
    estimate,
)

SKI = """I went to
I go to
You went to
You go to
Joe went to
Joe go to
Anna went ski
Anna went ski"""
"""Corpus and results of https://github.com/kpu/kenlm/issues/405, `lmplz -o 2`."""
UNIGRAMS = {
    "<unk>": (-1.30103, None), "</s>": (-1.1249387, None), "I": (-1.0579919, -0.5228788),
    "went": (-0.6726411, -0.022929981), "to": (-1.1249387, -0.30103), "go": (-0.82390875, 0.0),
    "You": (-1.0579919, -0.5228788), "Joe": (-1.0579919, -0.5228788),
    "Anna": (-1.0579919, -0.059768215), "ski": (-1.0579919, -0.059768215),
    "<s>": (None, -0.059768215),
}  # fmt: skip
BIGRAMS = {
    "to </s>": -0.26962152, "ski </s>": -0.7123581, "<s> I": -0.9649993, "I went": -0.383262,
    "You went": -0.383262, "Joe went": -0.383262,
}  # fmt: skip
KENLM_COUNTED = Discounts(0.4, 1.6, 1.4)
"""KenLM counts the last word it met, "ski", by its occurrences (2) instead of its contexts (1);
the thread traces this. Four words of one context, three of two, and one each of three and four
are what its discounts of words come from; the textbook's are five and two."""

WORDS = ("a", "b", "c", "d")
CORPORA = st.lists(st.lists(st.sampled_from(WORDS), max_size=6), min_size=1, max_size=12)


def test_a_published_example_to_its_last_digit() -> None:
    assert astuple(discounts([1] * 4 + [2] * 3 + [3, 4])) == pytest.approx(astuple(KENLM_COUNTED))
    ngrams = estimate(map(str.split, SKI.splitlines()), 2, given={1: KENLM_COUNTED})
    for word, (log, backoff) in UNIGRAMS.items():
        if log is not None:
            assert ngrams.logs[(word,)] / TEN == pytest.approx(log, abs=2e-7), word
        if backoff is not None:
            assert ngrams.backoffs[(word,)] / TEN == pytest.approx(backoff, abs=2e-7), word
    for pair, log in BIGRAMS.items():
        assert ngrams.logs[tuple(pair.split())] / TEN == pytest.approx(log, abs=2e-7), pair
    assert sum(len(gram) == 2 for gram in ngrams.logs) == 16


def test_discounts_are_those_of_chen_and_goodman() -> None:
    contexts = [1] * 5 + [2] * 2 + [3, 4]  # of the words above, as the textbook counts them
    y = 5 / (5 + 2 * 2)
    expected = (1 - 2 * y * 2 / 5, 2 - 3 * y * 1 / 2, 3 - 4 * y * 1 / 1)
    assert astuple(discounts(contexts)) == pytest.approx(expected)
    assert discounts([1, 1, 2]) is FALLBACK  # nothing occurs three times
    assert discounts([1, 2, 3, 3, 3, 3, 4]) is FALLBACK  # the estimate for two is below zero


def test_counts_of_shorter_ngrams_are_of_their_contexts() -> None:
    windows = count([[5, 6], [5, 6], [7, 6]], 2, 99, 1, 2)
    counts = adjusted(windows, 2, 1)
    assert counts[1] == {(1, 5): 2, (1, 7): 1, (5, 6): 2, (7, 6): 1, (6, 2): 3}
    assert counts[0] == {(5,): 1, (7,): 1, (6,): 2, (2,): 1}
    three = adjusted(count([[5, 6]], 3, 99, 1, 2), 3, 1)
    assert three[1] == {(1, 5): 1, (5, 6): 1, (6, 2): 1}
    assert three[0] == {(5,): 1, (6,): 1, (2,): 1}


@settings(deadline=None, max_examples=50)
@given(CORPORA, st.integers(1, 5))
def test_what_goes_to_disk_comes_back_counted(corpus: list[list[str]], order: int) -> None:
    ids = [[WORDS.index(word) + 3 for word in sentence] for sentence in corpus]
    on_disk = list(count(ids, order, 2, 1, 2))
    assert on_disk == list(count(ids, order, 10**6, 1, 2))
    padded = [(1, *sentence, 2) for sentence in ids]
    direct = Counter(s[max(0, i - order + 1) : i + 1] for s in padded for i in range(1, len(s)))
    assert dict(on_disk) == direct


@settings(deadline=None, max_examples=60)
@given(
    CORPORA,
    st.integers(1, 5),
    st.lists(st.sampled_from((*WORDS, "<s>", "never")), max_size=5),
    st.booleans(),
)
def test_probabilities_sum_to_one_after_every_context(
    corpus: list[list[str]], order: int, context: list[str], closed: bool
) -> None:
    ngrams = estimate(corpus, order, words=("a", "b", "z") if closed else None)
    total = sum(math.exp(ngrams.log(word, context)) for word in ngrams.words)
    assert total == pytest.approx(1.0, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(CORPORA, st.integers(1, 4))
def test_a_model_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[list[str]], order: int
) -> None:
    ngrams = estimate(corpus, order)
    path = tmp_path_factory.mktemp("lm") / "model.arpa"
    write_arpa(ngrams, path)
    again = read_arpa(path)
    assert again.logs.keys() == ngrams.logs.keys()
    for gram, log in ngrams.logs.items():
        assert again.logs[gram] == pytest.approx(log, rel=1e-6)
    for sentence in corpus:
        assert again.total(sentence) == pytest.approx(ngrams.total(sentence), rel=1e-5)
    assert not list(path.parent.glob("*.tmp"))


def test_perplexity_is_the_inverse_mean_probability() -> None:
    ngrams = estimate([["a", "b"], ["a", "c"]], 2)
    logs = [ngrams.log("a", ["<s>"]), ngrams.log("b", ["a"]), ngrams.log("</s>", ["b"])]
    scores = perplexity(ngrams, [["a", "b"]])
    assert scores["perplexity"] == pytest.approx(math.exp(-sum(logs) / 3))
    assert scores["unknown"] == 0.0
    strange = perplexity(ngrams, [["a", "never"]])
    assert strange["unknown"] == 0.5
    assert strange["perplexity"] > strange["perplexity_known"]
    with pytest.raises(InvalidInputError, match="no sentence"):
        perplexity(ngrams, [])


def test_longer_contexts_predict_better() -> None:
    text = [["a", "b", "c", "a", "b", "d"], ["a", "b", "c", "d"]] * 20
    found = [perplexity(estimate(text, order), text)["perplexity"] for order in (1, 2, 3)]
    assert found == sorted(found, reverse=True)


def test_words_that_look_like_marks_are_words_unknown() -> None:
    ngrams = estimate([["<s>", "a", "</s>"]], 2)
    assert ("<s>", "<unk>") in ngrams.logs
    assert ("</s>", "</s>") not in ngrams.logs


def test_impossible_orders_and_empty_texts_are_refused() -> None:
    for order in (0, 6):
        with pytest.raises(InvalidInputError, match="order"):
            estimate([["a"]], order)
    with pytest.raises(InvalidInputError, match="no sentence"):
        estimate([], 2)


def astuple(found: Discounts) -> tuple[float, float, float]:
    return found.one, found.two, found.more
