"""What decoding costs as a clip grows: ten minutes should cost little more than ten seconds.

Run: python -m merkit_bench.decode [--rounds N] [--out FILE]

Makes both clips itself (640x360 H.264 with moving noise, 44.1 kHz stereo AAC, keyframes every
2 s and every 10 s), then times `decode_clip` on the two in turn. Prints a Markdown table of CPU
times; `--out` also writes the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
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


def make_short(path: Path, keyframe_seconds: int) -> None:
    """Writes `SHORT` seconds: a bright square wandering over noise, and a tone."""
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
        for index in range(SHORT * FRAME_RATE):
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


def make_long(path: Path, short: Path) -> None:
    """Writes `LONG` seconds: the short clip again and again, without encoding it anew."""
    import av

    with av.open(str(path), "w") as out:
        streams: dict[int, Any] = {}
        for turn in range(LONG // SHORT):
            with av.open(str(short)) as source:
                for stream in source.streams:
                    if stream.index not in streams:
                        streams[stream.index] = out.add_stream_from_template(stream)
                for packet in source.demux():
                    if packet.pts is None or packet.dts is None or packet.time_base is None:
                        continue
                    shift = round(turn * SHORT / packet.time_base)
                    inside = 0 <= packet.pts * packet.time_base < SHORT
                    if packet.stream.type == "audio" and not inside:
                        continue  # the coder's lead-in would overlap with the turn before
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)


def measure(clips: tuple[Path, Path], rounds: int) -> tuple[float, float]:
    """Median milliseconds of CPU for each clip, the two in turn after one round to warm up.

    CPU time, not the clock's: decoding is one thread, and a busy machine stretches the clock.
    """
    p = Preprocessing()
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for path, spent in zip(clips, taken, strict=True):
            start = time.thread_time()
            decoded = decode_clip(path, p)
            spent.append((time.thread_time() - start) * 1e3)
            if len(decoded.frames) != p.frames_per_clip:
                raise AssertionError(f"{path.name}: {len(decoded.frames)} frames")
    return float(np.median(taken[0][1:])), float(np.median(taken[1][1:]))


def every_frame(path: Path) -> float:
    """Seconds of CPU for decoding the whole video, without sound or conversion to RGB."""
    import av

    start = time.thread_time()
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        count = sum(1 for _ in container.decode(video=0))
    if count != LONG * FRAME_RATE:
        raise AssertionError(f"{count} frames")
    return time.thread_time() - start


def main() -> int:
    """Makes the clips, times them, prints the table."""
    parser = argparse.ArgumentParser(prog="merkit_bench.decode", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args()
    head = ("keyframes every", "10 s clip", "10 min clip", "ratio", "10 min, every frame")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|"]
    figures: dict[str, Any] = {"about": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for every in KEYFRAME_SECONDS:
            clips = Path(folder) / f"short-{every}.mp4", Path(folder) / f"long-{every}.mp4"
            make_short(clips[0], every)
            make_long(clips[1], clips[0])
            short, long = measure(clips, args.rounds)
            whole = every_frame(clips[1])
            row = {"short_ms": short, "long_ms": long, "every_frame_s": whole}
            figures[f"keyframe_every_{every}_s"] = row
            times = f"{short:.0f} ms | {long:.0f} ms | {long / short:.2f} | {whole:.1f} s"
            lines.append(f"| {every} s | {times} |")
    print("\n".join(lines))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
