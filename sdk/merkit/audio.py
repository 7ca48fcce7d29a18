"""The sound of a clip as every encoder expects it: mono, one rate, float32.

Codecs deliver any rate, layout and sample format, and a recording may last an hour. libswresample
mixes and resamples; of long sound only the middle is decoded, reached by seeking.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.streams import Damage, read_frames, seconds

Waveform = NDArray[np.float32]
MEAN = {"rematrix_maxval": "1.0"}
"""Mixing channels never gains: without it two equal channels come out 3 dB louder, and clip."""


def read_sound(
    container: Any, stream: Any, span: tuple[float, float], p: Preprocessing, damage: Damage
) -> tuple[Waveform, list[str]]:
    """Mono float32 [s] in -1..1 at `p.sample_rate`, and warnings.

    Of sound longer than `p.max_audio_seconds`, the middle.

    Args:
        container: an open container, positioned anywhere.
        stream: one of its audio streams.
        span: first and last second of the stream by its header.
        p: sample rate and greatest length.
        damage: filled with what was passed over.
    """
    length = span[1] - span[0]
    warnings: list[str] = []
    start = span[0]
    if length > p.max_audio_seconds:
        start = span[0] + (length - p.max_audio_seconds) / 2
        used = f"the middle {p.max_audio_seconds:g} s are used"
        warnings.append(f"the sound lasts {length:.1f} s; {used}")
    wanted = round(min(length, p.max_audio_seconds) * p.sample_rate)
    _rewind(container, stream, start if start > span[0] else None)
    waveform = _resampled(container, stream, start, p, damage)
    if start > span[0] and len(waveform) < wanted // 2:  # the header promised more than there is
        damage.cut = True
        _rewind(container, stream, None)
        waveform = _resampled(container, stream, span[0], p, damage)
    elif len(waveform) < 0.9 * wanted - p.sample_rate / 4:
        damage.cut = True
    bad = ~np.isfinite(waveform)
    if bad.any():
        waveform[bad] = 0.0
        warnings.append(f"{int(bad.sum())} samples of the sound were not numbers; silence instead")
    return np.clip(waveform, -1.0, 1.0), warnings


def _rewind(container: Any, stream: Any, start: float | None) -> None:
    import av

    try:
        first = min(stream.start_time or 0, 0)
        offset = first if start is None else int(start / stream.time_base)
        container.seek(offset, stream=stream, backward=True)
    except (av.FFmpegError, ValueError, OSError):
        return  # a format without an index is read from where it stands: the beginning


def _resampled(
    container: Any, stream: Any, start: float, p: Preprocessing, damage: Damage
) -> Waveform:
    """From second `start` on, at most `p.max_audio_seconds`."""
    limit = round(p.max_audio_seconds * p.sample_rate)
    blocks: list[Waveform] = []
    have, skip = 0, None
    mixer = _Mixer(p.sample_rate)
    for frame in read_frames(container, stream, damage):
        if skip is None:
            at = seconds(frame.pts, frame.time_base)
            skip = max(0, round((start - at) * p.sample_rate)) if at is not None else 0
        for block in mixer.feed(frame):
            blocks.append(block)
            have += len(block)
        if have - skip >= limit:
            break
    else:
        blocks += mixer.flush()
    if skip is None or not blocks:
        return np.zeros(0, np.float32)
    return np.concatenate(blocks)[skip : skip + limit].astype(np.float32)


class _Mixer:
    """A resampler that starts anew where the stream changes its rate, layout or format."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.resampler: Any = None
        self.shape: tuple[Any, ...] = ()

    def feed(self, frame: Any) -> list[Waveform]:
        import av

        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        blocks: list[Waveform] = []
        if shape != self.shape:
            blocks = self.flush()
            self.resampler = av.AudioResampler("flt", "mono", self.rate, options=MEAN)
            self.shape = shape
        frame.pts = None
        return blocks + _arrays(self.resampler.resample(frame))

    def flush(self) -> list[Waveform]:
        return [] if self.resampler is None else _arrays(self.resampler.resample(None))


def _arrays(frames: list[Any]) -> list[Waveform]:
    return [frame.to_ndarray().reshape(-1) for frame in frames]
