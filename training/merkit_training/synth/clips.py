"""Talking clips: a face, a voice and a sentence from one latent draw, muxed to a real mp4.

Everything downstream (decoding, face detection, synchrony) is only exercised by files such as a
user has. The truth about each clip is returned beside it.
"""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from merkit_training.labels import MER6
from merkit_training.synth.faces import Identity, Pixels, View, random_view, render
from merkit_training.synth.model import (
    CATEGORIES,
    CLIP_STRENGTHS,
    EVIDENCE,
    MER2023_SEMI,
    MER2023_TRAIN,
    PROSODY,
    UNITS,
    Draw,
    Floats,
    draw,
    prior,
)
from merkit_training.synth.performance import (
    Performance,
    blink,
    frame_units,
    loudness,
    perform,
    sway,
)
from merkit_training.synth.sentences import compose
from merkit_training.synth.sets import Source
from merkit_training.synth.speech import RATE, Wave, babble, mix, speak, voice

AAC_FRAME = 1024
REPEATABLE = {"threads": "1", "mbtree": "0"}
"""Of libx264: its macroblock tree reads memory that it has not written, so the bytes of a video
depended on what the process had freed before. glibc's MALLOC_PERTURB_ shows it."""
SNRS = range(5, 11)  # dB, MER-NOISE
BLURS = (1, 2, 4)  # the picture is halved log2 of this often, then doubled again


def clip_prior(split: str) -> Floats:
    """Class prior of a split of clips: MER2023's, or for `test_semi` its shifted one."""
    return prior(MER2023_SEMI if split == "test_semi" else MER2023_TRAIN)


def make_clip(source: Source, index: int, folder: Path) -> dict[str, Any]:
    """Writes `folder`/NAME.mp4 and returns its truth, a row for truth.jsonl."""
    config, split = source.config, source.pool.removeprefix("clips/")
    rng = source.stream(index)
    drawn = draw(rng, clip_prior(split), CLIP_STRENGTHS, config.composite_share)
    who, speaker, language = source.person(rng), source.speaker(rng), source.language(rng)
    sentence = compose(rng, drawn.category, language, source.pool)
    wave = speak(sentence.text, language, speaker, drawn.tone, rng)
    how = perform(rng, config.brief_share)
    side = config.frame_size
    view = random_view(rng, side, side / 160 * rng.uniform(0.9, 1.05), 0.025 * side)
    noise = {}
    heard, blur = wave, 1
    if split == "test_noise":
        snr, blur = int(rng.choice(SNRS)), int(rng.choice(BLURS))
        heard = mix(wave, _babble(source, language, wave.size, rng), snr)
        noise = {"snr": snr, "blur": blur}
    frames = film(who, how, drawn.face, view, wave, config.fps, side)
    name = f"{split}_{index:05d}"
    write_mp4(folder / f"{name}.mp4", [_blurred(f, blur) for f in frames], config.fps, heard)
    people = {"identity": who.number, "voice": speaker.number, "variant": speaker.variant}
    words = {"language": language, "text": sentence.text, "category": CATEGORIES[drawn.category]}
    return {
        "name": name,
        **describe(drawn),
        **people,
        **words,
        "seconds": round(wave.size / RATE, 4),
        "performance": asdict(how),
        "noise": noise,
    }


def describe(drawn: Draw) -> dict[str, Any]:
    """A draw as plain values; `read_draw` reads them back."""
    shown = zip(EVIDENCE, drawn.strengths, drawn.shown, strict=True)
    return {
        "discrete": MER6[drawn.label],
        "subset": drawn.subset,
        "composite": drawn.composite,
        "evidence": {m: {"strength": s, "shows": MER6[c]} for m, s, c in shown},
        "face": dict(zip(UNITS, drawn.face.round(6).tolist(), strict=True)),
        "prosody": dict(zip(PROSODY, drawn.tone.round(6).tolist(), strict=True)),
    }


def read_draw(truth: dict[str, Any]) -> Draw:
    """The draw behind a row of truth.jsonl."""
    evidence = [truth["evidence"][m] for m in EVIDENCE]
    shown = [MER6.index(e["shows"]) for e in evidence]
    return Draw(
        MER6.index(truth["discrete"]),
        truth["composite"],
        (evidence[0]["strength"], evidence[1]["strength"], evidence[2]["strength"]),
        (shown[0], shown[1], shown[2]),
        np.array([truth["face"][u] for u in UNITS]),
        np.array([truth["prosody"][p] for p in PROSODY]),
        CATEGORIES.index(truth["category"]),
    )


def film(
    who: Identity, how: Performance, apex: Floats, view: View, wave: Wave, fps: int, side: int
) -> list[Pixels]:
    """The frames of a clip, uint8 [side, side, 3] RGB each, in time with the voice."""
    seconds = wave.size / RATE
    times = np.arange(int(np.ceil(seconds * fps))) / fps
    voiced = loudness(wave, RATE, times)
    frames = []
    for time, loud in zip(times / seconds, voiced, strict=True):
        units = frame_units(how, apex, float(time), float(loud))
        seen = sway(how, view, float(time), seconds)
        frames.append(render(who, units, blink(how, float(time), seconds), seen, side))
    return frames


def write_mp4(path: Path, frames: list[Pixels], fps: int, wave: Wave) -> None:
    """Muxes H.264 and AAC (16 kHz mono) into `path`, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with av.open(str(temporary), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=fps)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        video.options = {"preset": "veryfast", "crf": "22", "g": str(fps), **REPEATABLE}
        audio = container.add_stream("aac", rate=RATE)
        audio.layout = "mono"
        audio.bit_rate = 48_000
        for number, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        for start in range(0, wave.size, AAC_FRAME):
            block = wave[None, start : start + AAC_FRAME].astype(np.float32)
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "fltp", "mono")
            sound.sample_rate, sound.pts = RATE, start
            sound.time_base = Fraction(1, RATE)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    temporary.replace(path)


def _babble(source: Source, language: str, size: int, rng: np.random.Generator) -> Wave:
    """Three talkers that belong to no pool, about nothing in particular."""
    talkers = []
    for _ in range(3):
        text = compose(rng, 0, language, source.pool).text
        number = 900_000 + int(rng.integers(1000))
        who, calm = voice(number, source.config.seed), np.zeros(len(PROSODY))
        talkers.append(speak(text, language, who, calm, rng))
    return babble(talkers, size, rng)


def _blurred(picture: Pixels, factor: int) -> Pixels:
    sizes = []
    for _ in range(factor.bit_length() - 1):
        sizes.append(picture.shape[1::-1])
        picture = cv2.pyrDown(picture)
    for size in reversed(sizes):
        picture = cv2.pyrUp(picture, dstsize=size)
    return picture
