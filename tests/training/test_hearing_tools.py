"""The tools of a hearing study train and open the real stages, at miniature sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_corpus import write_tiny_corpus

from merkit_training.encoders.utterances import Utterances
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.speech.hearing import tools
from merkit_training.speech.hearing.chain import pass_through
from merkit_training.speech.noise.listen import in_batches
from merkit_training.speech.noise.pool import Pool

RECOGNIZER = {
    "hidden": 16, "heads": 2, "layers": 1, "intermediate": 16, "decoder_layers": 1,
    "decoder_attending": 1, "decoder_heads": 2, "decoder_intermediate": 16, "epochs": 1,
    "batch_size": 8, "threads": 1, "word_pieces": 20,
}  # fmt: skip
TABLES = {
    "recognizer": {**RECOGNIZER, "augment": "noise"},
    "noise": {"rooms": 2, "clean": 0.0},
    "self_training": {"confidence": 0.0, "least_tokens": 1, "rounds": 1, "gain": 0.0},
    "language_model": {"order": 2, "tune_on": 4, "beam": 4},
    "separator": {
        "channels": 8, "layers": 1, "group": 32, "query_key": 8, "memory": 8, "order": 3,
        "epochs": 1, "noise_share": 1.0, "mixtures": 4, "val_mixtures": 2, "batch_size": 2,
        "seconds": 0.3, "threads": 1,
    },
    "punctuator": {
        "embedded": 8, "hidden": 8, "layers": 1, "heads": 2, "intermediate": 8, "epochs": 1,
        "threads": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipe_from(TABLES)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"), 12, 6, units=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, corpus: Path) -> Path:
    """With a recogniser that was trained with noise."""
    pytest.importorskip("pyroomacoustics")
    place = tmp_path_factory.mktemp("run")
    scores = tools.train(recipe, corpus, place, "recognizer")
    assert scores["cer"] == pytest.approx(1 - scores["accuracy"])
    return place


def test_a_recogniser_is_trained_once_and_hears(run: Path, recipe: Recipe, corpus: Path) -> None:
    before = (run / "recognizer" / "model.safetensors").stat().st_mtime_ns
    tools.train(recipe, corpus, run, "recognizer")
    assert (run / "recognizer" / "model.safetensors").stat().st_mtime_ns == before
    sounds = Utterances.read(corpus, "val")
    waves = [sounds.wave(i) for i in range(3)]
    listen = tools.listen(run, None, 4)
    alone = [heard for wave in waves for heard in listen([wave])]
    together = list(in_batches(listen, waves, 2))
    for a, b in zip(alone, together, strict=True):
        assert a.text == b.text and a.confidence == pytest.approx(b.confidence, abs=1e-4)
        assert 0 <= a.confidence <= 1 and len(a.beam) >= 1
        assert a.beam[0][1] == max(total for _, total in a.beam)


def test_silence_and_nothing_are_heard_as_no_error(run: Path) -> None:
    listen = tools.listen(run, None, 2)
    for wave in (np.zeros(16_000, np.float32), np.zeros(10, np.float32), np.zeros(0, np.float32)):
        assert 0 <= listen([wave])[0].confidence <= 1


def test_the_language_model_reorders_and_keeps_confidence(
    run: Path, recipe: Recipe, corpus: Path
) -> None:
    scores = tools.train(recipe, corpus, run, "language_model")
    assert scores["ngrams"] > 0
    wave = Utterances.read(corpus, "val").wave(0)
    plain, led = tools.listen(run, None, 4)([wave])[0], tools.listen(run, run, 4)([wave])[0]
    assert sorted(plain.beam) == sorted(led.beam)
    assert 0 <= led.confidence <= 1


def test_self_training_trains_on_what_it_heard(
    tmp_path: Path, recipe: Recipe, corpus: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.is_dir()
    sounds = Utterances.read(corpus, "val")
    records = {f"sound {i}": None for i in range(2)}
    pool = Pool(records, {}, recipe.preprocessing)  # type: ignore[arg-type]
    monkeypatch.setattr(Pool, "of_corpus", staticmethod(lambda *_: pool))
    monkeypatch.setattr(Pool, "wave", lambda _, name: sounds.wave(int(name[-1])))
    scores = tools.self_train(recipe, corpus, tmp_path)
    assert "round 0" in scores
    assert (tmp_path / "recognizer" / "card.json").is_file()
    assert tools.listen(tmp_path, None, 2)([sounds.wave(0)])[0].confidence >= 0


def test_separator_and_punctuator_of_runs_open(
    tmp_path: Path, recipe: Recipe, corpus: Path, run: Path
) -> None:
    assert "si_sdri" in tools.train(recipe, corpus, tmp_path / "s", "separator")
    separate = tools.separate(tmp_path / "s")
    wave = Utterances.read(corpus, "val").wave(0)
    made = separate(wave)
    assert made.shape == (2, len(wave)) and made.dtype == np.float32 and np.isfinite(made).all()
    passage = pass_through(wave, tools.listen(run, None, 2), separate)
    assert len(passage.texts) == len(passage.sounds) == 3
    assert "f1" in tools.train(recipe, corpus, tmp_path / "p", "punctuator")
    marked = tools.punctuate(tmp_path / "p")("hello there how are you")
    assert "there" in marked.lower()
