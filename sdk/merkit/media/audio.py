"""The sound of a clip as every encoder expects it: mono, one rate, float32.

Codecs deliver any rate, layout and sample format, and a recording may last an hour. libswresample
mixes and resamples; of long sound only the middle is decoded, reached by seeking.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.media.streams import Damage, Reader, extent, read_frames, seconds

Waveform = NDArray[np.float32]
MEAN = {"rematrix_maxval": "1.0"}
"""Mixing channels never gains: without it two equal channels come out 3 dB louder, and clip."""

LEAD = 0.25
"""Seconds decoded before a part and thrown away: after a seek codecs need a block to warm up."""


def read_sound(
    reader: Reader,
    span: tuple[float, float],
    p: Preprocessing,
    damage: Damage,
    begins: float | None = None,
) -> tuple[Waveform, list[str]]:
    """Mono float32 [s] in -1..1 at `p.sample_rate`, and warnings.

    Of sound longer than `p.max_audio_seconds`, the middle.

    Args:
        reader: an audio stream at its beginning.
        span: first and last second of the stream by its header, or of the part that is wanted.
        p: sample rate and greatest length.
        damage: filled with what was passed over.
        begins: where only a part is wanted, the first second of the stream.
    """
    length, most = span[1] - span[0], p.max_audio_seconds
    warnings: list[str] = []
    if length > most:
        warnings.append(f"the sound lasts {length:.1f} s; the middle {most:g} s are used")
    waveform = _between(reader, span, p, damage, begins)
    wanted = min(length, most) * p.sample_rate
    if len(waveform) < 0.9 * wanted - p.sample_rate / 4:
        damage.cut = True
        if length > most and begins is None:  # the middle by the header lies past what is there
            waveform = _between(reader, extent(reader, Damage()), p, damage)
    bad = ~np.isfinite(waveform)
    if bad.any():
        waveform[bad] = 0.0
        warnings.append(f"{int(bad.sum())} samples of the sound were not numbers; silence instead")
    return np.clip(waveform, -1.0, 1.0), warnings


def _between(
    reader: Reader,
    span: tuple[float, float],
    p: Preprocessing,
    damage: Damage,
    begins: float | None = None,
) -> Waveform:
    """The middle of `span`, at most `p.max_audio_seconds` of it."""
    length, most = span[1] - span[0], p.max_audio_seconds
    start = span[0] + max(0.0, (length - most) / 2)
    lead = 0.0 if begins is None else LEAD
    if start > (span[0] if begins is None else begins) and not reader.seek(start - lead):
        reader.rewind()
    limit = round((most if begins is None else min(most, length)) * p.sample_rate)
    blocks: list[Waveform] = []
    have, skip = 0, None
    mixer = _Mixer(p.sample_rate)
    for frame in read_frames(reader, damage):
        if skip is None:
            at = seconds(frame.pts, frame.time_base)
            skip = 0 if at is None else max(0, round((start - at) * p.sample_rate))
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
