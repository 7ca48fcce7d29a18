"""Warm-up samples: what a server runs before it says that it is ready.

Whatever comes first pays for loading codecs, growing arenas and choosing kernels, shape by shape;
without samples that is somebody's request. Triton runs a step on the files beside it, so here
clips are taken as far as each step's inputs: at the corners of what may come (the shortest, a
usual one, the longest), each alone and as a full batch. Encoders need not run for that: what they
make is of one shape, and stood for by numbers.
"""

from __future__ import annotations

import io
import json
import struct
import wave
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import DTYPES, strings
from merkit.backends.sessions import CPU, open_session
from merkit.bundle import Bundle
from merkit.contract import Contract, StepSpec, TensorSpec
from merkit.errors import ClipNotFoundError
from merkit.ort import import_onnxruntime
from merkit.presence import empty
from merkit.serving.batching import can_batch
from merkit.speech.punctuate import split_words
from merkit.speech.quality import assess

Arrays = dict[str, NDArray[Any]]
USUAL_SECONDS = 3.0
WORDS = "well, this is it"
TOKENS_PER_SECOND = 8  # of fast speech
HEIGHT, WIDTH = 360, 640  # of generated frames, in pixels


def make_samples(bundle: Bundle, clips: Sequence[Path] = ()) -> dict[str, Arrays]:
    """For clips at the corners, by name, every tensor that a step of the pipeline reads.

    Args:
        bundle: the pipeline.
        clips: media to make them of; none: generated sound and pictures.

    Raises:
        InputError: a clip cannot be read.
        MissingExtraError: onnxruntime, tokenizers, or a codec is not installed.
    """
    p = bundle.contract.preprocessing
    most = round(p.max_audio_seconds * p.sample_rate)
    least = round(p.min_audio_seconds * p.sample_rate)
    usual = [_decoded(bundle.contract, clip) for clip in clips] or [_generated(bundle.contract)]
    first = usual[0]
    whole = np.tile(first["waveform"], -(-most // max(first["waveform"].shape[1], 1)))
    faces = first["face_crops"]
    cut = {
        "shortest": _shaped(first, whole[:, : least + 1], faces[:, :1], "well"),
        "longest": _shaped(
            first,
            whole[:, :most],
            np.repeat(faces, p.frames_per_clip, axis=1)[:, : p.frames_per_clip],
            f"{WORDS} " * p.max_text_tokens,
        ),
    }
    for number, clip in enumerate(usual, start=1):
        cut["usual" if number == 1 else f"usual_{number}"] = {**clip, "text": strings(WORDS)}
    return {corner: _walked(bundle, values) for corner, values in cut.items()}


def warm_up(
    contract: Contract, step: StepSpec, config: Mapping[str, Any], samples: Mapping[str, Arrays]
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The `model_warmup` of a step's config, and the files that it names.

    Args:
        contract: the pipeline.
        step: one of its steps.
        config: its `max_batch_size` and `input`, as rendered.
        samples: what `make_samples` made.
    """
    most = int(config["max_batch_size"])
    sizes = sorted({1, most or 1}) if can_batch(contract, step) else [1]  # others run one by one
    varies = any(isinstance(n, str) for t in step.inputs for n in contract.tensors[t].shape[1:])
    corners = [c for c in samples if varies or c == "usual"]
    types = {tensor["name"]: tensor["data_type"] for tensor in config["input"]}
    entries, files = [], {}
    for corner in corners:
        inputs = {}
        for name in step.inputs:
            value, file = samples[corner][name], f"{corner}.{name}"
            files[file] = _raw(value)
            shape = value.shape[1:] if most else value.shape
            inputs[name] = {
                "data_type": types[name],
                "dims": list(shape) or [1],
                "input_data_file": file,
            }
        for size in sizes:
            entries.append({"name": f"{corner} x{size}", "batch_size": size, "inputs": inputs})
    return entries, files


def _raw(value: NDArray[Any]) -> bytes:
    """A tensor as Triton reads it from a file: little-endian; strings after their lengths."""
    if value.dtype != np.object_:
        return np.ascontiguousarray(value).tobytes()
    texts = [str(text).encode("utf-8") for text in value.flat]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _shaped(clip: Arrays, sound: NDArray[Any], faces: NDArray[Any], text: str) -> Arrays:
    return {
        **clip,
        "waveform": sound,
        "waveform_length": np.array([[sound.shape[1]]], np.int64),
        "face_crops": faces,
        "face_count": np.array([[faces.shape[1]]], np.int64),
        "text": strings(text.strip()),
    }


def _generated(contract: Contract) -> Arrays:
    """A voice-like hum, and frames and faces of noise."""
    p, rng = contract.preprocessing, np.random.default_rng(0)
    time = np.arange(round(USUAL_SECONDS * p.sample_rate)) / p.sample_rate
    hum = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 9))
    sound = (0.1 * hum * np.sin(2 * np.pi * 2 * time) ** 2).astype(np.float32)
    size = min(p.max_frame_side, WIDTH)
    frames = (1, p.frames_per_clip, size * HEIGHT // WIDTH, size, 3)
    crops = (1, p.frames_per_clip, p.face_size, p.face_size, 3)
    times = np.linspace(0, USUAL_SECONDS, p.frames_per_clip, endpoint=False, dtype=np.float32)
    made: Arrays = {
        "clip": np.frombuffer(_wav(sound, p.sample_rate), np.uint8)[None],
        "frames": rng.integers(0, 256, frames, np.uint8),
        "frame_times": times[None],
        "face_crops": rng.integers(0, 256, crops, np.uint8),
    }
    return _shaped(made, sound[None], made["face_crops"], WORDS)


def _wav(sound: NDArray[np.float32], rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((32767 * sound.clip(-1, 1)).astype("<i2").tobytes())
    return file.getvalue()


def _decoded(contract: Contract, clip: Path) -> Arrays:
    """A real clip, with generated tensors in place of what it does not hold."""
    from merkit.faces import find_faces
    from merkit.media import decode_clip

    p, made = contract.preprocessing, _generated(contract)
    decoded = decode_clip(clip, p)
    try:
        made["clip"] = np.frombuffer(clip.read_bytes(), np.uint8)[None]
    except FileNotFoundError:
        raise ClipNotFoundError.at(clip) from None
    if len(decoded.frames):
        made |= {"frames": decoded.frames[None], "frame_times": decoded.frame_times[None]}
    faces = find_faces(decoded.frames, decoded.frame_times, p)
    crops = faces.crops[None] if len(faces) else made["face_crops"]
    sound = decoded.waveform[None] if len(decoded.waveform) else made["waveform"]
    return _shaped(made, sound, crops, WORDS)


def _walked(bundle: Bundle, given: Arrays) -> Arrays:
    """`given` and what the steps before the encoders make of it; numbers for all the rest."""
    from merkit.steps import REGISTRY

    contract, values = bundle.contract, _listened(bundle.contract, given)
    read = {name for step in contract.steps for name in step.inputs}
    stood_for: set[str] = set()
    for step in contract.steps:
        if read.intersection(step.outputs) <= values.keys():
            continue
        if step.needs or set(step.inputs) & stood_for:
            stood_for |= set(step.outputs)
            values |= {n: _numbers(contract.tensors[n]) for n in step.outputs}
        elif step.kind == "python":
            run = REGISTRY[step.name](contract, bundle.resources(step.name))
            values |= {n: v for n, v in run(values).items() if n not in values}
        else:
            values |= open_session(import_onnxruntime(), bundle, step, [CPU], 1)(values)
    return values


def _listened(contract: Contract, given: Arrays) -> Arrays:
    """`given`, and where the pipeline hears, the sound on its way to be recognised: graphs must
    meet sounds as long as may come, whatever the clip at hand says."""
    if contract.hearing is None:
        return dict(given)
    sound, length, text = given["waveform"], given["waveform_length"], given["text"]
    words = np.array([[len(split_words(str(text[0, 0])))]], np.int64)
    places = 1 + int(length[0, 0] * TOKENS_PER_SECOND // contract.preprocessing.sample_rate)
    made = {
        **given,
        "text": strings(""),
        "speech": sound,
        "speech_length": length,
        "mixture_length": length,
        "quality": strings(json.dumps(asdict(assess(sound[0])), allow_nan=False)),
        "sources": np.repeat(sound[:, None] / np.float32(2), 2, axis=1),
        "transcript": text,
        "word_ids": np.zeros((1, max(1, words[0, 0])), np.int64),
        "word_count": words,
        "cleaned": sound,
    }
    sizes = {"said": places, "words_said": max(1, int(words[0, 0]))}
    for name in {"token_logs", "token_count", "mark_scores"} & contract.tensors.keys():
        spec = contract.tensors[name]
        shape = [1, *(size if isinstance(size, int) else sizes[size] for size in spec.shape[1:])]
        made[name] = np.zeros(shape, DTYPES[spec.dtype])
    made["token_count"] += places
    made["token_logs"] -= np.float32(np.log(made["token_logs"].shape[-1]))
    return {n: value for n, value in made.items() if n in contract.tensors}


def _numbers(spec: TensorSpec) -> NDArray[Any]:
    value = empty(spec, 1)
    if spec.dtype != "float32":
        return value
    return np.random.default_rng(0).random(value.shape, np.float32)
