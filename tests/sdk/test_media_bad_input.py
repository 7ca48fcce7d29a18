"""What is no clip gives one typed error; what is half a clip gives that half and says so."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_media import float_wav, gray, movie, picture, png_header, quick_start, sound_file, tone

from merkit.contract import Preprocessing
from merkit.errors import (
    ClipLimitError,
    ClipNotFoundError,
    ClipUnreadableError,
    InputError,
    InvalidInputError,
)
from merkit.media import MediaInfo, decode_clip
from merkit.media.limits import Limits, image_size

P = Preprocessing()
CLIP = movie([gray(k) for k in range(0, 200, 8)], sound=tone(2.5))
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n%s\n#EXT-X-ENDLIST\n"
SUBTITLES = b"1\n00:00:01,000 --> 00:00:02,000\nhello\n\n" * 4

NO_CLIPS = {
    "empty": b"",
    "text": b"Dear diary, today nothing moved.\n" * 50,
    "zeros": bytes(5000),
    "ansi art": b"\x1b[2J\x1b[1;31mHello\x1b[0m" * 40,
    "subtitles alone": SUBTITLES,
    "sound of no length": float_wav(np.zeros(0, np.float32)),
    "an mp4 without its index": movie([gray(9)] * 20)[:-400],
    "an image header alone": png_header(100, 100),
    "an image of no size": png_header(0, 0),
}


@pytest.mark.parametrize("name", NO_CLIPS)
def test_no_clip_is_unreadable(name: str, tmp_path: Path) -> None:
    renamed = tmp_path / "clip.mp4"
    renamed.write_bytes(NO_CLIPS[name])
    for source in (NO_CLIPS[name], renamed):
        with pytest.raises(ClipUnreadableError) as caught:
            decode_clip(source, P)
        assert caught.value.found
        assert caught.value.expected
        assert caught.value.action


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ClipNotFoundError, match=r"missing\.mp4"):
        decode_clip(tmp_path / "missing.mp4", P)
    with pytest.raises(ClipNotFoundError, match="https://example"):
        decode_clip("https://example.org/clip.mp4", P)
    with pytest.raises(ClipUnreadableError, match="not a file"):
        decode_clip(tmp_path, P)
    with pytest.raises(InvalidInputError, match="NoneType"):
        decode_clip(None, P)  # type: ignore[arg-type]


def test_a_clip_opens_no_other_file(tmp_path: Path) -> None:
    real = tmp_path / "real.mp4"
    real.write_bytes(CLIP)
    concat = f"ffconcat version 1.0\nfile '{real}'\n".encode()
    for playlist in (PLAYLIST % str(real).encode(), PLAYLIST % real.as_uri().encode(), concat):
        listed = tmp_path / "list.m3u8"
        listed.write_bytes(playlist)
        for source in (playlist, listed):
            with pytest.raises(ClipUnreadableError):
                decode_clip(source, P)


LIMITS = [
    (CLIP, Limits(max_seconds=2), "lasts 2.5 s"),
    (CLIP, Limits(max_bytes=100), "bytes"),
    (CLIP, Limits(max_pixels=100), "96 x 64"),
    (CLIP, Limits(max_streams=1), "2 streams"),
    (png_header(50_000, 50_000), Limits(), "50000 x 50000"),
    (sound_file(tone(3), "ogg", "libopus", 48_000), Limits(max_seconds=0.5), "lasts"),
    (
        movie([gray(9)] * 30, container="webm", codec="libvpx", options={"live": "1"}),
        Limits(max_seconds=2),
        "lasts 3.0 s",
    ),
]


@pytest.mark.parametrize(("clip", "limits", "found"), LIMITS)
def test_more_than_the_limits_is_refused(clip: bytes, limits: Limits, found: str) -> None:
    with pytest.raises(ClipLimitError, match=found):
        decode_clip(clip, P, limits)


def understated(clip: bytes, seconds: int) -> bytes:
    """The mp4 with another duration in the headers of the movie and of its streams."""
    forged = bytearray(clip)
    for box in (b"mvhd", b"mdhd", b"tkhd"):
        at = forged.find(box)
        while at >= 0:
            scale = at + 16 if box != b"tkhd" else forged.find(b"mvhd") + 16
            (ticks,) = struct.unpack_from(">I", forged, scale)
            struct.pack_into(">I", forged, at + (24 if box == b"tkhd" else 20), ticks * seconds)
            at = forged.find(box, at + 4)
    at = forged.find(b"elst")
    while at >= 0:  # an edit list would cut the rest off: there is none now
        forged[at : at + 4] = b"free"
        at = forged.find(b"elst", at + 4)
    return bytes(forged)


@pytest.mark.parametrize(
    "clip",
    [movie([gray(9)] * 60), movie([], sound=tone(6.0)), movie([gray(9)] * 60, sound=tone(6.0))],
    ids=["picture", "sound", "both"],
)
def test_a_header_that_states_less_than_there_is_does_not_pass_the_limit(clip: bytes) -> None:
    forged = understated(clip, 1)
    with av.open(io.BytesIO(forged)) as container:
        stream = container.streams[0]
        assert stream.duration * stream.time_base == 1
    with pytest.raises(ClipLimitError, match="at most 2 s"):
        decode_clip(forged, P, Limits(max_seconds=2))


def test_packets_are_counted_where_nothing_but_a_header_tells_the_length() -> None:
    sound = bytearray(sound_file(tone(6.0), "flac", "flac"))
    stated = int.from_bytes(sound[18:26], "big")  # STREAMINFO: rate, layout, then 36 bits of length
    sound[18:26] = (stated >> 36 << 36 | 16_000).to_bytes(8, "big")
    assert decode_clip(bytes(sound), P).info.duration == 1.0
    with pytest.raises(ClipLimitError, match="at most 2 s"):
        decode_clip(bytes(sound), P, Limits(max_seconds=2))


def test_a_huge_image_is_refused_before_a_codec_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the image reached FFmpeg")

    monkeypatch.setattr("av.open", opened)
    with pytest.raises(ClipLimitError):
        decode_clip(png_header(50_000, 50_000), P)


SIZED = ["png", "mjpeg", "gif", "bmp", "libwebp"]


@pytest.mark.parametrize("codec", SIZED)
def test_image_sizes_are_read_from_headers(codec: str) -> None:
    pixels = {"mjpeg": "yuvj420p", "gif": "rgb8", "bmp": "bgr24", "libwebp": "yuv420p"}
    image = picture(gray(9, 61, 41), codec, pixels.get(codec, "rgb24"))
    assert image_size(image) == (61, 41)
    for length in range(30):
        assert image_size(image[:length]) in (None, (61, 41))


def test_sizes_of_the_other_webp_kinds() -> None:
    extended = b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0\0\0\0\0" + b"\x0f\x27\0" + b"\x1f\x4e\0"
    assert image_size(extended) == (10_000, 20_000)
    lossless = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", 99 | 49 << 14)
    assert image_size(lossless) == (100, 50)
    assert image_size(b"plain text") is None


@pytest.mark.parametrize("share", [0.85, 0.5, 0.2])
def test_of_a_truncated_clip_what_is_there_is_used(share: float, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(100)]
    whole = quick_start(movie(noise, sound=tone(10)), tmp_path)
    decoded = decode_clip(whole[: int(len(whole) * share)], P)
    assert len(decoded.frames) == 8
    assert share * 5 < decoded.frame_times[-1] < share * 11
    assert len(decoded.waveform) / P.sample_rate == pytest.approx(10 * share, abs=2)
    assert any("truncated" in warning for warning in decoded.info.warnings)


@pytest.mark.parametrize(
    "clip",
    [
        sound_file(tone(10), "flac", "flac"),
        sound_file(tone(60), "flac", "flac"),
        sound_file(tone(60), "wav", "pcm_s16le"),
    ],
    ids=["flac", "long flac", "long wav"],
)
def test_of_truncated_sound_what_is_there_is_used(clip: bytes) -> None:
    decoded = decode_clip(clip[: len(clip) // 4], P)
    assert len(decoded.waveform) > P.sample_rate
    assert np.abs(decoded.waveform).max() > 0.4
    assert any("truncated" in warning for warning in decoded.info.warnings)


def test_half_an_image_is_half_an_image(media: Path) -> None:
    data = (media / "single_face.jpg").read_bytes()
    decoded = decode_clip(data[: len(data) // 2], P)
    assert decoded.frames.shape == (1, 562, 572, 3)
    assert any("truncated" in warning for warning in decoded.info.warnings)


def test_samples_that_are_no_numbers_become_silence() -> None:
    samples = tone(1.0)[0].copy()
    samples[100:110], samples[500], samples[600] = np.nan, np.inf, 1e30
    decoded = decode_clip(float_wav(samples), P)
    assert np.isfinite(decoded.waveform).all()
    assert np.abs(decoded.waveform).max() <= 1.0
    assert decoded.waveform[100:110].tolist() == [0.0] * 10
    assert any("not numbers" in warning for warning in decoded.info.warnings)


def test_nothing_is_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    broken = bytearray(CLIP)
    broken[2000:2400] = bytes(400)
    for clip in (CLIP, bytes(broken), CLIP[:-500], *NO_CLIPS.values()):
        try:
            decode_clip(clip, P)
        except InputError:
            continue
    out, err = capfd.readouterr()
    assert (out, err, caplog.text) == ("", "", "")
    assert list(tmp_path.iterdir()) == []


STARTS = [CLIP, float_wav(tone(0.2)[0]), picture(gray(50), "png", "rgb24"), SUBTITLES]
STARTS.append(movie([gray(9)] * 5, container="matroska"))


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    start=st.sampled_from(STARTS),
    cut=st.floats(0, 1),
    noise=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=20),
)
def test_damage_gives_arrays_or_a_typed_error(
    start: bytes, cut: float, noise: list[tuple[float, int]]
) -> None:
    data = bytearray(start[: int(len(start) * cut)])
    for place, value in noise:
        if data:
            data[int(place * len(data))] = value
    try:
        decoded: Any = decode_clip(bytes(data), P)
    except InputError:
        return
    assert len(decoded.frames) == len(decoded.frame_times) <= P.frames_per_clip
    assert len(decoded.waveform) <= P.max_audio_seconds * P.sample_rate
    assert np.isfinite(decoded.waveform).all()
    assert np.isfinite(decoded.frame_times).all()
    assert (np.diff(decoded.frame_times) > 0).all()


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_a_typed_error_or_a_clip(data: bytes) -> None:
    try:
        decode_clip(data, P)
    except InputError as error:
        assert error.found


def test_a_malformed_description_is_refused() -> None:
    for text in ("", "[]", "{}", '{"video": 3, "audio": null, "warnings": []}'):
        with pytest.raises(InvalidInputError):
            MediaInfo.from_json(text)


def test_a_named_colour_profile_does_not_bring_the_process_down(tmp_path: Path) -> None:
    """PyAV frees the profile's name twice, at the next garbage collection; hence a process."""
    plain = picture(gray(120), "png", "rgb24")
    body = b"iCCP" + b"sRGB\0\0" + zlib.compress(bytes(200))
    profile = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path = tmp_path / "profile.png"
    path.write_bytes(plain[:33] + profile + plain[33:])  # after the header chunk
    code = (
        "import gc, sys; from merkit.contract import Preprocessing\n"
        "from merkit.media import decode_clip\n"
        "print(decode_clip(sys.argv[1], Preprocessing()).frames.shape); gc.collect()"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "(1, 64, 96, 3)"), done.stderr
