"""The hearing benchmark times every step in both precisions, beside sherpa-onnx where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from merkit.speech.vocabulary import END, Vocabulary
from merkit_bench import hearing
from merkit_training.speech.punctuation.config import PunctuatorConfig
from merkit_training.speech.punctuation.model import CtTransformer
from merkit_training.speech.recognition.config import RecognizerConfig
from merkit_training.speech.recognition.model import Recognizer
from merkit_training.speech.separation.config import SeparatorConfig
from merkit_training.speech.separation.model import Separator


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RecognizerConfig(
        hidden=16, heads=2, layers=1, intermediate=16, decoder_layers=1, decoder_attending=1,
        decoder_heads=2, decoder_intermediate=16, ctc=False, ctc_weight=0.0,
    )  # fmt: skip
    words = Vocabulary(("<blank>", "<s>", END, "a", "b"))
    monkeypatch.setattr(
        hearing, "_recognizer", lambda _: (Recognizer(config, len(words)).eval(), config, words)
    )
    separator = SeparatorConfig(channels=8, layers=1, group=32, query_key=8, memory=8, order=3)
    monkeypatch.setattr(hearing, "_separator", lambda _: Separator(separator).eval())
    marks = PunctuatorConfig(embedded=8, hidden=8, layers=1, heads=2, intermediate=8)
    monkeypatch.setattr(hearing, "_punctuator", lambda _: (CtTransformer(marks, 10, 6).eval(), 6))


@pytest.mark.usefixtures("small")
def test_every_step_is_timed_in_both_precisions(tmp_path: Path) -> None:
    contest = hearing.Contest(tmp_path, None, 1)
    wave = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    rows = contest.timed(hearing.lengthened(wave, 1.5), 2)
    steps = {row["step"] for row in rows}
    assert steps >= {
        f"{step} {precision}"
        for step in ("recognize", "separate", "punctuate")
        for precision in ("fp32", "int8")
    }
    assert ("recognize sherpa-onnx fp32" in steps) == (contest.sherpa is not None)
    assert all(row["took"] > 0 and row["rtf"] == row["took"] / 1.5 for row in rows)
    page = hearing.markdown(rows, {"threads": 1})
    assert "| real-time factor | 1.5 s |" in page and page.count("\n| ") == len(rows)


def test_sounds_are_repeated_to_a_length() -> None:
    made = hearing.lengthened(np.arange(5, dtype=np.float32), 1.0)
    assert len(made) == 16_000 and made[:7].tolist() == [0, 1, 2, 3, 4, 0, 1]
