"""Text to tokens and back, and how character errors are counted."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merkit.errors import BundleCorruptError, BundleNotFoundError
from merkit.speech.edits import character_error_rate, edit_distance, normalised
from merkit.speech.vocabulary import Vocabulary

SMALL = Vocabulary(
    ("<blank>", "<s>", "</s>", "to@@", "t@@", "o@@", "d@@", "a@@", "day", "t", "o", "d", "a", "y",
     "我", "很", "好", "<unk>")
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "pieces", "back"),
    [
        ("Today!", ["to@@", "day"], "today"),
        ("我很好。", ["我", "很", "好"], "我很好"),
        ("我 today 好", ["我", "to@@", "day", "好"], "我 today 好"),
        ("to a", ["t@@", "o", "a"], "to a"),
        ("day 天", ["day", "<unk>"], "day"),
        ("", [], ""),
    ],
)
def test_pieces_are_the_longest_and_text_comes_back(
    text: str, pieces: list[str], back: str
) -> None:
    ids = SMALL.encode(text)
    assert [SMALL.tokens[i] for i in ids] == pieces
    assert SMALL.decode(ids) == back


def test_marks_and_strange_ids_are_no_text() -> None:
    assert SMALL.decode([1, 14, 0, 15, 99, -1, 17, 2]) == "我很"
    assert (SMALL.blank, SMALL.end, SMALL.silent) == (0, 2, frozenset({0, 1, 2, 17}))


def test_the_file_is_a_plain_list(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "tokens.json")
    assert json.loads((tmp_path / "tokens.json").read_text("utf-8")) == list(SMALL.tokens)
    assert Vocabulary.load(tmp_path / "tokens.json") == SMALL
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.json"]
    with pytest.raises(BundleNotFoundError, match="other"):
        Vocabulary.load(tmp_path / "other.json")
    for content in ("{", '{"a": 1}', "[1, 2]", '["a", "a", "</s>"]', '["a"]'):
        (tmp_path / "tokens.json").write_text(content)
        with pytest.raises(BundleCorruptError):
            Vocabulary.load(tmp_path / "tokens.json")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Oh, I can’t!", "oh i can't"),
        ("'tis the players' game", "tis the players game"),
        ("你看，今天 的 考试。", "你看今天的考试"),
        ("我 love 你", "我love你"),
        ("ＡＢＣ　１２", "abc 12"),
        ("…，", ""),
    ],
)
def test_what_a_recogniser_does_not_write_does_not_count(text: str, plain: str) -> None:
    assert normalised(text) == plain == normalised(plain)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)],
)
def test_distance_of_known_words(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_distance_is_a_metric(first: str, second: str, third: str) -> None:
    there = edit_distance(first, second)
    assert (there == 0) == (first == second)
    assert abs(len(first) - len(second)) <= there <= max(len(first), len(second))
    assert edit_distance(first, third) <= there + edit_distance(second, third)


def by_table(first: Sequence[object], second: Sequence[object]) -> int:
    """The recurrence as textbooks have it."""
    above = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        row = [i]
        for j, right in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
        above = row
    return above[-1]


LONG = st.lists(st.integers(0, 3), max_size=70)
"""Longer than a machine word has bits."""


@settings(max_examples=40)
@given(LONG, LONG)
def test_distance_is_that_of_the_table(first: list[int], second: list[int]) -> None:
    assert edit_distance(first, second) == by_table(first, second)


@settings(max_examples=40)
@given(LONG, st.lists(st.tuples(st.integers(0, 69), st.sampled_from("sid")), max_size=6))
def test_distance_of_a_few_edits(first: list[int], edits: list[tuple[int, str]]) -> None:
    """Nearly equal sequences, whose bits carry over the whole column."""
    second = list(first)
    for place, kind in edits:
        second[place : place + (kind != "i")] = [] if kind == "d" else [9]
    assert edit_distance(first, second) == by_table(first, second) <= len(edits)


def test_an_hours_transcripts_are_compared_in_seconds() -> None:
    """20,000 characters each; the table took minutes."""
    said = "".join(chr(97 + i * i % 26) for i in range(20_000))
    heard = "".join(letter for i, letter in enumerate(said) if i % 7)
    started = time.process_time()
    assert edit_distance(said, heard) == len(said) - len(heard)
    assert time.process_time() - started < 20


def test_rates_pool_all_characters() -> None:
    assert character_error_rate([("I am sad.", "i am sad"), ("难过", "难")]) == pytest.approx(0.1)
    assert character_error_rate([]) == character_error_rate([("...", "")]) == 0
    assert character_error_rate([("", "noise")]) == float("inf")
