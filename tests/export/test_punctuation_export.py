"""The punctuator's graph in FunASR's layout: lengths never traced, and sherpa-onnx beside us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from merkit.errors import InvalidInputError
from merkit.speech.punctuate import ENDS, MARKS, STOP, Punctuator, split_words
from merkit_export.cli import main
from merkit_export.speech.punctuation import funasr_graph
from merkit_training.speech.punctuation.checkpoint import (
    PunctuationModel,
    load_folder,
    write_folder,
)
from merkit_training.speech.punctuation.config import PunctuatorConfig
from merkit_training.speech.punctuation.model import CtTransformer

SMALL = PunctuatorConfig(embedded=16, hidden=16, layers=2, heads=2, intermediate=32, kernel=5)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ("<unk>", *LETTERS, *"我你他好吗了")
SHAPES = (((1, 1), [1]), ((3, 20), [20, 1, 11]), ((5, 211), [3, 211, 7, 1, 90]))


@pytest.fixture(name="known", scope="module")
def a_model() -> PunctuationModel:
    torch.manual_seed(0)
    model = CtTransformer(SMALL, len(TOKENS), len(MARKS)).eval().requires_grad_(False)
    for mark in (0, *(MARKS.index(end) for end in ENDS)):
        model.decoder.bias[mark] = -50.0  # sherpa-onnx ends a text at its last full stop
    return PunctuationModel(model, SMALL, TOKENS, MARKS)


@pytest.fixture(name="written", scope="module")
def a_folder_for_others(known: PunctuationModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("punctuator")
    write_folder(folder / "funasr", known)
    assert main(["punctuator", str(folder / "funasr"), "--out", str(folder / "onnx")]) == 0
    return folder / "onnx"


def agrees(session: onnxruntime.InferenceSession, known: PunctuationModel) -> None:
    names = [i.name for i in session.get_inputs()]
    kind = np.int64 if session.get_inputs()[0].type == "tensor(int64)" else np.int32
    rng = np.random.default_rng(0)
    for shape, lengths in SHAPES:
        words = rng.integers(len(TOKENS), size=shape)
        counts = np.array(lengths, kind)
        found = session.run(None, dict(zip(names, (words.astype(kind), counts), strict=True)))[0]
        expected = known.model(torch.from_numpy(words), torch.tensor(lengths)).numpy()
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(
                found[row, :length], expected[row, :length], atol=1e-4, rtol=1e-4
            )


def test_funasrs_layout_agrees_at_lengths_never_traced(
    known: PunctuationModel, written: Path
) -> None:
    session = onnxruntime.InferenceSession(str(written / "model.onnx"))
    kinds = [(i.name, i.type) for i in session.get_inputs()]
    assert kinds == [("inputs", "tensor(int32)"), ("text_lengths", "tensor(int32)")]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    agrees(session, known)


def test_sherpa_sets_the_marks_that_we_set(known: PunctuationModel, written: Path) -> None:
    sherpa = pytest.importorskip("sherpa_onnx")
    model = sherpa.OfflinePunctuationModelConfig(ct_transformer=str(written / "model.onnx"))
    theirs = sherpa.OfflinePunctuation(sherpa.OfflinePunctuationConfig(model=model))

    def classify(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[Any]:
        return np.asarray(known.model(torch.from_numpy(ids), torch.from_numpy(lengths)))

    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(10):
        words = [TOKENS[i] for i in rng.integers(1, len(TOKENS), rng.integers(3, 20))]
        text = " ".join(words)
        marks = Punctuator(TOKENS, MARKS, classify).decide(split_words(text))
        found = split_words(theirs.add_punctuation(text))
        assert [word.text for word in found] == words
        assert [word.mark for word in found] == [*marks[:-1], STOP]
        seen |= set(marks)
    assert len(seen) >= 2


def test_a_folder_becomes_what_others_read(
    known: PunctuationModel, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {p.name for p in written.iterdir()} == {"model.onnx", "config.yaml", "tokens.json"}
    source = written.with_name("funasr")
    assert main(["punctuator", str(source), "--out", str(tmp_path / "again"), "--torch"]) == 0
    assert load_folder(tmp_path / "again")[0].tokens == known.tokens
    assert main(["punctuator", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "config.yaml" in capsys.readouterr().err


def test_a_word_that_sherpa_cannot_be_told_is_refused(known: PunctuationModel) -> None:
    odd = PunctuationModel(known.model, SMALL, (*TOKENS[:-1], "a|b"), MARKS)
    with pytest.raises(InvalidInputError, match="holds"):
        funasr_graph(odd)
