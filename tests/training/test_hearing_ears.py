"""Clips without words are learnt from as the bundle will hear them; others as ever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hearing_run import CLEANED, HEARING, write_hearing_run
from numpy.typing import NDArray
from odd_media import sound_file
from voices import RATE, SOUNDS, voice

from merkit.backends.base import strings
from merkit.errors import InvalidInputError
from merkit.pipeline import cut
from merkit_training.corpus import Clip
from merkit_training.data import ClipRecord
from merkit_training.evaluation.trained import TrainedBackend
from merkit_training.features.clips import clip_key
from merkit_training.features.extractor import EncoderSpec
from merkit_training.features.material import read_material
from merkit_training.features.trained import TrainedStep
from merkit_training.fusion import features
from merkit_training.fusion.features import Decoded, Encoder
from merkit_training.speech.hearing.ears import Ears

NO_FACE = np.zeros((0, 64, 64, 3), np.uint8)
GROUPS = ("audio_features", "text_features", "joint_features", "words")


@pytest.fixture(scope="module", params=["original", "cleaned"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = {"original": HEARING, "cleaned": CLEANED}[request.param]
    return write_hearing_run(tmp_path_factory.mktemp("run") / request.param, recipe)


def served(backend: TrainedBackend, sound: NDArray[np.float32], text: str) -> dict[str, Any]:
    """What the run's whole pipeline makes of a clip, as its bundle does."""
    values: dict[str, Any] = {
        "face_crops": NO_FACE[None],
        "face_count": np.array([[0]]),
        "waveform": sound[None],
        "waveform_length": np.array([[len(sound)]]),
        "text": strings(text),
    }
    for step in cut(backend.contract.steps, values, GROUPS):
        values |= backend._run(step, values)
    return values


def test_clips_without_words_have_those_that_the_bundle_hears(run: Path) -> None:
    backend = TrainedBackend(run)
    encode = Encoder(run, backend.contract.preprocessing)
    sounds, texts = [voice(), voice(1.5, 180.0), SOUNDS["hiss"]()], [" ", "given words", ""]
    made = encode([Decoded(NO_FACE, sound) for sound in sounds], texts)
    for i, (sound, text) in enumerate(zip(sounds, texts, strict=True)):
        whole = served(backend, sound, text)
        for name in GROUPS[:3]:
            ours = made["joint_views"][:, 0] if name == "joint_features" else made[name]
            np.testing.assert_allclose(ours[i], whole[name][0], atol=1e-4, err_msg=f"{i} {name}")
    assert served(backend, sounds[0], "")["words"][0, 0], "nothing was recognised, or compared"
    assert made["presence"][:, 2].tolist() == [True, True, False]


def test_a_step_of_the_run_hears_the_words_of_clips_without_any(run: Path, tmp_path: Path) -> None:
    """`merkit-train features RUN:text_encoder`, which else needs no sound."""
    step = TrainedStep(run, "text_encoder", EncoderSpec("run"))
    sounds = {"voice": voice(), "hiss": SOUNDS["hiss"]()}
    for name, sound in sounds.items():
        (tmp_path / f"{name}.wav").write_bytes(sound_file(sound[None], rate=RATE))
    records = [ClipRecord(name, tmp_path / f"{name}.wav") for name in sounds]
    given = [replace(record, text="given words") for record in records]
    assert step.reads_of(records[0]) == {"audio", "text"} and step.reads_of(given[0]) == {"text"}
    keys = [clip_key(clip, step) for clip in (*records, *given)]
    assert len(set(keys)) == 3, "what was said counts alone, where something was"
    materials = [read_material(r, step.reads_of(r), False, step.preprocessing) for r in records]
    voiced, hissed = step.encode(materials, frames=False)
    assert voiced is not None and hissed is None
    encode = Encoder(run, step.preprocessing, ("t",))
    (words,) = encode([Decoded(NO_FACE, materials[0].waveform)], [""])["text_features"]
    np.testing.assert_allclose(voiced.utterance, words, atol=1e-5)
    assert np.abs(voiced.utterance).max() > 0


def test_clips_with_words_are_as_without_a_chain(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: features of finished runs stay what they are."""
    encode = Encoder(run, HEARING.preprocessing)
    assert encode.ears is not None
    if run.name == "cleaned":  # the chain is asked for the sound, whatever was said
        wave, length = torch.from_numpy(voice())[None], torch.tensor([[len(voice())]])
        words, cleaned = encode.ears(wave, length, ["as given "])
        assert words == ["as given "] and cleaned is not None and cleaned.shape == wave.shape
        return
    monkeypatch.setattr(Ears, "_walk", None)
    clips = [Decoded(NO_FACE, voice()), Decoded(NO_FACE, voice(1.0))]
    heard = encode(clips, ["one", "two words"])
    encode.ears = None
    for name, value in encode(clips, ["one", "two words"]).items():
        assert torch.equal(value, heard[name]), name
    assert Ears.of(run, HEARING.preprocessing, writes=False) is None


def test_a_recogniser_that_is_to_come_must_come_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = {
        "train": [Clip("a", None, 0, "", "en", {})],
        "val": [Clip("b", None, 0, "words", "en", {})],
    }
    monkeypatch.setattr(features, "labelled_splits", lambda _: ("train", "val"))
    monkeypatch.setattr(features, "read_clips", lambda _, split: clips[split])
    monkeypatch.setattr(features, "extract_split", lambda *_: None)
    monkeypatch.setattr(features, "holds", lambda *_: False)
    with pytest.raises(InvalidInputError, match=r"1 clips have no words.*--stage recognizer"):
        features.extract(HEARING, tmp_path, run)
    monkeypatch.setattr(features, "read_features", lambda _: _Some())
    silent = replace(HEARING, recognizer=replace(HEARING.recognizer, epochs=0))
    assert features.extract(silent, tmp_path, run)["wordless"] == 1
    clips["train"] = clips["val"]
    assert "wordless" not in features.extract(HEARING, tmp_path, run)


class _Some:
    presence = torch.ones(1, 3, dtype=torch.bool)
