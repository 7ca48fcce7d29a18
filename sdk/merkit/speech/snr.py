"""How noisy a sound is, estimated from the sound alone: WADA-SNR (Kim and Stern 2008).

Separation is the dearest step of hearing, and of clean speech it can only take away. What tells
clean speech is its amplitude: speech is mostly quiet with rare loud samples (a gamma distribution
of shape 0.4), noise is Gaussian, and their sum lies between the two as the ratio of their powers
does. The measure is ln E|x| - E ln|x|, which no gain changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SHAPE = 0.4  # of the gamma distribution of speech
SNRS = np.arange(-10.0, 45.0, 5.0)  # dB
MEASURES = np.array(
    [0.4120, 0.4237, 0.4617, 0.5434, 0.6672, 0.8121, 0.9557, 1.0845, 1.1939, 1.2841, 1.3571]
)
"""The measure of such speech with Gaussian noise at each of SNRS, by numerical integration."""
QUIETEST = 1e-10  # amplitude that a sample counts as at least
SHORTEST = 1600  # samples with sound in them, without which nothing can be estimated
SPAN = 1 << 20  # samples that are looked at at once: an hour is estimated in little memory


def estimated_snr(waveform: NDArray[np.float32]) -> float | None:
    """Speech over noise in dB, -10 to 40; None where there is too little sound to tell.

    An estimate of the whole: right to a few dB for speech of some seconds in steady noise. The
    fewer voices babble, the cleaner they seem, for their amplitudes are those of speech; crackle,
    music and tones mean nothing to it.

    Args:
        waveform: [samples] in -1..1 at any rate; samples that are no numbers are left out.
    """
    x = np.asarray(waveform).ravel()
    count = sounding = 0
    total = size = logs = 0.0
    for span in _spans(x):
        count, sounding = count + len(span), sounding + int(np.count_nonzero(span))
        total += float(span.sum())
    if sounding < SHORTEST:
        return None
    for span in _spans(x):
        amplitude = np.maximum(np.abs(span - total / count), QUIETEST)
        size, logs = size + float(amplitude.sum()), logs + float(np.log(amplitude).sum())
    measure = float(np.log(size / count)) - logs / count
    return float(np.interp(measure, MEASURES, SNRS))


def _spans(x: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """The samples that are numbers, a part at a time."""
    for start in range(0, len(x), SPAN):
        span = x[start : start + SPAN].astype(np.float64)
        yield span[np.isfinite(span)]


def is_clean(waveform: NDArray[np.float32], from_db: float | None = None) -> bool:
    """Whether separation may be skipped, as the estimate says `from_db` or more.

    Off by default (None): every sound is separated, as the seed does.
    """
    if from_db is None:
        return False
    found = estimated_snr(waveform)
    return found is not None and found >= from_db
