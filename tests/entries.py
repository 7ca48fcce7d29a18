"""Entry tensors for every mix of modalities, for tests that call a backend directly."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing

MIXES = [mix for mix in product((True, False), repeat=3) if any(mix)]
"""video, audio, text: the seven mixes of which at least one is present."""


def mix_name(mix: tuple[bool, ...]) -> str:
    """`video+text`, say, as a test's name."""
    names = ("video", "audio", "text")
    return "+".join(name for name, here in zip(names, mix, strict=True) if here)


def decoded_entry(
    mix: tuple[bool, ...] = (True, True, True),
    batch: int = 1,
    seed: int = 0,
    p: Preprocessing = Preprocessing(),  # noqa: B008
) -> dict[str, NDArray[Any]]:
    """`pipeline.DECODED_IN` with what `mix` says is there, of random content."""
    rng = np.random.default_rng(seed)
    faces, samples = (8 if mix[0] else 0), (24_000 if mix[1] else 0)
    words = [f"说话 number {k}" if mix[2] else "" for k in range(batch)]
    shape = (batch, faces, p.face_size, p.face_size, 3)
    return {
        "face_crops": rng.integers(0, 256, shape, np.uint8),
        "face_count": np.full((batch, 1), faces, np.int64),
        "waveform": (0.1 * rng.normal(size=(batch, samples))).astype(np.float32),
        "waveform_length": np.full((batch, 1), samples, np.int64),
        "text": np.array([[text] for text in words], dtype=np.object_),
    }


def tritons_feed(
    requests: list[dict[str, NDArray[Any]]], values: str, length: str
) -> dict[str, NDArray[Any]]:
    """What Triton's ONNX Runtime backend makes of a ragged input and its length: every value that
    was sent, padding too, in one dimension; BATCH_ITEM_SHAPE; BATCH_MAX_ELEMENT_COUNT_AS_SHAPE."""
    shapes = [[r[values].shape[1]] for r in requests for _ in r[values]]
    return {
        values: np.concatenate([r[values].reshape(-1) for r in requests]),
        length: np.concatenate([r[length] for r in requests]),
        f"{values}_widths": np.array(shapes, np.int32),
        f"{values}_span": np.empty(max(r[values].size for r in requests), np.int32),
    }
