"""Separation of a sound of any length, in chunks whose sources fit together again.

A separator hears a few seconds at once. It gives the voices in any order, at any level and even
upside down, anew in each chunk: put end to end, two people would swap their words every few
seconds. So neighbouring chunks overlap; each chunk's sources are brought to the level and sign at
which they add up to the sound, put into the order of the chunk before by their correlation in the
overlap, and cross-faded there. An hour streams through in the memory of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InferenceError, InvalidInputError

Wave = NDArray[np.float32]
Separate = Callable[[Wave], Wave]
"""What one chunk goes through: float32 [samples] to float32 [sources, samples]."""


@dataclass(frozen=True)
class Chunks:
    """How a long sound is cut."""

    seconds: float = 12.0  # of a chunk; a shorter sound is one chunk
    overlap: float = 2.0  # seconds that neighbours share: enough to hear who is who
    least: float = 0.1  # seconds; a shorter sound is filled up with silence for the model alone
    sources: int = 2  # that the model gives
    sample_rate: int = 16_000  # Hz

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= self.seconds / 2 or self.sources < 1:
            raise InvalidInputError(
                f"chunks are of {self.seconds:g} s with {self.overlap:g} s of overlap and of "
                f"{self.sources} sources",
                "an overlap above 0 and at most half a chunk, and a source or more",
                "correct the chunks",
            )


def separate_long(waveform: Wave, separate: Separate, chunks: Chunks | None = None) -> Wave:
    """The sources float32 [sources, samples] of `waveform` float32 [samples], at its level.

    The sources add up to the waveform as nearly as constant levels within a chunk allow.

    Raises:
        InvalidInputError: not one row of finite float32 samples.
        InferenceError: the model gave something else than sources of the chunk's length.
    """
    chunks = chunks or Chunks()
    parts = list(separate_stream([waveform], separate, chunks))
    return np.concatenate(parts, axis=1) if parts else np.zeros((chunks.sources, 0), np.float32)


def separate_stream(
    blocks: Iterable[Wave], separate: Separate, chunks: Chunks | None = None
) -> Iterator[Wave]:
    """Yields the sources of a sound that comes in blocks of any size, as soon as they are known.

    Args:
        blocks: float32 [samples] each.
        separate: the model.
        chunks: how to cut; what is kept in memory is a chunk and a block.

    Yields:
        float32 [sources, samples]; together as long as the blocks together.

    Raises:
        as `separate_long`.
    """
    c = chunks or Chunks()
    size, overlap = round(c.seconds * c.sample_rate), round(c.overlap * c.sample_rate)
    tail: Wave | None = None  # the last chunk's sources in the overlap
    for chunk, last in _cut(blocks, size, overlap):
        made = at_level(_called(separate, chunk, c), chunk)
        if tail is not None:
            made = made[list(order_of(tail, made[:, :overlap]))]
            rise = (np.arange(overlap, dtype=np.float32) + np.float32(0.5)) / np.float32(overlap)
            made[:, :overlap] = tail + rise * (made[:, :overlap] - tail)
        yield made if last else made[:, :-overlap]
        tail = made[:, -overlap:]


def at_level(sources: Wave, waveform: Wave) -> Wave:
    """The sources with the gain and sign of each at which their sum is nearest to the waveform.

    Args:
        sources: float32 [sources, samples], each at any level.
        waveform: float32 [samples].

    Returns:
        float32 [sources, samples]; of sources that cannot be told apart, equal shares.
    """
    made = sources.astype(np.float64)
    products = made @ made.T
    # brought to one scale first, so that a faint source is not taken for a copy of another
    scale = np.sqrt(np.maximum(np.diag(products), 1e-30))
    gains = np.linalg.lstsq(
        products / np.outer(scale, scale), made @ waveform.astype(np.float64) / scale, rcond=1e-6
    )[0]
    return np.asarray((gains / scale)[:, None] * made, np.float32)


def order_of(before: Wave, after: Wave) -> tuple[int, ...]:
    """For each source of `before` which one of `after` continues it; both [sources, samples].

    The order whose products sum to the most, which is the one with the least squared difference;
    the given order where both are silent.
    """
    products = before.astype(np.float64) @ after.astype(np.float64).T
    rows = range(len(before))
    return max(permutations(rows), key=lambda order: float(products[rows, order].sum()))


def _cut(blocks: Iterable[Wave], size: int, overlap: int) -> Iterator[tuple[Wave, bool]]:
    """Chunks of `size` samples, of which each begins with the `overlap` of the one before, and
    whether it is the last, which is shorter."""
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate((held, _checked(block))) if len(held) else _checked(block)
        while len(held) > size:
            yield held[:size], False
            held = held[size - overlap :]
    if len(held):
        yield held, True


def _checked(block: Wave) -> Wave:
    found = np.asarray(block)
    if found.ndim != 1 or found.dtype != np.float32 or not np.isfinite(found).all():
        finite = "" if found.dtype.kind != "f" or np.isfinite(found).all() else " with NaN or Inf"
        raise InvalidInputError(
            f"the sound is {found.dtype} {list(found.shape)}{finite}",
            "finite float32 [samples]",
            "give one channel, scaled to -1..1, its gaps as zeros",
        )
    return found


def _called(separate: Separate, chunk: Wave, c: Chunks) -> Wave:
    """What the model makes of a chunk; a chunk too short for it is filled up with silence."""
    missing = max(0, round(c.least * c.sample_rate) - len(chunk))
    made = np.asarray(separate(np.pad(chunk, (0, missing)) if missing else chunk))
    wanted = (c.sources, len(chunk) + missing)
    if made.shape != wanted or not np.isfinite(made).all():
        raise InferenceError(
            f"the separator made {made.dtype} {list(made.shape)}"
            f"{'' if np.isfinite(made).all() else ' with NaN or Inf'} of a chunk",
            f"finite float32 {list(wanted)}",
            "check that the model is a separator of as many sources",
        )
    return made[:, : len(chunk)]
