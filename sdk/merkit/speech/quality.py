"""Where somebody speaks, and what is wrong with a recording, before anything is made of it.

Every later step gives an answer to silence, to a clipped microphone and to music, too. These flags
are how a caller learns that the answer stands on nothing. They never refuse a sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError

Wave = NDArray[np.float32]
Floats = NDArray[np.float64]
Span = tuple[float, float]

FRAME, HOP = 0.025, 0.010  # seconds
BAND = (100.0, 4000.0)  # Hz, where speech has its power
PITCH = (60.0, 400.0)  # Hz, of voices
PERIODIC = 0.45  # least autocorrelation at one period of a voiced frame
BLOCK = 1000  # frames that are transformed at once
SPAN = 1 << 20  # samples that are looked at at once
SILENCE_DB = -120.0  # what no sound at all is called
FLAGS = ("empty", "not_finite", "too_quiet", "clipped", "dc_offset", "no_speech")


@dataclass(frozen=True)
class QualityLimits:
    """From where on a sound is flagged."""

    quiet_dbfs: float = -50.0  # RMS below this is `too_quiet`; speech is recorded at -35 to -15
    clipped_share: float = 0.001  # of samples at full scale, or in flat tops, is `clipped`
    offset: float = 0.02  # of full scale: a mean beyond it is `dc_offset`
    speech_seconds: float = 0.3  # less speech in all is `no_speech`
    floor_db: float = 9.0  # a frame of speech is louder than the noise floor by more,
    least_dbfs: float = -65.0  # and than this: quieter than any room
    voiced_share: float = 0.2  # of a stretch's frames have a pitch, else it is a noise
    gap_seconds: float = 0.25  # shorter pauses belong to the speech around them
    stretch_seconds: float = 0.1  # shorter stretches are clicks


@dataclass(frozen=True)
class Quality:
    """What was found. Levels are dB below full scale."""

    seconds: float
    level_dbfs: float  # RMS without the mean
    peak: float  # largest amplitude; full scale is 1
    clipped_share: float  # of samples
    offset: float  # the mean
    not_finite: int  # samples that are no numbers; they count as 0
    speech: tuple[Span, ...]  # first and last second of each stretch in which somebody speaks
    flags: tuple[str, ...]  # of FLAGS

    @property
    def speech_seconds(self) -> float:
        """How long somebody speaks in all."""
        return sum(end - begin for begin, end in self.speech)


def assess(
    waveform: Wave, sample_rate: int = 16_000, limits: QualityLimits | None = None
) -> Quality:
    """The quality of `waveform` float32 [samples] in -1..1; memory grows with it by a little.

    Raises:
        InvalidInputError: not one row of floating-point samples, or a rate below 8000 Hz.
    """
    x = np.asarray(waveform)
    if x.ndim != 1 or x.dtype.kind != "f" or sample_rate < 2 * BAND[1]:
        raise InvalidInputError(
            f"the sound is {x.dtype} {list(x.shape)} at {sample_rate} Hz",
            "float32 [samples] at 8000 Hz or more",
            "give one channel, scaled to -1..1",
        )
    limits = limits or QualityLimits()
    finite = np.isfinite(x)
    lost = int(x.size - np.count_nonzero(finite))
    clean = np.where(finite, x, 0).astype(np.float32) if lost else x.astype(np.float32, copy=False)
    offset = float(clean.mean(dtype=np.float64)) if x.size else 0.0
    power = _power(clean, offset)
    peak = max(float(clean.max(initial=0)), -float(clean.min(initial=0)))
    clipped, level = _clipped_share(clean, peak), _decibels(power)
    speech = _speech(clean, offset, sample_rate, limits)
    spoken = sum(end - begin for begin, end in speech)
    raised = {
        "empty": not x.size,
        "not_finite": lost > 0,
        "too_quiet": level < limits.quiet_dbfs,
        "clipped": clipped > limits.clipped_share,
        "dc_offset": abs(offset) > limits.offset,
        "no_speech": spoken < limits.speech_seconds,
    }
    flags = tuple(name for name in FLAGS if raised[name])
    return Quality(x.size / sample_rate, level, peak, clipped, offset, lost, speech, flags)


def speech_spans(
    waveform: Wave, sample_rate: int = 16_000, limits: QualityLimits | None = None
) -> tuple[Span, ...]:
    """First and last second of each stretch in which somebody speaks; errors as `assess`.

    A stretch is louder than the noise floor (the level that a tenth of the frames stay below), and
    voices are heard in it. Singing counts as speech, whispering does not, a lone instrument may.
    """
    return assess(waveform, sample_rate, limits).speech


def _power(x: Wave, offset: float) -> float:
    """Mean square of the samples without their mean."""
    parts = (x[start : start + SPAN] - np.float32(offset) for start in range(0, x.size, SPAN))
    total = sum(float(np.square(part).sum(dtype=np.float64)) for part in parts)
    return total / x.size if x.size else 0.0


def _clipped_share(x: Wave, peak: float) -> float:
    """Share of samples at full scale, or in runs of three or more at the very peak."""
    if peak < 0.25:  # flat tops of a faint sound are its few quantisation steps
        return 0.0
    clipped = 0
    for start in range(0, x.size, SPAN):
        before = min(2, start)  # samples of a run that may reach into this span
        size = np.abs(x[start - before : start + SPAN + 2])
        at_top = size >= peak - 1.5 / 32768
        runs = at_top[:-2] & at_top[1:-1] & at_top[2:]
        flat = size >= 0.999
        for shift in range(3):
            flat[shift : shift + runs.size] |= runs
        clipped += int(np.count_nonzero(flat[before : before + SPAN]))
    return clipped / x.size


def _speech(x: Wave, offset: float, rate: int, limits: QualityLimits) -> tuple[Span, ...]:
    frame, hop = round(FRAME * rate), round(HOP * rate)
    if x.size < frame:
        return ()
    parts = list(_frames(x, offset, rate, frame, hop))
    level = np.concatenate([part[0] for part in parts])
    voiced = np.concatenate([part[1] for part in parts])
    floor = float(np.percentile(level, 10))
    loud = level > max(floor + limits.floor_db, limits.least_dbfs)
    spans = []
    for first, last in _joined(loud, round(limits.gap_seconds / HOP)):
        heard = loud[first:last]
        long = (last - first) * HOP >= limits.stretch_seconds
        if long and (voiced[first:last] & heard).sum() >= limits.voiced_share * heard.sum():
            spans.append((round(first * HOP, 3), round(min(last * HOP + FRAME, x.size / rate), 3)))
    return tuple(spans)


def _frames(
    x: Wave, offset: float, rate: int, frame: int, hop: int
) -> Iterator[tuple[Floats, NDArray[np.bool_]]]:
    """Of each frame the level in BAND in dB, and whether it has a pitch; a block at a time."""
    window = np.hanning(frame + 2)[1:-1]
    size = 1 << (2 * frame - 1).bit_length()  # so that the correlation does not wrap around
    own = np.fft.irfft(np.abs(np.fft.rfft(window, size)) ** 2)[:frame]
    places = np.fft.rfftfreq(size, 1 / rate)
    band = (places >= BAND[0]) & (places <= BAND[1])
    lags = slice(round(rate / PITCH[1]), min(round(rate / PITCH[0]), frame - frame // 4))
    views = np.lib.stride_tricks.sliding_window_view(x, frame)[::hop]
    for start in range(0, len(views), BLOCK):
        framed = (views[start : start + BLOCK].astype(np.float64) - offset) * window
        power = np.abs(np.fft.rfft(framed, size, axis=1)) ** 2
        power[:, ~band] = 0
        # 2: both halves of the spectrum; the window's own energy makes it a mean square
        level = 10 * np.log10(2 * power.sum(1) / size / np.square(window).sum() + 1e-12)
        echo = np.fft.irfft(power, size, axis=1)[:, :frame]
        periodic = echo[:, lags] / own[lags] * own[0] / np.maximum(echo[:, :1], 1e-20)
        yield level, periodic.max(1) > PERIODIC


def _joined(loud: NDArray[np.bool_], gap: int) -> list[tuple[int, int]]:
    """Stretches of loud frames, first and past the last, those at most `gap` apart as one."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], loud.astype(np.int8), [0]))))
    found: list[tuple[int, int]] = []
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if found and first - found[-1][1] <= gap:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def _decibels(power: float) -> float:
    return 10 * float(np.log10(power)) if power > 10 ** (SILENCE_DB / 10) else SILENCE_DB
