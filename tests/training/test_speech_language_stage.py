"""The stage `language_model`, alone and behind a recogniser, and the command `ngrams`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_corpus import write_tiny_corpus

from merkit.errors import InvalidInputError
from merkit.speech.decode import Hypothesis
from merkit.speech.wfst import WfstDecoder
from merkit_training.cli import main
from merkit_training.recipe import recipe_from
from merkit_training.speech.language_model.stage import load, train
from merkit_training.speech.recognition import train as recognition
from merkit_training.stages import builds_on, is_asked

RECOGNIZER = {
    "hidden": 16, "layers": 1, "heads": 2, "intermediate": 32, "decoder_layers": 1,
    "decoder_attending": 1, "decoder_heads": 2, "decoder_intermediate": 32, "epochs": 1,
    "batch_size": 16, "word_pieces": 20, "kernel": 3, "decoder_kernel": 3, "threads": 1,
}  # fmt: skip


@pytest.fixture(name="corpus", scope="module")
def a_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"), train=48, val=16)


def test_a_recipe_asks_for_it_by_its_order() -> None:
    assert not is_asked(recipe_from({}), "language_model")
    recipe = recipe_from({"language_model": {"order": 3}})
    assert is_asked(recipe, "language_model")
    assert builds_on(recipe, "language_model") == ("recognizer",)
    with pytest.raises(InvalidInputError, match="0 to 5"):
        recipe_from({"language_model": {"order": 6}})


def test_without_a_recogniser_it_has_tokens_of_its_own(corpus: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("Zebras, too!\n\nzebras too\n", "utf-8")
    recipe = recipe_from({"language_model": {"order": 3, "text": [str(more)]}})
    scores = train(recipe, corpus, tmp_path)
    assert scores["perplexity"] > 1
    assert "cer_before" not in scores
    rescorer = load(tmp_path)
    zebras, others = (rescorer.vocabulary.encode(text) for text in ("zebras too", "too zebras"))
    assert rescorer.language(zebras) > rescorer.language(others)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        wrong = {"order": 2, "text": [str(tmp_path / "none.txt")]}
        train(recipe_from({"language_model": wrong}), corpus, tmp_path)


def test_behind_a_recogniser_it_shares_tokens_and_finds_scales(
    corpus: Path, tmp_path: Path
) -> None:
    table = {"order": 2, "beam": 4, "weights": [0.0, 0.5], "bonuses": [0.0], "tune_on": 12}
    recipe = recipe_from({"recognizer": RECOGNIZER, "language_model": table})
    recognition.train(recipe, corpus, tmp_path)
    scores = train(recipe, corpus, tmp_path)
    assert scores["weight"] in (0.0, 0.5)
    assert scores["cer_after"] >= 0
    tokens = [tmp_path / step / "tokens.json" for step in ("recognizer", "language_model")]
    assert tokens[0].read_bytes() == tokens[1].read_bytes()
    rescorer = load(tmp_path)
    assert rescorer.scales.weight == scores["weight"]
    assert len(rescorer([Hypothesis((5,), -1.0, 1), Hypothesis((6, 5), -1.0, 2)])) == 2
    pytest.importorskip("kaldi_decoder")
    WfstDecoder(tmp_path / "language_model" / "model.arpa", rescorer.vocabulary)


def test_the_command_estimates_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, model, tokens = (tmp_path / name for name in ("text.txt", "m.arpa", "tokens.json"))
    text.write_text("我走了。I went!\n我在家\n\n", "utf-8")
    files = ["ngrams", str(model), "--estimate", str(text), "--perplexity", str(text)]
    assert main([*files, "--order", "2"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert "我 走" in model.read_text("utf-8")
    tokens.write_text(json.dumps(["<blank>", "<s>", "</s>", "我", "走", "<unk>"]), "utf-8")
    assert main([*files, "--tokens", str(tokens), "--memory", "2"]) == 0
    assert "在" not in model.read_text("utf-8")
    assert main(["ngrams", str(model)]) == 2
    assert main([*files, "--order", "9"]) == 2
    assert main(["ngrams", str(model), "--perplexity", str(tmp_path)]) == 2
    assert "merkit-train:" in capsys.readouterr().err
