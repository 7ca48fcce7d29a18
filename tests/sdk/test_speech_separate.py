"""Long sounds come apart as short ones do: one order, one level, no seams, little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
from numpy.typing import NDArray

from merkit.errors import InferenceError, InvalidInputError
from merkit.speech.separate import (
    Chunks,
    Wave,
    at_level,
    order_of,
    separate_long,
    separate_stream,
)

RATE = 16_000
SHORT = Chunks(seconds=1.0, overlap=0.25)


def voices(samples: int, seed: int = 0) -> NDArray[np.float32]:
    """Two unlike sounds, the second at half the level."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.standard_normal(samples), rng.laplace(size=samples) / 2]).astype(
        np.float32
    ) * np.float32(0.1)


class Oracle:
    """Knows the sources by the place at which a chunk stands; muddles order, level and sign."""

    def __init__(self, sources: Wave, seed: int = 0) -> None:
        self.sources, self.mixture = sources, sources.sum(0)
        self.rng, self.sizes, self.swapped = np.random.default_rng(seed), [], 0
        self.begin = 0

    def __call__(self, chunk: Wave) -> Wave:
        size = len(chunk)
        starts = range(self.begin, len(self.mixture) - size + 1)
        self.begin = next(s for s in starts if self.mixture[s] == chunk[0])
        self.sizes.append(size)
        made = self.sources[:, self.begin : self.begin + size]
        if self.rng.random() < 0.5:
            made, self.swapped = made[::-1], self.swapped + 1
        return made * self.rng.choice([-3.0, 0.01, 20.0], (2, 1)).astype(np.float32)


def test_chunks_keep_order_level_and_sign() -> None:
    sources = voices(round(7.3 * RATE))
    oracle = Oracle(sources)
    found = separate_long(sources.sum(0), oracle, SHORT)
    assert 0 < oracle.swapped < len(oracle.sizes) == 10  # else nothing was to be put right
    found = found if np.allclose(found[0], sources[0], atol=1e-2) else found[::-1]
    np.testing.assert_allclose(found, sources, atol=2e-3)


@pytest.mark.parametrize("block", [1, 777, RATE, 3 * RATE, 10 * RATE])
def test_blocks_of_any_size_give_the_same(block: int) -> None:
    samples = round((0.3 if block == 1 else 4.6) * RATE)
    waveform = voices(samples).sum(0)
    blocks = [waveform[i : i + block] for i in range(0, samples, block)]
    streamed = np.concatenate(list(separate_stream(blocks, _halves, SHORT)), axis=1)
    np.testing.assert_array_equal(streamed, separate_long(waveform, _halves, SHORT))
    np.testing.assert_allclose(streamed.sum(0), waveform, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 7, 160, RATE - 1, RATE, RATE + 1, 2 * RATE - 4000, 40_000])
def test_sources_are_as_long_as_the_sound_and_add_up_to_it(samples: int) -> None:
    waveform = voices(samples).sum(0)
    found = separate_long(waveform, _halves, SHORT)
    assert found.shape == (2, samples) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(0), waveform, atol=1e-4)


def test_no_sound_gives_no_sources_and_silence_silence() -> None:
    assert separate_long(np.zeros(0, np.float32), _halves).shape == (2, 0)
    assert not separate_long(np.zeros(40_000, np.float32), _halves, SHORT).any()


def test_an_hour_streams_in_the_memory_of_a_chunk() -> None:
    def hour() -> Iterator[Wave]:
        rng = np.random.default_rng(0)
        second = rng.standard_normal(RATE).astype(np.float32)
        return (second for _ in range(3600))

    tracemalloc.start()
    counter, total = count(), 0
    for part in separate_stream(hour(), lambda chunk: np.stack([chunk, chunk]), Chunks()):
        total += part.shape[1]
        next(counter)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (total, next(counter)) == (3600 * RATE, 360)
    assert peak < 30 * 2**20  # a chunk of 12 s as float64, twice, and what lstsq needs


def test_a_chunk_is_never_shorter_for_the_model_than_it_can_hear() -> None:
    sizes = []

    def model(chunk: Wave) -> Wave:
        sizes.append(len(chunk))
        return np.stack([chunk, 0 * chunk])

    found = separate_long(np.ones(160, np.float32), model)
    assert sizes == [1600] and found.shape == (2, 160)


def test_levels_are_those_at_which_sources_add_up() -> None:
    sources = voices(RATE)
    scaled = sources * np.float32([[-1e-4], [50.0]])
    np.testing.assert_allclose(at_level(scaled, sources.sum(0)), sources, atol=1e-3)


def test_sources_that_cannot_be_told_apart_share_the_sound() -> None:
    wave = voices(RATE)[0]
    np.testing.assert_allclose(
        at_level(np.stack([wave, 4 * wave]), wave), [wave / 2] * 2, atol=1e-6
    )
    found = at_level(np.stack([wave, 0 * wave]), wave)
    np.testing.assert_allclose(found, [wave, 0 * wave], atol=1e-6)


def test_the_order_is_the_one_that_continues() -> None:
    sources = voices(4000)
    three = np.stack([*sources, np.sin(np.arange(4000)).astype(np.float32)])
    assert order_of(three, three[[2, 0, 1]]) == (1, 2, 0)
    assert order_of(0 * sources, sources) == (0, 1)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 9), np.float32), np.zeros(9), np.float32([0, np.nan]), np.int16([1])]
)
def test_what_is_no_sound_is_refused(wrong: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidInputError, match="float32"):
        separate_long(wrong, _halves)


def test_what_are_no_sources_is_refused() -> None:
    wave = voices(RATE)[0]
    with pytest.raises(InferenceError, match=r"\[3, 16000\]"):
        separate_long(wave, lambda chunk: np.stack([chunk] * 3))
    with pytest.raises(InferenceError, match="NaN"):
        separate_long(wave, lambda chunk: np.full((2, len(chunk)), np.nan, np.float32))


@pytest.mark.parametrize(("seconds", "overlap"), [(1.0, 0.0), (1.0, 0.6), (0.0, 0.0)])
def test_impossible_chunks_are_refused(seconds: float, overlap: float) -> None:
    with pytest.raises(InvalidInputError, match="overlap"):
        Chunks(seconds=seconds, overlap=overlap)


def _halves(chunk: Wave) -> Wave:
    """Low and high differences: two sources that add up to the chunk, at twice their level."""
    late = np.concatenate(([0], chunk[:-1])).astype(np.float32)
    return np.stack([chunk + late, chunk - late])
