"""A clip as an encoder wants it, and what of it is missing, each in the words of the report.

Silent, faceless and wordless clips are ordinary in the field. An encoder must neither crash on
them nor quietly describe a black frame, so what is there is decided here, once for all encoders.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.faces import HaarDetector
from merkit.media import Decoded, no_clip
from merkit_training.data import ClipRecord
from merkit_training.data.evidence import (
    CROWDED,
    CountingDetector,
    decode_record,
    faces_in,
    is_audible,
    level,
)

NO_PICTURE, NO_FACE = "no video", "no face"
SEVERAL = "several faces; the one seen longest is read"
NO_SOUND, SILENT = "no sound", "silent or too short"
NO_WORDS = "empty transcript"


@dataclass(frozen=True)
class Material:
    """What an encoder reads of a clip; what it does not read, or is not there, is empty."""

    images: NDArray[np.uint8]  # [n, h, w, 3] RGB in time order: face crops, or whole pictures
    waveform: NDArray[np.float32]  # [samples], -1..1
    text: str
    problems: tuple[str, ...]

    @property
    def present(self) -> frozenset[str]:
        """The modalities that are there."""
        found = (("video", len(self.images)), ("audio", len(self.waveform)), ("text", self.text))
        return frozenset(name for name, content in found if content)


def read_material(
    clip: ClipRecord, reads: Collection[str], pictures: bool, p: Preprocessing
) -> Material:
    """Decodes what an encoder reads of a clip; safe to call from several threads.

    Args:
        clip: what to read.
        reads: modalities of `contract.MODALITIES`.
        pictures: whole pictures in place of the speaker's face.
        p: how to decode, find faces and tell silence.

    Raises:
        InputError: the clip cannot be decoded.
    """
    empty = np.zeros((0, 1, 1, 3), np.uint8)
    images, waveform, text = empty, np.zeros(0, np.float32), ""
    problems: list[str] = []
    sees, hears = "video" in reads, "audio" in reads
    given = sees and not pictures and clip.faces is not None
    decoded = no_clip()
    if hears or (sees and not given):
        # who only listens is spared all pictures but one
        decoded = decode_record(clip, p if sees else replace(p, frames_per_clip=1))
        problems += decoded.info.warnings
    if sees:
        images, missing = _seen(clip, decoded, pictures, p)
        problems += missing
    if hears:
        waveform, missing = _heard(decoded, p)
        problems += missing
    if "text" in reads:
        text = clip.text.strip()
        problems += [] if text else [NO_WORDS]
    return Material(images, waveform, text, tuple(problems))


def _seen(
    clip: ClipRecord, decoded: Decoded, pictures: bool, p: Preprocessing
) -> tuple[NDArray[np.uint8], list[str]]:
    if pictures or clip.faces is None:
        if not len(decoded.frames):
            return decoded.frames, [NO_PICTURE]
        if pictures:
            return decoded.frames, []
    detector = CountingDetector(HaarDetector())
    crops = faces_in(clip, decoded, p, detector).crops
    if not len(crops):
        return crops, [NO_FACE]
    return crops, [SEVERAL] if detector.crowded >= CROWDED else []


def _heard(decoded: Decoded, p: Preprocessing) -> tuple[NDArray[np.float32], list[str]]:
    """The waveform unless it is absent by the contract's rule: too short, or too quiet."""
    wave, none = decoded.waveform, np.zeros(0, np.float32)
    if not len(wave):
        return none, [NO_SOUND]
    if not is_audible(wave, p):
        return none, [f"{SILENT} ({len(wave) / p.sample_rate:.2f} s at {level(wave):.0f} dBFS)"]
    return wave, []
