"""Speech with a chosen tone: espeak-ng through ctypes, then effects that carry prosody.

espeak's own controls (rate, pitch, range) are coarse, and models normalise loudness away. So
spectral tilt, tremolo, loudness contour, pauses and breath are added to the waveform, where they
survive normalisation. espeak-ng is GPL-3: it generates data and is no part of the SDK.

The library is not thread-safe and is initialised once per process.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import resample_poly

from merkit.errors import MerkitError, MissingExtraError
from merkit_training.synth.model import PROSODY, Floats

Wave = NDArray[np.float32]

RATE = 16_000  # Hz
ESPEAK_RATE = 22_050  # Hz, of every espeak-ng voice used here
MIN_SECONDS, MAX_SECONDS = 2.0, 3.4
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4")
LANGUAGES = {"zh": "cmn", "en": "en"}
WORDS_PER_MINUTE = 175

REINSTALL = "reinstall the package espeakng-loader"

SYNCHRONOUS, CHARS_UTF8 = 2, 1
PARAM_RATE, PARAM_VOLUME, PARAM_PITCH, PARAM_RANGE = 1, 2, 3, 4


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak-ng variant with a pitch and a vocal tract of its own."""

    number: int
    variant: str
    pitch: float  # espeak units added to the middle of the scale, which is 50
    tract: float  # resampling factor; above 1 the voice is smaller and brighter


def voice(number: int, seed: int) -> Voice:
    """The speaker with a number; the same for the same seed."""
    rng = np.random.default_rng([seed, 0x70, number])
    variant = VARIANTS[rng.integers(len(VARIANTS))]
    return Voice(
        number, variant, rng.normal(0, 4), float(np.clip(rng.normal(1, 0.035), 0.92, 1.08))
    )


def speak(text: str, language: str, who: Voice, tone: Floats, rng: np.random.Generator) -> Wave:
    """The sentence as float32 [samples] at 16 kHz, peak below 1, 2.0-3.4 s long.

    Args:
        text: a sentence.
        language: a key of LANGUAGES.
        who: the speaker.
        tone: prosody parameters, float [len(PROSODY)].
        rng: pauses, tremolo phase, breath and level.
    """
    p = dict(zip(PROSODY, np.clip(tone, -3.5, 3.5).tolist(), strict=True))
    rate = WORDS_PER_MINUTE * 2 ** (0.16 * p["rate"])
    for _ in range(3):
        raw = _trim(_espeak(text, language, who, rate, p["pitch"], p["range"]))
        spoken = raw.size / ESPEAK_RATE / who.tract
        limit = MAX_SECONDS - 0.15 - 0.22 * max(p["pause"], 0)
        if spoken <= limit:
            break
        rate = min(rate * 1.06 * spoken / limit, 420.0)
    wave = resample_poly(raw, 320, round(441 * who.tract)).astype(np.float32)
    wave = _pause(wave, p["pause"], rng)
    wave = _colour(wave, p["tilt"])
    wave = _breathe(wave, p["breath"], rng)
    time = np.arange(wave.size) / RATE
    depth = np.clip(0.04 + 0.28 * p["tremolo"], 0, 0.85)
    shake = 1 - depth * (0.5 + 0.5 * np.sin(2 * np.pi * 6.5 * time + rng.uniform(0, 2 * np.pi)))
    contour = 10 ** (np.linspace(-0.5, 0.5, wave.size) * 7.0 * p["slope"] / 20)
    return _level(_fit(wave * shake * contour, rng), rng)


def _trim(wave: Wave) -> Wave:
    loud = np.flatnonzero(np.abs(wave) > 0.01 * max(float(np.abs(wave).max(initial=0)), 1e-6))
    return wave[loud[0] : loud[-1] + 1] if loud.size else wave


def _pause(wave: Wave, amount: float, rng: np.random.Generator) -> Wave:
    """Opens the quietest gap in the middle of the sentence, the wider the larger `amount`."""
    gap = int(0.22 * max(amount, 0) * RATE)
    if gap < 160 or wave.size < 4800:
        return wave
    low, high = int(wave.size * 0.25), int(wave.size * 0.75)
    energy = uniform_filter1d(np.abs(wave[low:high]), 480)
    cut = low + int(energy.argmin())
    silence = 1e-4 * rng.standard_normal(gap).astype(np.float32)
    return np.concatenate([wave[:cut], silence, wave[cut:]])


def _colour(wave: Wave, tilt: float) -> Wave:
    """Tilts the spectrum by up to 2.4 dB an octave per unit about 1 kHz."""
    size = 1 << (wave.size - 1).bit_length()
    spectrum = np.fft.rfft(wave, size)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / RATE), 100) / 1000)
    gain = 10 ** (np.clip(2.4 * tilt * octaves, -24, 24) / 20)
    return np.asarray(np.fft.irfft(spectrum * gain, size)[: wave.size], np.float32)


def _breathe(wave: Wave, amount: float, rng: np.random.Generator) -> Wave:
    """Adds aspiration noise that follows the loudness."""
    share = 0.06 * max(amount + 0.3, 0)
    envelope = np.sqrt(np.maximum(uniform_filter1d(wave**2, 800), 0))
    noise = np.diff(rng.standard_normal(wave.size + 1))
    return np.asarray(wave + share * envelope * noise, np.float32)


def _fit(wave: Wave, rng: np.random.Generator) -> Wave:
    """Puts a little silence around the sentence, so that it lasts MIN to MAX seconds."""
    wave = wave[: int(MAX_SECONDS * RATE)]
    lead, tail = (int(rng.uniform(0.05, 0.12) * RATE) for _ in range(2))
    missing = max(int(MIN_SECONDS * RATE) - wave.size - lead - tail, 0)
    room = int(MAX_SECONDS * RATE) - wave.size
    lead, tail = min(lead + missing // 3, room // 2), tail + missing - missing // 3
    return np.pad(wave, (lead, min(tail, room - lead)))


def _level(wave: Wave, rng: np.random.Generator) -> Wave:
    floor = 3e-4 * rng.standard_normal(wave.size)
    peak = rng.uniform(0.35, 0.85) / max(float(np.abs(wave).max(initial=0)), 1e-6)
    return np.asarray(wave * peak + floor, np.float32)


def babble(waves: list[Wave], size: int, rng: np.random.Generator) -> Wave:
    """Speech-like noise float32 [size]: several talkers at once, each from a random point."""
    noise = np.zeros(size, np.float32)
    for wave in waves:
        start = int(rng.integers(wave.size))
        noise += np.resize(np.roll(wave / (wave.std() + 1e-6), start), size)
    return noise


def mix(clean: Wave, noise: Wave, snr: float) -> Wave:
    """`clean` with `noise` at a signal-to-noise ratio of `snr` dB, kept below full scale."""
    gain = float(np.sqrt(np.mean(clean**2) / (np.mean(noise**2) * 10 ** (snr / 10) + 1e-12)))
    mixed = clean + gain * noise
    return np.asarray(mixed / max(1.0, float(np.abs(mixed).max()) / 0.98), np.float32)


class _Espeak:
    """The shared library with its callback, which collects samples."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise MissingExtraError.of("espeakng-loader", "train") from None

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        found = self.library.espeak_Initialize(SYNCHRONOUS, 0, data, 0)
        if found != ESPEAK_RATE:
            raise MerkitError(f"espeak-ng started at {found} Hz", f"{ESPEAK_RATE} Hz", REINSTALL)
        self.library.espeak_ng_SetRandSeed(1)  # else it is seeded from the clock
        self.parts: list[NDArray[np.int16]] = []
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )

        def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
            if samples and count > 0:
                self.parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        self.callback = kind(collect)  # kept: ctypes does not hold a reference
        self.library.espeak_SetSynthCallback(self.callback)


@cache
def _engine() -> _Espeak:
    return _Espeak()


def _espeak(text: str, language: str, who: Voice, rate: float, pitch: float, spread: float) -> Wave:
    engine = _engine()
    name = f"{LANGUAGES[language]}+{who.variant}".encode()
    if engine.library.espeak_SetVoiceByName(name) != 0:
        raise MerkitError(f"espeak-ng has no voice {name.decode()}", "its data", REINSTALL)
    settings = {
        PARAM_RATE: rate,
        PARAM_VOLUME: 90,
        PARAM_PITCH: 48 + who.pitch + 13 * pitch,
        PARAM_RANGE: 50 * 2 ** (0.55 * spread),
    }
    for parameter, value in settings.items():
        top = 450 if parameter == PARAM_RATE else 100
        engine.library.espeak_SetParameter(parameter, int(np.clip(round(value), 1, top)), 0)
    engine.parts.clear()
    encoded = text.encode()
    engine.library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, CHARS_UTF8, None, None)
    if not engine.parts:
        raise MerkitError(f"espeak-ng said nothing for {text!r}", "words to speak")
    return np.asarray(np.concatenate(engine.parts) / np.float32(32768), np.float32)
