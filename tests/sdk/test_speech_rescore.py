"""A language model turns wrong hypotheses right, by rescoring and by search; scales are found."""

from __future__ import annotations

import math
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from merkit.errors import (
    BundleCorruptError,
    BundleNotFoundError,
    InvalidInputError,
    MissingExtraError,
)
from merkit.speech.decode import Hypothesis, beam
from merkit.speech.ngram import TEN, read_arpa
from merkit.speech.rescore import Rescorer, Scales, tune
from merkit.speech.vocabulary import Vocabulary
from merkit.speech.wfst import WfstDecoder

ARPA = """
\\data\\
ngram 1=6
ngram 2=5

\\1-grams:
-0.8\t</s>
-99\t<s>\t-0.4
-1.5\t<unk>
-0.7\tI\t-0.3
-0.9\tread\t-0.2
-0.6\tred\t-0.5

\\2-grams:
-0.2\t<s> I
-0.3\tI read
-1.9\tI red
-0.4\tread </s>
-0.5\tred read

\\end\\
"""
VOCABULARY = Vocabulary(("<blank>", "<s>", "</s>", "I", "read", "red", "<unk>"))
ME, READ, RED, END = 3, 4, 5, 2
SURE = Hypothesis((ME, RED), -1.0, 3)
RIGHT = Hypothesis((ME, READ), -1.5, 3)


@pytest.fixture(name="arpa")
def a_model(tmp_path: Path) -> Path:
    path = tmp_path / "model.arpa"
    path.write_text(ARPA, "utf-8")
    return path


def test_probabilities_back_off_as_the_format_says(arpa: Path) -> None:
    ngrams = read_arpa(arpa)
    assert ngrams.order == 2
    assert ngrams.log("I", ["<s>"]) == pytest.approx(-0.2 * TEN)
    assert ngrams.log("red", ["<s>"]) == pytest.approx((-0.4 - 0.6) * TEN)
    assert ngrams.log("I", ["read", "read"]) == pytest.approx((-0.2 - 0.7) * TEN)
    assert ngrams.log("never", ["I"]) == pytest.approx((-0.3 - 1.5) * TEN)
    assert ngrams.log("I", ["never"]) == pytest.approx(-0.7 * TEN)
    assert ngrams.total(["I", "read"]) == pytest.approx((-0.2 - 0.3 - 0.4) * TEN)
    assert ngrams.log("<s>", []) == -math.inf
    assert sorted(ngrams.words) == ["</s>", "<unk>", "I", "read", "red"]


def test_language_turns_a_wrong_hypothesis_right(arpa: Path) -> None:
    ngrams = read_arpa(arpa)
    for weight, first in ((0.0, SURE), (0.01, SURE), (1.0, RIGHT)):
        rescorer = Rescorer(ngrams, VOCABULARY, Scales(weight))
        assert rescorer([SURE, RIGHT])[0] == first
        assert sorted(rescorer([SURE, RIGHT]), key=lambda h: h.total) == [RIGHT, SURE]
    language = (-0.2 - 1.9 - 0.5 - 0.8) * TEN
    assert Rescorer(ngrams, VOCABULARY, Scales(0.5, 2.0)).score(SURE) == pytest.approx(
        -1.0 + 0.5 * language + 2 * 2.0
    )
    assert Rescorer(ngrams, VOCABULARY)([]) == []


def test_scales_are_those_with_the_fewest_errors(arpa: Path) -> None:
    rescorer = Rescorer(read_arpa(arpa), VOCABULARY)
    heard = [("I read", [SURE, RIGHT]), ("", [])]
    scales, errors = tune(rescorer, heard, (0.0, 0.01, 0.5, 1.0), (0.0, 1.0))
    assert scales == Scales(0.5, 0.0)
    assert errors[Scales(0.0, 0.0)] == 1 / 6
    assert errors[scales] == 0.0
    same, _ = tune(rescorer, [("I red", [SURE, RIGHT])], (0.0, 0.5), (0.0,))
    assert same == Scales(0.0, 0.0)
    with pytest.raises(InvalidInputError, match="at least one"):
        tune(rescorer, [("I", [])], (0.0,), (0.0,))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\\data\\", "", "no .*data"),
        ("ngram 2=5", "ngram 2=6", "5 different 2-grams"),
        ("ngram 2=5", "ngram 3=5", "ngram 2=NUMBER"),
        ("-0.3\tI read", "-0.3\tI read red green", "a logarithm"),
        ("-0.3\tI read", "nan\tI read", "a logarithm"),
        ("-0.3\tI read", "x\tI read", "a logarithm"),
        ("\\2-grams:", "\\3-grams:", "2-grams"),
        ("\\end\\", "", "end of the file"),
        ("</s>", "</x>", "model of sentences"),
    ],
)
def test_a_damaged_model_is_refused_with_its_line(
    arpa: Path, old: str, new: str, words: str
) -> None:
    arpa.write_text(ARPA.replace(old, new), "utf-8")
    with pytest.raises(BundleCorruptError, match=words):
        read_arpa(arpa)
    with pytest.raises(BundleCorruptError, match=words):
        WfstDecoder(arpa, VOCABULARY)


def test_no_model_and_no_text_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="ARPA"):
        read_arpa(tmp_path / "none.arpa")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleCorruptError, match="UTF-8"):
        read_arpa(tmp_path / "binary")


def test_impossible_scales_are_refused() -> None:
    for weight, bonus in ((-1.0, 0.0), (math.nan, 0.0), (0.5, math.inf)):
        with pytest.raises(InvalidInputError, match="finite"):
            Scales(weight, bonus)


LOGS = arrays(np.float64, (4, len(VOCABULARY)), elements=st.floats(-6, 0))


@settings(deadline=None, max_examples=40)
@given(LOGS, st.integers(0, 4), st.sampled_from([0.0, 0.4, 2.0]), st.sampled_from([0.0, 1.0]))
def test_search_finds_the_best_of_all_sequences(
    tmp_path_factory: pytest.TempPathFactory,
    logs: np.ndarray,
    count: int,
    weight: float,
    bonus: float,
) -> None:
    pytest.importorskip("kaldi_decoder")
    arpa = tmp_path_factory.mktemp("lm") / "model.arpa"
    arpa.write_text(ARPA, "utf-8")
    logs[:, [0, 1, 2, 6]] = -20.0  # what stands for no text is improbable here
    scales = Scales(weight, bonus)
    rescorer = Rescorer(read_arpa(arpa), VOCABULARY, scales)
    found = WfstDecoder(arpa, VOCABULARY, scales, beam=1e4)(logs, count)
    if not count:
        assert found.ids == ()
        return
    every = [
        Hypothesis(ids, float(logs[range(count), ids].sum()), count)
        for ids in product((ME, READ, RED), repeat=count)
    ]
    best = max(map(rescorer.score, every))
    assert rescorer.score(found) == pytest.approx(best, abs=1e-4)
    assert found.total == pytest.approx(float(logs[range(count), found.ids].sum()))
    assert found.places == count


def test_search_turns_a_wrong_hypothesis_right_and_ends_where_the_recogniser_does(
    arpa: Path,
) -> None:
    pytest.importorskip("kaldi_decoder")
    logs = np.full((4, len(VOCABULARY)), -9.0)
    logs[0, ME] = logs[1, RED] = logs[2, END] = logs[3, RED] = -0.1
    logs[1, READ] = -0.6
    heard = beam(logs, 4, 4, end=END, silent=VOCABULARY.silent)
    assert heard[0].ids == (ME, RED)
    assert Rescorer(read_arpa(arpa), VOCABULARY, Scales(0.5))(heard)[0].ids == (ME, READ)
    found = WfstDecoder(arpa, VOCABULARY, Scales(0.5))(logs, 4)
    assert found.ids == (ME, READ)
    assert found.total == pytest.approx(-0.1 - 0.6 - 0.1)
    narrow = WfstDecoder(arpa, VOCABULARY, Scales(0.5), width=1)(logs, 4)
    assert narrow.ids == (ME, RED)


def test_tokens_that_the_model_lacks_leave_what_was_heard(tmp_path: Path) -> None:
    pytest.importorskip("kaldi_decoder")
    arpa = tmp_path / "model.arpa"
    lines = [line for line in ARPA.splitlines() if "red" not in line]
    arpa.write_text("\n".join(lines).replace("1=6", "1=5").replace("2=5", "2=3"), "utf-8")
    logs = np.full((2, len(VOCABULARY)), -9.0)
    logs[:, RED] = -0.1
    assert WfstDecoder(arpa, VOCABULARY, width=1)(logs, 2).ids == (RED, RED)


def test_a_missing_wheel_is_named(arpa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaldilm", None)
    with pytest.raises(MissingExtraError, match=r"merkit\[lm\]"):
        WfstDecoder(arpa, VOCABULARY)
