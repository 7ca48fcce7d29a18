"""A part of a recording is decoded as if it were the clip."""

from __future__ import annotations

import numpy as np
import odd_media
import pytest

from merkit.contract import Preprocessing
from merkit.errors import ClipUnreadableError
from merkit.media import decode_clip

P = Preprocessing(frames_per_clip=4)


@pytest.fixture(scope="module")
def film() -> bytes:
    """Ten seconds whose picture grows brighter by 20 and whose pitch rises with each second."""
    time = np.arange(160_000) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * 200 * (1 + np.floor(time)) * time)
    pictures = [odd_media.gray(20 * (i // 10)) for i in range(100)]
    return odd_media.movie(pictures, sound=sound[None].astype(np.float32))


@pytest.mark.parametrize("part", [(3.0, 5.0), (3.5, 4.25), (8.0, None)])
def test_frames_and_sound_are_those_of_the_part(
    film: bytes, part: tuple[float, float | None]
) -> None:
    whole, found = decode_clip(film, P), decode_clip(film, P, part=part)
    end = part[1] or 10.0
    assert found.info.duration == pytest.approx(end - part[0], abs=0.1)
    assert len(found.waveform) == pytest.approx(16_000 * (end - part[0]), abs=1500)
    first = round(16_000 * part[0])
    theirs = whole.waveform[first : first + len(found.waveform)]
    np.testing.assert_allclose(found.waveform[: len(theirs)], theirs, atol=0.05)
    levels = found.frames[:, 10, 10, 0] / 20
    seconds = part[0] + found.frame_times
    assert len(levels) == 4 and np.all(np.abs(levels - np.floor(seconds)) < 0.4)
    assert found.frame_times[0] >= 0


def test_a_long_part_gives_its_middle(film: bytes) -> None:
    p = Preprocessing(max_audio_seconds=1.0)
    found = decode_clip(film, p, part=(2.0, 6.0)).waveform
    whole = decode_clip(film, Preprocessing()).waveform
    np.testing.assert_allclose(found, whole[56_000:72_000], atol=0.05)


def test_a_part_behind_the_end_is_an_error(film: bytes) -> None:
    with pytest.raises(ClipUnreadableError):
        decode_clip(film, P, part=(11.0, None))
