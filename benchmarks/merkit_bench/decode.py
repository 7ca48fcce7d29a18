"""What decoding costs as a clip grows: ten minutes should cost little more than ten seconds.

Run: python -m merkit_bench.decode [--rounds N] [--out FILE]

Makes both clips itself (640x360 H.264 with moving noise, 44.1 kHz stereo AAC, keyframes every
2 s and every 10 s), then times `decode_clip` on each in turn. Prints a Markdown table; `--out`
also writes the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from merkit.contract import Preprocessing
from merkit.media import decode_clip
from merkit_bench.summary import machine

FRAME_RATE, SOUND_RATE = 25, 44_100
SHORT, LONG = 10, 600  # seconds
KEYFRAME_SECONDS = (2, 10)


def make_clip(path: Path, length: int, keyframe_seconds: int) -> None:
    """Writes a clip of `length` seconds: a bright square wandering over noise, and a tone."""
    import av

    random = np.random.default_rng(0)
    noise = random.integers(0, 80, (FRAME_RATE, 360, 640, 3), dtype=np.uint8)
    with av.open(str(path), "w") as out:
        options = {"preset": "ultrafast", "bf": "2", "sc_threshold": "0"}
        video: Any = out.add_stream("libx264", rate=FRAME_RATE, options=options)
        video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
        video.gop_size = keyframe_seconds * FRAME_RATE
        sound: Any = out.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(SOUND_RATE) / SOUND_RATE)
        second = np.stack([tone, tone]).astype(np.float32)
        for index in range(length * FRAME_RATE):
            image = noise[index // 5 % FRAME_RATE].copy()
            image[100:200, 2 * index % 540 :][:, :100] = 220
            out.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            if index % FRAME_RATE == 0:
                frame = av.AudioFrame.from_ndarray(second, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = SOUND_RATE, index // FRAME_RATE * SOUND_RATE
                frame.time_base = Fraction(1, SOUND_RATE)
                out.mux(sound.encode(frame))
        out.mux(video.encode())
        out.mux(sound.encode())


def measure(clips: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round, by clip, the clips in turn after one round to warm up."""
    p = Preprocessing()
    taken: dict[str, list[float]] = {name: [] for name in clips}
    for turn in range(rounds + 1):
        for name, path in clips.items():
            start = time.perf_counter()
            decoded = decode_clip(path, p)
            spent = (time.perf_counter() - start) * 1e3
            if len(decoded.frames) != p.frames_per_clip:
                raise AssertionError(f"{name}: {len(decoded.frames)} frames")
            if turn:
                taken[name].append(spent)
    return taken


def main() -> int:
    """Makes the clips, times them, prints the table."""
    parser = argparse.ArgumentParser(prog="merkit_bench.decode", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args()
    lines = ["| keyframes every | 10 s clip, p50 | 10 min clip, p50 | ratio |", "|---|---|---|---|"]
    figures: dict[str, Any] = {"about": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for every in KEYFRAME_SECONDS:
            clips = {
                f"{length} s": Path(folder) / f"{length}-{every}.mp4" for length in (SHORT, LONG)
            }
            for length, path in zip((SHORT, LONG), clips.values(), strict=True):
                print(f"making {length} s with a keyframe every {every} s", file=sys.stderr)
                make_clip(path, length, every)
            short, long = (float(np.median(ms)) for ms in measure(clips, args.rounds).values())
            figures[f"keyframe_every_{every}_s"] = {"short_ms": short, "long_ms": long}
            lines.append(f"| {every} s | {short:.0f} ms | {long:.0f} ms | {long / short:.2f} |")
    print("\n".join(lines))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
