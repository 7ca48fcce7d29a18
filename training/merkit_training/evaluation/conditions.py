"""What is done to a clip to see when a model fails: noise, babble, blur, missing modalities.

A single score on clean clips says nothing about a kitchen, a cheap camera or a clip without
sound. Each condition here has a level at which it changes nothing, so that every curve starts at
the score without it, and draws what it draws from the clip's own seed, so that the levels of a
curve differ in nothing but the level.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import strings
from merkit.contract import MODALITIES, Preprocessing
from merkit_training.synth.speech import babble, mix

Kind = Literal["clean", "noise", "babble", "blur", "only"]
SNRS = (20.0, 10.0, 5.0, 0.0)  # dB; MER-NOISE has 5 to 10
BLURS = (2, 4, 8)  # the picture is halved log2 of this often, then doubled again; MER-NOISE: 1-4
RATES = (0.1, 0.25, 0.5, 0.75)  # chance of each modality of a clip to be missing
TALKERS = 5
"""Other clips whose sound makes the babble behind one."""
CLEAN_SNR, CLEAN_BLUR = float("inf"), 1
"""Levels that change nothing."""


@dataclass(frozen=True)
class Condition:
    """One way of changing a clip. `level`: dB, or how many times the picture is halved and
    doubled; `keep`: the modalities that stay."""

    kind: Kind
    level: float = 0.0
    keep: tuple[str, ...] = MODALITIES

    @property
    def key(self) -> str:
        """Its name in caches and reports, such as `babble:5` or `only:audio+text`."""
        if self.kind == "only":
            return f"only:{'+'.join(self.keep)}"
        return self.kind if self.kind == "clean" else f"{self.kind}:{self.level:g}"


CLEAN = Condition("clean")


def patterns(modalities: Sequence[str]) -> tuple[Condition, ...]:
    """Every pattern of present modalities, from all to one."""
    return tuple(
        Condition("only", keep=keep)
        for count in range(len(modalities), 0, -1)
        for keep in combinations(modalities, count)
    )


PATTERNS = patterns(MODALITIES)
"""The seven patterns of present modalities, from all to one."""
NOISES = tuple(Condition("noise", snr) for snr in SNRS)
BABBLES = tuple(Condition("babble", snr) for snr in SNRS)
BLURRED = tuple(Condition("blur", factor) for factor in BLURS)


@dataclass(frozen=True)
class Material:
    """A clip as decoded, with its faces found in the picture at every blur.

    Attributes:
        crops: by blur factor, uint8 [f, side, side, 3]; 1 is the picture as it is.
        waveform: float32 [s].
        text: the words.
    """

    crops: Mapping[int, NDArray[np.uint8]]
    waveform: NDArray[np.float32]
    text: str


def effective(condition: Condition, present: Sequence[str]) -> Condition | None:
    """The condition as it meets a clip that holds `present`: CLEAN where it changes nothing,
    None where nothing is left to judge."""
    if condition.kind == "only":
        keep = tuple(m for m in condition.keep if m in present)
        if not keep:
            return None
        return CLEAN if set(keep) == set(present) else Condition("only", keep=keep)
    touched = "video" if condition.kind == "blur" else "audio"
    return CLEAN if condition.kind == "clean" or touched not in present else condition


def tensors_under(
    condition: Condition,
    material: Material,
    p: Preprocessing,
    seed: Sequence[int],
    others: Sequence[NDArray[np.float32]] = (),
) -> dict[str, NDArray[Any]]:
    """`pipeline.DECODED_IN` of one clip under a condition.

    Args:
        condition: what is done to it.
        material: the clip.
        p: the contract's constants.
        seed: of the noise; the same for all levels.
        others: waveforms of other clips, for babble.
    """
    crops, waveform, text = material.crops[CLEAN_BLUR], material.waveform, material.text
    if condition.kind == "blur":
        crops = material.crops[int(condition.level)]
    elif condition.kind in ("noise", "babble") and condition.level < CLEAN_SNR and len(waveform):
        rng = np.random.default_rng(seed)
        if condition.kind == "noise":
            noise = pink(len(waveform), rng)
        else:
            noise = babble(list(others), len(waveform), rng)
        waveform = mix(waveform, noise, condition.level)
    elif condition.kind == "only":
        crops = crops if "video" in condition.keep else crops[:0]
        waveform = waveform if "audio" in condition.keep else waveform[:0]
        text = text if "text" in condition.keep else ""
    blank = np.zeros((0, p.face_size, p.face_size, 3), np.uint8)
    return {
        "face_crops": (crops if len(crops) else blank)[None],
        "face_count": np.array([[len(crops)]], np.int64),
        "waveform": waveform[None],
        "waveform_length": np.array([[len(waveform)]], np.int64),
        "text": strings(text),
    }


def seed_of(seed: int, name: str, kind: str) -> tuple[int, int, int]:
    """The seed of a clip's noise, whatever other clips there are."""
    return seed, zlib.crc32(name.encode()), zlib.crc32(kind.encode())


def talkers(seed: int, name: str, names: Sequence[str]) -> tuple[str, ...]:
    """The other clips that babble behind this one; none where there are too few."""
    others = sorted(set(names) - {name})
    if len(others) < 2:
        return ()
    rng = np.random.default_rng(seed_of(seed, name, "talkers"))
    chosen = rng.choice(len(others), min(TALKERS, len(others)), replace=False)
    return tuple(others[i] for i in chosen.tolist())


def pink(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise whose power falls by 3 dB an octave, as that of rooms and engines does, [size]."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), size).astype(
        np.float32
    )


def blurred(frames: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Frames [n, h, w, 3], halved and doubled by image pyramids (MER-NOISE's recipe)."""
    if factor <= CLEAN_BLUR or not len(frames):
        return frames
    return np.stack([_blurred(frame, factor) for frame in frames])


def _blurred(picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    import cv2

    sizes: list[tuple[int, int]] = []
    for _ in range(factor.bit_length() - 1):
        sizes.append((picture.shape[1], picture.shape[0]))
        picture = cv2.pyrDown(picture)
    for size in reversed(sizes):
        picture = cv2.pyrUp(picture, dstsize=size)
    return picture


def missing(present: NDArray[np.bool_], rate: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which modalities stay of each clip, [n, 3], if each goes missing with chance `rate` and at
    least one of a clip stays (what is drawn without any is drawn again)."""
    kept = np.zeros_like(present)
    empty = present.any(axis=1)
    while empty.any():
        kept[empty] = present[empty] & (rng.random((int(empty.sum()), present.shape[1])) >= rate)
        empty = present.any(axis=1) & ~kept.any(axis=1)
    return kept


def patterns_of(present: Sequence[str]) -> Iterator[Condition]:
    """The patterns that differ for a clip that holds `present`, without the whole."""
    found = {effective(pattern, present) for pattern in PATTERNS}
    yield from sorted((c for c in found if c and c != CLEAN), key=lambda c: c.key)
