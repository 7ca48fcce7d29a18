"""Flags and speech of made sounds and of real recordings; how noisy a sound is."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit.media.clip import decode_clip
from merkit.speech.quality import Quality, QualityLimits, assess, speech_spans
from merkit.speech.snr import MEASURES, SHAPE, SNRS, estimated_snr, is_clean

RATE = 16_000
TIME = np.arange(3 * RATE) / RATE
RNG = np.random.default_rng(5)
NOISE = RNG.standard_normal(TIME.size)


def syllables(rate: int = RATE, pitch: float = 120.0) -> NDArray[np.float64]:
    """Four a second from 0.5 s to 2.5 s: a pulse train through a formant, with gaps."""
    time = np.arange(3 * rate) / rate
    wave = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 12))
    loud = (time > 0.5) & (time < 2.5) & (np.mod(time, 0.25) < 0.17)
    return np.asarray(0.1 * wave * loud)


SOUNDS = {
    "speech": (syllables() + 1e-4 * NOISE, ()),
    "nothing": (np.zeros(0), ("empty", "too_quiet", "no_speech")),
    "one sample": (np.full(1, 0.5), ("too_quiet", "dc_offset", "no_speech")),
    "10 ms": (0.1 * NOISE[:160], ("no_speech",)),
    "silence": (np.zeros(RATE), ("too_quiet", "no_speech")),
    "far away": (syllables() / 1000 + 1e-6 * NOISE, ("too_quiet", "no_speech")),
    "clipped": (np.clip(20 * syllables(), -1, 1), ("clipped",)),
    "clipped below full scale": (np.clip(5 * syllables(), -0.5, 0.5), ("clipped",)),
    "offset": (syllables() + 0.1 + 1e-4 * NOISE, ("dc_offset",)),
    "hiss": (0.1 * NOISE, ("no_speech",)),
    "hum": (0.2 * np.sin(2 * np.pi * 50 * TIME), ("no_speech",)),
    "loud tone": (0.95 * np.sin(2 * np.pi * 440 * TIME), ("no_speech",)),
    "claps": (0.2 * NOISE * (np.mod(TIME, 0.5) < 0.05) + 1e-4 * NOISE, ("no_speech",)),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_each_sound_has_its_flags(name: str) -> None:
    wave, flags = SOUNDS[name]
    assert assess(wave.astype(np.float32)).flags == flags


def test_speech_is_found_where_it_is() -> None:
    found = assess((syllables() + 1e-3 * NOISE).astype(np.float32))
    ((begin, end),) = found.speech
    assert begin == pytest.approx(0.5, abs=0.03) and end == pytest.approx(2.42, abs=0.03)
    assert found.speech_seconds == pytest.approx(end - begin)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_the_rate_does_not_count(rate: int) -> None:
    ((begin, end),) = speech_spans(syllables(rate).astype(np.float32), rate)
    assert begin == pytest.approx(0.5, abs=0.03) and end == pytest.approx(2.42, abs=0.03)


def test_samples_that_are_no_numbers_are_told_and_count_as_silence() -> None:
    wave = syllables().astype(np.float32)
    wave[100:200] = np.nan
    wave[300] = np.inf
    found = assess(wave)
    assert (found.flags, found.not_finite) == (("not_finite",), 101)
    assert found.speech == assess(syllables().astype(np.float32)).speech


def test_levels_are_the_known_ones() -> None:
    found = assess((0.5 * np.sin(2 * np.pi * 1000 * TIME) + 0.25).astype(np.float32))
    assert found.level_dbfs == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.01)
    assert found.offset == pytest.approx(0.25, abs=1e-4)
    assert found.peak == pytest.approx(0.75, abs=1e-3)
    assert assess(np.zeros(9, np.float32)).level_dbfs == -120


def test_limits_can_be_chosen() -> None:
    wave = (syllables() / 10 + 1e-5 * NOISE).astype(np.float32)
    assert assess(wave).flags == ()
    assert assess(wave, limits=QualityLimits(quiet_dbfs=-30)).flags == ("too_quiet",)


@pytest.mark.parametrize(
    ("wave", "rate"), [(np.zeros((2, 9), np.float32), RATE), (np.zeros(9, np.int16), RATE),
                       (np.zeros(9, np.float32), 4_000)]
)  # fmt: skip
def test_what_is_no_sound_is_refused(wave: NDArray[np.float32], rate: int) -> None:
    with pytest.raises(InvalidInputError, match="float32"):
        assess(wave, rate)


def test_real_recordings(media: Path) -> None:
    speech = heard(media / "jfk.flac")
    assert speech.flags == ()
    assert 6 < speech.speech_seconds < 9 and speech.speech[0][0] == pytest.approx(0.3, abs=0.1)
    assert heard(media / "single_face.mp4").flags == ("too_quiet", "no_speech")
    assert "too_quiet" not in heard(media / "no_face.mp4").flags


def heard(path: Path) -> Quality:
    return assess(decode_clip(path, Preprocessing()).waveform)


def test_the_table_is_that_of_gamma_speech_in_gaussian_noise() -> None:
    rng = np.random.default_rng(0)
    count = 400_000
    speech = rng.gamma(SHAPE, size=count) * rng.choice([-1, 1], count)
    speech /= np.sqrt(np.mean(speech**2))
    for snr, measure in zip(SNRS, MEASURES, strict=True):
        size = np.abs(speech + 10 ** (-snr / 20) * rng.standard_normal(count))
        assert np.log(size.mean()) - np.log(size).mean() == pytest.approx(measure, abs=0.02)


def test_real_speech_in_noise_is_estimated(media: Path) -> None:
    wave = decode_clip(media / "jfk.flac", Preprocessing()).waveform
    noise = np.random.default_rng(0).standard_normal(wave.size) * np.sqrt(np.mean(wave**2))
    for snr in (0, 5, 10, 20):
        noisy = (wave + noise * 10 ** (-snr / 20)).astype(np.float32)
        assert estimated_snr(noisy) == pytest.approx(snr, abs=4)
        assert estimated_snr(noisy / 50) == pytest.approx(estimated_snr(noisy), abs=0.01)
    assert is_clean(wave, 20) and not is_clean(wave) and not is_clean(noisy, 25)


@pytest.mark.parametrize("wave", [np.zeros(0), np.zeros(RATE), np.ones(100), np.full(9, np.nan)])
def test_too_little_sound_has_no_estimate(wave: NDArray[np.float64]) -> None:
    assert estimated_snr(wave.astype(np.float32)) is None
    assert not is_clean(wave.astype(np.float32), 0)


@pytest.mark.parametrize("name", SOUNDS)
def test_spans_do_not_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sound is looked at in parts; runs of clipped samples may lie across two."""
    wave = SOUNDS[name][0].astype(np.float32)
    whole, estimate = assess(wave), estimated_snr(wave)
    for module in ("quality", "snr"):
        monkeypatch.setattr(f"merkit.speech.{module}.SPAN", 997)
    parts = assess(wave)
    assert replace(parts, level_dbfs=whole.level_dbfs) == whole
    assert parts.level_dbfs == pytest.approx(whole.level_dbfs)
    assert estimated_snr(wave) == pytest.approx(estimate) if estimate else True


def test_long_sound_costs_little_more_memory_than_itself() -> None:
    """Ten minutes; what is made beside it was several times as large."""
    wave = np.random.default_rng(0).uniform(-1, 1, 600 * 16_000).astype(np.float32)
    tracemalloc.start()
    try:
        assert "clipped" not in assess(wave).flags
        assert estimated_snr(wave) is not None
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
