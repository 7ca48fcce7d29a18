"""The seed's rule (2.4.2): the closer source, but only if it is closer by more than 0.1."""

from __future__ import annotations

import pytest

from merkit.errors import InvalidInputError
from merkit.speech.select import MEASURES, select_source

NOISY = "今天天气很好我们去公园"  # eleven characters


@pytest.mark.parametrize(
    ("sources", "chosen", "similarities"),
    [
        ((NOISY, "你说什么"), 0, (1.0, 0.0)),
        (("你说什么", NOISY), 1, (0.0, 1.0)),
        ((NOISY, NOISY), None, (1.0, 1.0)),
        (("今天天气很好我们去公", NOISY), None, (10 / 11, 1.0)),  # 0.09 apart
        (("今天天气很好我们去", NOISY), 1, (9 / 11, 1.0)),  # 0.18 apart
        ((NOISY, ""), 0, (1.0, 0.0)),
        (("", ""), None, (0.0, 0.0)),
        (("喂", "?!"), None, (0.0, 0.0)),
        ((NOISY + "啦" * 30, "好"), None, (0.0, 1 / 11)),  # more errors than characters count as 1
    ],
)
def test_the_rule(
    sources: tuple[str, str], chosen: int | None, similarities: tuple[float, float]
) -> None:
    found = select_source(NOISY, sources)
    assert found.source == chosen
    assert found.similarities == pytest.approx(similarities)
    assert found.reason
    assert found.name == ("original" if chosen is None else f"source{chosen}")


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.8), (0.4, 0.3), (1.0, 0.9)])
def test_a_difference_of_exactly_the_threshold_is_not_more(first: float, second: float) -> None:
    """0.4 - 0.3 is more than 0.1 in binary fractions, and 0.9 - 0.8 less."""
    original = "abcdefghij"
    sources = [original[: round(10 * s)] + "x" * (10 - round(10 * s)) for s in (first, second)]
    found = select_source(original, sources)
    assert found.similarities == pytest.approx((first, second))
    assert found.source is None
    assert select_source(original, sources, threshold=0.09).source == 0


@pytest.mark.parametrize("original", ["", "  ", "。?!"])
def test_without_words_there_is_nothing_to_compare_with(original: str) -> None:
    found = select_source(original, ["anything", ""])
    assert (found.source, found.similarities) == (None, (0.0, 0.0))
    assert "no words" in found.reason


def test_case_punctuation_and_width_do_not_count() -> None:
    assert select_source("Hello, WORLD!", ["hello world", "x"]).similarities == (1.0, 0.0)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_tells_the_same_from_the_different(measure: str) -> None:
    for original, near, far in (
        ("we go to the park", "we go to the bark", "nobody knows"),
        (NOISY, "今天天气好我们去公园", "你说"),
        ("a", "a", "b"),
    ):
        found = select_source(original, [far, near, far], measure=measure)
        assert found.source == 1
        assert all(0 <= s <= 1 for s in found.similarities)
        assert select_source(original, [original, ""], measure=measure).similarities == (1.0, 0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"threshold": 1.5}, "0 to 1"), ({"threshold": float("nan")}, "0 to 1"),
     ({"measure": "taste"}, "cer, bigrams, blocks")],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        select_source("a", ["a", "b"], **options)  # type: ignore[arg-type]


def test_one_source_is_no_choice() -> None:
    with pytest.raises(InvalidInputError, match="two or more"):
        select_source("a", ["a"])
