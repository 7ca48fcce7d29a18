"""How noisy a sound is, estimated from the sound alone: WADA-SNR (Kim and Stern 2008).

Separation is the dearest step of hearing, and of clean speech it can only take away. What tells
clean speech is its amplitude: speech is mostly quiet with rare loud samples (a gamma distribution
of shape 0.4), noise is Gaussian, and their sum lies between the two as the ratio of their powers
does. The measure is ln E|x| - E ln|x|, which no gain changes.
"""

from __future__ import annotations

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


def estimated_snr(waveform: NDArray[np.float32]) -> float | None:
    """Speech over noise in dB, -10 to 40; None where there is too little sound to tell.

    An estimate of the whole: right to a few dB for speech of some seconds in steady noise, and
    blind to babble, whose amplitudes are those of speech. Music and tones mean nothing to it.

    Args:
        waveform: [samples] in -1..1 at any rate; samples that are no numbers are left out.
    """
    x = np.asarray(waveform, np.float64).ravel()
    x = x[np.isfinite(x)]
    if np.count_nonzero(x) < SHORTEST:
        return None
    size = np.maximum(np.abs(x - x.mean()), QUIETEST)
    measure = float(np.log(size.mean()) - np.log(size).mean())
    return float(np.interp(measure, MEASURES, SNRS))


def is_clean(waveform: NDArray[np.float32], from_db: float | None = None) -> bool:
    """Whether separation may be skipped, as the estimate says `from_db` or more.

    Off by default (None): every sound is separated, as the seed does.
    """
    if from_db is None:
        return False
    found = estimated_snr(waveform)
    return found is not None and found >= from_db
