"""Features of a trained run's steps, as the command gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import odd_media
import pytest
from hearing_run import CLEANED, write_hearing_run
from voices import voice

from merkit.contract import Preprocessing
from merkit_training import cli
from merkit_training.features.extractor import EncoderSpec
from merkit_training.features.material import Material
from merkit_training.features.trained import TrainedStep
from merkit_training.fusion.features import Decoded, Encoder
from merkit_training.speech.hearing.ears import Ears


@pytest.mark.parametrize("step", ["face_encoder", "audio_encoder", "text_encoder", "joint_encoder"])
def test_a_trained_step_gives_what_its_bundle_would(
    step: str, random_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a sound and its words; the joint feature also for either alone."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, seconds in (("a", 1.0), ("b", 0.5)):
        data = odd_media.movie([], container="wav", sound_codec="pcm_s16le",
                               sound=odd_media.tone(seconds))  # fmt: skip
        (folder / f"{name}.wav").write_bytes(data)
    texts = tmp_path / "texts.csv"
    texts.write_text("name,text\na,well then\n", "utf-8")
    arguments = ["features", f"{random_run}:{step}", "--clips", str(folder), "--frames"]
    arguments += ["--texts", str(texts), "--out", str(tmp_path / "out"), "--name", "x"]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    wanted = {
        "face_encoder": {"a": 0, "b": 0},
        "audio_encoder": {"a": 1, "b": 1},
        "text_encoder": {"a": 1, "b": 0},
        "joint_encoder": {"a": 1, "b": 1},
    }[step]
    for name, present in wanted.items():
        utterance = np.load(tmp_path / "out" / "x-UTT" / f"{name}.npy")
        series = np.load(tmp_path / "out" / "x-FRA" / f"{name}.npy")
        assert utterance.shape == series.shape[1:] and bool(utterance.any()) == bool(present)
        if step in ("audio_encoder", "text_encoder"):
            assert np.abs(series.mean(axis=0) - utterance).max() < 1e-5
    assert ("b: empty transcript" in told) == (step in ("text_encoder", "joint_encoder"))
    assert ("a: no video (feature: zeros)" in told) == (step == "face_encoder")


def test_an_encoder_that_hears_cleaned_sound_is_given_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fusion's features and the bundle have it; here the cleaner turns the sound around."""
    run = write_hearing_run(tmp_path / "run", CLEANED)
    step = TrainedStep(run, "audio_encoder", EncoderSpec("run"))
    turned = lambda _self, wave, _length, texts: (list(texts), wave.flip(1))  # noqa: E731
    monkeypatch.setattr(Ears, "__call__", turned)
    wave = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    no_face = np.zeros((0, 64, 64, 3), np.uint8)
    fusion = Encoder(run, Preprocessing(), ("a",))([Decoded(no_face, wave)], [""])
    heard = Material(np.zeros((0, 1, 1, 3), np.uint8), wave, "", ())
    (feature,) = step.encode([heard], frames=False)
    assert feature is not None
    np.testing.assert_allclose(feature.utterance, fusion["audio_features"][0], atol=1e-6)
    (run / "separator" / "model.safetensors").write_bytes(
        (run / "separator" / "model.safetensors").read_bytes()[:-1] + b"x"
    )
    assert TrainedStep(run, "audio_encoder", EncoderSpec("run")).identity != step.identity


def test_words_that_nobody_gave_are_heard_where_the_encoder_reads_both(tmp_path: Path) -> None:
    run = write_hearing_run(tmp_path / "run")
    no_face = np.zeros((0, 64, 64, 3), np.uint8)
    fusion = Encoder(run, Preprocessing(), ("j",))([Decoded(no_face, voice())], [""])
    step = TrainedStep(run, "joint_encoder", EncoderSpec("run"))
    heard, deaf = (Material(no_face, voice(), text, ()) for text in ("", "other words"))
    for material, same in ((heard, True), (deaf, False)):
        (feature,) = step.encode([material], frames=False)
        assert feature is not None
        gap = np.abs(feature.utterance - fusion["joint_views"][0, 0].numpy()).max()
        assert (gap < 1e-5) == same


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none:audio_encoder", "--clips", "{tmp}"], "is no encoder"),
        (["{run}:fusion", "--clips", "{tmp}"], "'fusion' is no encoder of a run"),
        (["{run}:audio_encoder", "--clips", "nowhere"], "nothing at nowhere"),
        (["{run}:audio_encoder", "--clips", "{tmp}", "--batch", "0"], "--batch is 0"),
        (["{run}:audio_encoder", "--clips", "{tmp}", "--ray", "-1"], "--ray is -1"),
        (["{run}:audio_encoder", "--clips", "{tmp}", "--layers", "sum"], "step of a run"),
        (["{run}:face_encoder", "--clips", "{tmp}", "--pictures"], "step of a run"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str],
    message: str,
    random_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    filled = [a.format(run=random_run, tmp=tmp_path) for a in arguments]
    assert cli.main(["features", *filled, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
