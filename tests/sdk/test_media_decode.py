"""Decoding: which frames, which way up, what sound, from which containers."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from odd_media import (
    QUADRANTS,
    corners,
    gray,
    movie,
    picture,
    quadrants,
    sound_file,
    tone,
)

from merkit.contract import Preprocessing
from merkit.media import MediaInfo, decode_clip
from merkit.media.picture import orient
from merkit.media.streams import Damage, Reader, read_frames

P = Preprocessing()
COUNTING = [gray(10 * k) for k in range(24)]  # 2.4 s at 10 frames a second
MIDDLES = np.array([1, 4, 7, 10, 13, 16, 19, 22])  # the frames shown at 0.15, 0.45, ... s


def levels(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    return frames.astype(np.float64).mean(axis=(1, 2, 3)) / 10


def sine_level(waveform: NDArray[np.float32]) -> float:
    """Share of the waveform's energy at the tone's frequency; 1 for the tone alone."""
    middle = waveform[len(waveform) // 4 : -len(waveform) // 4].astype(np.float64)
    t = np.arange(len(middle)) / P.sample_rate
    found = np.abs(np.mean(middle * np.exp(-2j * np.pi * 440 * t))) ** 2
    return float(2 * found / np.mean(middle**2))


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "mp4": lambda: movie(COUNTING),
    "mp4 with one keyframe": lambda: movie(COUNTING, gop=250),
    "mp4 of 10 bits": lambda: movie(COUNTING, pixels="yuv420p10le"),
    "matroska": lambda: movie(COUNTING, container="matroska"),
    "webm": lambda: movie(COUNTING, container="webm", codec="libvpx"),
    "webm without duration": lambda: movie(
        COUNTING, container="webm", codec="libvpx", options={"live": "1"}
    ),
    "transport stream": lambda: movie(COUNTING, container="mpegts"),
    "flash": lambda: movie(COUNTING, container="flv"),
    "bare h264": lambda: movie(COUNTING, container="h264"),
    "animated png": lambda: movie(COUNTING, container="apng", codec="apng", pixels="rgb24"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_middles_of_equal_parts_are_shown(name: str) -> None:
    decoded = decode_clip(CONTAINERS[name](), P)
    np.testing.assert_allclose(levels(decoded.frames), MIDDLES, atol=0.35)
    np.testing.assert_allclose(np.diff(decoded.frame_times), 0.3, atol=0.01)
    assert decoded.waveform.shape == (0,)
    assert decoded.info.warnings == ()
    assert decoded.info.duration == pytest.approx(2.4, abs=0.11)


def test_a_slow_show_of_pictures_gives_each_once() -> None:
    clip = movie([gray(40 * k) for k in range(6)], times=[0, 0.1, 0.2, 3, 3.1, 10])
    decoded = decode_clip(clip, P)  # 10.1 s: the parts' middles see only what lasts
    np.testing.assert_allclose(decoded.frame_times, [0.2, 3.1], atol=1e-3)
    np.testing.assert_allclose(levels(decoded.frames), [8, 16], atol=0.3)


def test_a_long_clip_is_answered_with_keyframes_near_the_middles() -> None:
    clip = movie([gray(k // 2) for k in range(500)], gop=5)  # 50 s, parts of 6.25 s
    decoded = decode_clip(clip, P)
    middles = (np.arange(8) + 0.5) * 50 / 8
    assert np.all(decoded.frame_times <= middles + 0.01)
    assert np.all(decoded.frame_times >= middles - 6.25 / 8)
    with av.open(io.BytesIO(clip)) as container:
        keyframes = [frame.time for frame in container.decode(video=0) if frame.key_frame]
    assert len(keyframes) > 90
    for found in decoded.frame_times:
        assert np.abs(np.array(keyframes) - found).min() < 1e-3
    np.testing.assert_allclose(levels(decoded.frames), decoded.frame_times / 2, atol=0.3)


def test_ten_minutes_cost_little_more_than_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = {"video": 0, "audio": 0}

    def counting(reader: Reader, damage: Damage) -> Iterator[Any]:
        for frame in read_frames(reader, damage):
            decoded[reader.stream.type] += 1
            yield frame

    monkeypatch.setattr("merkit.media.frames.read_frames", counting)
    monkeypatch.setattr("merkit.media.audio.read_frames", counting)
    counts = []
    for length in (10, 600):
        clip = movie(
            [gray(k % 200, 64, 64) for k in range(length)],
            container="mov",
            rate=1,
            gop=5,
            sound=tone(length, 8_000),
            sound_codec="pcm_s16le",
            sound_rate=8_000,
        )
        decoded.update(video=0, audio=0)
        assert len(decode_clip(clip, P).frames) == P.frames_per_clip
        counts.append(dict(decoded))
    short, long = counts
    assert short["video"] >= P.frames_per_clip
    assert long["video"] <= 3 * P.frames_per_clip  # of 600
    assert long["audio"] <= 2.5 * short["audio"]  # 20 s of sound instead of 10 s


def test_leaving_out_unneeded_frames_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(120)]
    clip = movie(noise, gop=120)
    quick = decode_clip(clip, P)
    monkeypatch.setattr("merkit.media.frames.APPROACH", 1e9)
    slow = decode_clip(clip, P)
    assert np.array_equal(quick.frames, slow.frames)
    assert np.array_equal(quick.frame_times, slow.frame_times)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_metadata_turns_the_picture_upright(turn: int) -> None:
    decoded = decode_clip(movie([quadrants()] * 5, rotation=turn), P)
    upright = np.rot90(np.array(QUADRANTS).reshape(2, 2, 3), turn // 90)
    assert corners(decoded.frames[0]) == [tuple(c) for c in upright.reshape(4, 3).tolist()]
    video = decoded.info.video
    assert video is not None
    assert (video.width, video.height) == ((96, 64) if turn == 180 else (64, 96))
    assert decoded.frames.shape[1:3] == (video.height, video.width)
    assert video.rotation == -turn % 360


def test_all_eight_orientations_are_told_apart() -> None:
    image = np.arange(6).reshape(2, 3)
    matrices = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
    matrices += [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]
    seen = {orient(image, matrix).tobytes() for matrix in matrices}
    assert len(seen) == 8
    assert orient(image, (-1, 0, 0, 1)).tolist() == [[2, 1, 0], [5, 4, 3]]
    assert orient(image, (0, 1, 1, 0)).tolist() == image.T.tolist()


def test_pixels_become_square_and_large_frames_small() -> None:
    wide = decode_clip(movie([quadrants()] * 5, aspect=Fraction(2, 1)), P)
    assert wide.frames.shape[1:3] == (64, 192)
    tall = decode_clip(movie([quadrants(101, 1201)] * 3, pixels="yuv444p"), P)
    assert tall.frames.shape[1:3] == (640, 54)
    assert tall.info.video is not None
    assert (tall.info.video.width, tall.info.video.height) == (101, 1201)


IMAGES = [
    ("png", "rgb24"),
    ("png", "gray"),
    ("png", "gray16be"),
    ("mjpeg", "yuvj420p"),
    ("bmp", "bgr24"),
    ("tiff", "rgb24"),
    ("gif", "rgb8"),
    ("libwebp", "yuv420p"),
]


@pytest.mark.parametrize(("codec", "pixels"), IMAGES)
def test_an_image_is_one_frame(codec: str, pixels: str) -> None:
    decoded = decode_clip(picture(gray(77, 61, 41), codec, pixels), P)
    assert decoded.frames.shape == (1, 41, 61, 3)
    assert abs(float(decoded.frames.mean()) - 77) < 4
    assert decoded.frame_times.tolist() == [0.0]
    assert decoded.info.warnings == ()


def test_what_cannot_be_seen_is_white() -> None:
    image = np.full((20, 20, 4), 0, np.uint8)
    image[:10] = (10, 20, 30, 255)
    frame = decode_clip(picture(image, "png", "rgba"), P).frames[0]
    assert frame[5, 5].tolist() == [10, 20, 30]
    assert frame[15, 5].tolist() == [255, 255, 255]


SOUNDS = [
    ("wav", "pcm_u8", 8_000, 1, "mono"),
    ("wav", "pcm_s16le", 44_100, 2, "stereo"),
    ("wav", "pcm_s24le", 48_000, 6, "5.1"),
    ("wav", "pcm_f64le", 96_000, 2, "stereo"),
    ("flac", "flac", 44_100, 2, "stereo"),
    ("mp3", "mp3", 22_050, 1, "mono"),
    ("ogg", "libopus", 48_000, 2, "stereo"),
]


@pytest.mark.parametrize(("container", "codec", "rate", "channels", "layout"), SOUNDS)
def test_every_sound_becomes_mono_at_one_rate(
    container: str, codec: str, rate: int, channels: int, layout: str
) -> None:
    decoded = decode_clip(sound_file(tone(1.5, rate, channels), container, codec, rate, layout), P)
    assert decoded.frames.shape == (0, 1, 1, 3)
    assert len(decoded.waveform) == pytest.approx(1.5 * P.sample_rate, abs=0.1 * P.sample_rate)
    assert np.abs(decoded.waveform).max() == pytest.approx(0.5, abs=0.05)  # mixing never gains
    assert sine_level(decoded.waveform) > 0.99
    assert decoded.info.audio is not None
    assert (decoded.info.audio.sample_rate, decoded.info.audio.channels) == (rate, channels)


@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac")])
def test_of_long_sound_the_middle_is_used(container: str, codec: str) -> None:
    rising = (np.arange(16_000 * 60) / (16_000 * 60)).astype(np.float32)[None]
    decoded = decode_clip(sound_file(rising, container, codec), P)
    assert len(decoded.waveform) == P.max_audio_seconds * P.sample_rate
    np.testing.assert_allclose(decoded.waveform[[0, -1]], [20 / 60, 40 / 60], atol=1e-3)
    assert "the middle 20 s" in decoded.info.warnings[0]


def test_picture_and_sound_come_from_one_clip(tmp_path: Path) -> None:
    clip = movie(COUNTING, sound=tone(2.4, 44_100, 2), sound_rate=44_100, layout="stereo")
    path = tmp_path / "named.bin"
    path.write_bytes(clip)
    by_bytes, by_path, by_name = (decode_clip(s, P) for s in (clip, path, str(path)))
    assert sine_level(by_bytes.waveform) > 0.99
    np.testing.assert_allclose(levels(by_bytes.frames), MIDDLES, atol=0.35)
    for other in (by_path, by_name):
        assert np.array_equal(other.frames, by_bytes.frames)
        assert np.array_equal(other.waveform, by_bytes.waveform)
        assert other.info == by_bytes.info


def test_a_cover_picture_is_no_video() -> None:
    clip = movie([], container="mp3", sound=tone(1.0), sound_codec="mp3", cover=quadrants())
    decoded = decode_clip(clip, P)
    assert decoded.info.video is None
    assert len(decoded.frames) == 0
    assert "cover" in decoded.info.warnings[0]


def test_nothing_stays_behind_until_garbage_is_collected() -> None:
    clip = movie([quadrants()] * 20, sound=tone(2.0), rotation=90)
    decode_clip(clip, P)
    gc.collect()
    gc.disable()
    try:
        threads = threads_running()
        for _ in range(5):
            decode_clip(clip, P)
        assert threads_running() <= threads
        large = [o for o in gc.get_objects() if isinstance(o, av.VideoFrame) and o.width > 2]
        assert large == []
    finally:
        gc.enable()


def threads_running() -> int:
    """Of the whole process, those that libraries start included; 0 where the system hides it."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def test_info_survives_json() -> None:
    info = decode_clip(movie(COUNTING, sound=tone(2.4)), P).info
    assert MediaInfo.from_json(info.to_json()) == info
    assert MediaInfo.from_json(MediaInfo().to_json()) == MediaInfo()


def test_boxes_are_told_in_the_sources_pixels() -> None:
    info = decode_clip(picture(gray(9, 1280, 720), "png", "rgb24"), P).info
    boxes = info.in_pixels(np.array([[0.25, 0.5, 0.5, 0.25]], np.float32))
    assert boxes.tolist() == [[320, 360, 640, 180]]
    assert boxes.dtype == np.float32


def test_real_recordings(media: Path) -> None:
    speech = decode_clip(media / "jfk.flac", P)
    assert speech.info.duration == 11.0
    assert speech.waveform.shape == (176_000,)
    assert 0.3 < np.abs(speech.waveform).max() < 1.0
    talk = decode_clip(media / "single_face.mp4", P)
    assert talk.frames.shape == (8, 360, 640, 3)
    assert 2.3 < len(talk.waveform) / P.sample_rate < 2.5
    cartoon = decode_clip(media / "no_face.mp4", P)
    assert cartoon.info.video is not None
    assert (cartoon.info.video.width, cartoon.frames.shape[2]) == (960, 640)
