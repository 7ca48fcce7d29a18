"""Text to tokens and back, and how character errors are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
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


def test_rates_pool_all_characters() -> None:
    assert character_error_rate([("I am sad.", "i am sad"), ("难过", "难")]) == pytest.approx(0.1)
    assert character_error_rate([]) == character_error_rate([("...", "")]) == 0
    assert character_error_rate([("", "noise")]) == float("inf")
