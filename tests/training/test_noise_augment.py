"""Noise is where it was asked for, at the level it was asked for, and the same each time."""

from __future__ import annotations

import wave as wavefile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from merkit.errors import InvalidInputError
from merkit_training.settings import from_table
from merkit_training.speech.noise.augment import Augment
from merkit_training.speech.noise.config import KINDS, NoiseConfig
from merkit_training.speech.noise.folders import SoundFolder
from merkit_training.speech.noise.generated import generated
from merkit_training.speech.noise.levels import FRAME, PEAK, Wave, active_power, mix, power
from merkit_training.speech.noise.rooms import aligned, heard_in, simulated

SECOND = 16_000


def sentence(size: int = SECOND, peak: float = 0.3, seed: int = 0) -> Wave:
    """A stand-in for speech: noise in syllables, between stretches of silence."""
    rng = np.random.default_rng(seed)
    body = rng.standard_normal(size) * (np.sin(np.arange(size) / 1200) > 0)
    body[: size // 5] = 0
    return (peak * body / np.abs(body).max()).astype(np.float32)


def voices(rng: np.random.Generator) -> Wave:
    return sentence(seed=int(rng.integers(5)) + 1)


def snr_of(clean: Wave, mixed: Wave) -> float:
    clean = clean * ((mixed @ clean) / (clean @ clean))  # a mixture may be turned down
    return float(10 * np.log10(active_power(clean) / power(mixed - clean)))


def test_the_level_of_speech_does_not_count_the_silence_around_it() -> None:
    speech = sentence()
    padded = np.pad(speech, (50 * FRAME, 50 * FRAME))
    assert active_power(padded) == pytest.approx(active_power(speech), rel=1e-6)
    assert power(padded) < 0.6 * power(speech)
    assert active_power(np.zeros(100, np.float32)) == active_power(np.zeros(0, np.float32)) == 0


@pytest.mark.parametrize("snr", [-5.0, 5.0, 12.0, 30.0])
def test_a_mixture_has_the_snr_that_was_asked_for(snr: float) -> None:
    speech = np.pad(sentence(), (SECOND, SECOND))  # silence must not change the level
    noise = np.random.default_rng(1).standard_normal(len(speech)).astype(np.float32)
    mixed = mix(speech, noise, snr, power(noise))
    assert snr_of(speech, mixed) == pytest.approx(snr, abs=0.2)
    assert np.abs(mixed).max() <= PEAK + 1e-6


def test_a_mixture_never_clips_and_keeps_the_ratio() -> None:
    speech = sentence(peak=0.95)
    noise = np.random.default_rng(1).standard_normal(SECOND).astype(np.float32)
    mixed = mix(speech, noise, 0.0, power(noise))
    assert np.abs(mixed).max() == pytest.approx(PEAK, abs=1e-6)
    assert snr_of(speech, mixed) == pytest.approx(0, abs=0.3)


def test_silence_gets_no_noise_and_silent_noise_changes_nothing() -> None:
    silence, speech = np.zeros(100, np.float32), sentence(100)
    assert mix(silence, speech, 5, power(speech)) is silence
    assert mix(speech, silence, 5, power(silence)) is speech


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 100, SECOND])
def test_generated_noise_is_as_long_as_asked_finite_and_of_power_1(kind: str, size: int) -> None:
    noise = generated(kind, size, np.random.default_rng(0), voices)  # type: ignore[arg-type]
    assert noise.shape == (size,) and noise.dtype == np.float32
    assert np.isfinite(noise).all()
    assert power(noise) == pytest.approx(1, rel=1e-3) or size == 1


def test_brown_noise_is_darker_than_pink() -> None:
    def share_above_1khz(kind: str) -> float:
        rng = np.random.default_rng(0)
        spectrum = np.abs(np.fft.rfft(generated(kind, SECOND, rng, None))) ** 2  # type: ignore[arg-type]
        return float(spectrum[1000:].sum() / spectrum.sum())

    assert share_above_1khz("brown") < 0.2 * share_above_1khz("pink")


def test_hum_stands_on_the_lines_of_the_mains() -> None:
    noise = generated("hum", 4 * SECOND, np.random.default_rng(3), None)
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    strongest = int(spectrum.argmax()) / 4  # Hz
    assert min(strongest % 50, strongest % 60) == pytest.approx(0, abs=0.6)


def test_a_room_is_the_same_each_time_and_others_differ() -> None:
    pytest.importorskip("pyroomacoustics")
    first = simulated(3)
    assert np.array_equal(first, simulated(3))
    assert not np.array_equal(first[:200], simulated(4)[:200])
    assert power(first) * len(first) == pytest.approx(1, rel=1e-4)
    assert int(np.abs(first).argmax()) <= 8  # the direct sound comes at once


def test_a_reverberant_room_rings_longer() -> None:
    pytest.importorskip("pyroomacoustics")

    def late(seconds: float) -> float:
        room = simulated(1, (seconds, seconds))
        return float((room[800:].astype(np.float64) ** 2).sum())

    assert late(0.6) > 3 * late(0.15)


def test_what_a_room_does_to_a_click_is_its_response() -> None:
    room = aligned(np.array([0, 0, 1, 0.5, 0.25], np.float32))
    click = np.zeros(10, np.float32)
    click[4] = 1
    heard = heard_in(room, click)
    assert len(heard) == 10
    assert np.allclose(heard[4:9], room, atol=1e-6)


def augment(**keys: object) -> Augment:
    return Augment(NoiseConfig(**keys), voices)  # type: ignore[arg-type]


def test_kinds_come_as_2_to_1_to_1() -> None:
    made = augment(rooms=2, reverberation=(0.15, 0.15))
    speech = sentence(2000)
    kinds: Counter[str] = Counter()
    for i in range(400):
        mixed = made.take(speech, 0, i)
        snr = np.inf if np.array_equal(mixed, speech) else snr_of(speech, mixed)
        kinds["clean" if np.isinf(snr) else "noisy"] += 1
    assert 160 <= kinds["clean"] <= 240


@pytest.mark.parametrize(
    ("keys", "low", "high"),
    [
        ({"clean": 0, "voices": 0, "kinds": ("pink",)}, 5, 12),
        ({"clean": 0, "ambient": 0, "rooms": 2}, 10, 30),
    ],
)
def test_levels_stay_within_the_seeds_bounds(
    keys: dict[str, object], low: float, high: float
) -> None:
    made, speech = augment(**keys), sentence()
    found = [snr_of(speech, made.take(speech, 1, i)) for i in range(12)]
    assert min(found) > low - 3 and max(found) < high + 6  # voices: of their active frames
    assert max(found) - min(found) > 1


def test_the_same_seed_and_index_give_the_same_noise() -> None:
    made, again, speech = augment(clean=0), augment(clean=0), sentence()
    assert np.array_equal(made.take(speech, 7, 3), again.take(speech, 7, 3))
    assert not np.array_equal(made.take(speech, 7, 3), made.take(speech, 7, 4))
    assert not np.array_equal(made.take(speech, 7, 3), made.take(speech, 8, 3))


def test_a_batch_keeps_its_shape_and_its_padding() -> None:
    made = Augment(NoiseConfig(clean=0, rooms=2))  # voices: the others of the batch
    batch = np.zeros((4, SECOND), np.float32)
    for i, size in enumerate((SECOND, 9000, 3000)):  # the last row is silent
        batch[i, :size] = sentence(size, seed=i)
        batch[i, size - 1] = 0.1
    out = made(batch, np.random.default_rng(0))
    assert out.shape == batch.shape and out.dtype == np.float32
    assert not out[1, 9000:].any() and not out[2, 3000:].any() and not out[3].any()
    assert np.abs(out).max() <= PEAK + 1e-6
    assert all(not np.array_equal(out[i], batch[i]) for i in range(3))
    alone = made(batch[:1], np.random.default_rng(0))  # nobody else speaks: ambient alone
    assert not np.array_equal(alone, batch[:1])


def write_wav(path: Path, wave: Wave, rate: int = SECOND) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wavefile.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(wave, -1, 1) * 32767).astype(np.int16).tobytes())


def test_recordings_of_noise_and_of_rooms_are_used(tmp_path: Path) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(SECOND) / SECOND)).astype(np.float32)
    write_wav(tmp_path / "musan" / "noise" / "tone.wav", tone)
    write_wav(tmp_path / "musan" / "speech" / "talk.wav", sentence(seed=9))
    click = np.zeros(400, np.float32)
    click[100], click[300] = 0.9, 0.45
    write_wav(tmp_path / "rooms" / "echo.wav", np.pad(click, (0, SECOND)))
    folders = {"folder": str(tmp_path / "musan"), "rooms_folder": str(tmp_path / "rooms")}
    made = Augment(NoiseConfig(**folders, clean=0, voices=0))
    noise = made.ambient(SECOND, np.random.default_rng(0))
    assert int(np.abs(np.fft.rfft(noise)).argmax()) == pytest.approx(440, abs=2)
    crowd = Augment(NoiseConfig(**folders, clean=0, ambient=0))
    mixed = crowd.take(sentence(), 0, 0)
    assert not np.array_equal(mixed, sentence())


def test_decoded_recordings_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        write_wav(tmp_path / f"{i}.wav", sentence(seed=i))
    monkeypatch.setattr("merkit_training.speech.noise.folders.KEPT", 2 * 4 * SECOND)
    folder = SoundFolder(tmp_path)
    first = folder[0]
    for i in range(4):
        assert len(folder[i]) == SECOND
    assert len(folder._kept) == 2
    assert np.array_equal(folder[0], first)


def test_folders_without_sound_and_damaged_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is no folder"):
        Augment(NoiseConfig(folder=str(tmp_path / "missing")))
    with pytest.raises(InvalidInputError, match="holds no sound files"):
        Augment(NoiseConfig(rooms_folder=str(tmp_path)))
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(InvalidInputError, match=r"bad\.wav"):
        SoundFolder(tmp_path)[0]


@pytest.mark.parametrize(
    "table",
    [
        {"clean": 0, "ambient": 0, "voices": 0},
        {"ambient_snr": [12, 5]},
        {"kinds": []},
        {"kinds": ["traffic"]},
        {"reverberation": [0.0, 0.5]},
        {"talkers": [0, 2]},
    ],
)
def test_impossible_tables_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        from_table(NoiseConfig, table, "[noise]")
