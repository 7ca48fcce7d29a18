"""Each clip is decoded once and kept on disk until every condition has been tried on it.

Decoding and finding faces cost more than most models do, and a report asks each clip some twenty
times. Kept in memory, a few thousand clips would fill it; so they lie in a spool beside the
report, which is removed when the report is written: it holds faces and voices.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.errors import InferenceError, MerkitError
from merkit.faces import Faces
from merkit.media import Decoded
from merkit.steps import decoded_tensors
from merkit_training.data import ClipRecord
from merkit_training.data.evidence import decode_record, faces_in
from merkit_training.evaluation.conditions import CLEAN_BLUR, Material, blurred


@dataclass(frozen=True)
class Seen:
    """A decoded clip with its faces, and the tensors that a backend takes and details of them."""

    decoded: Decoded
    faces: Faces
    tensors: dict[str, NDArray[Any]]  # pipeline.DECODED_IN and pipeline.DETAIL


def look(record: ClipRecord, p: Preprocessing) -> Seen:
    """Decodes a clip and finds the speaker's face; InputError if it cannot be read."""
    decoded = decode_record(record, p)
    try:
        faces = faces_in(record, decoded, p)
    except (MerkitError, MemoryError):
        raise
    except Exception as error:  # OpenCV has errors of its own
        raise InferenceError.of("finding faces", error) from error
    return Seen(decoded, faces, decoded_tensors(decoded, faces, record.text))


def material_of(
    record: ClipRecord, p: Preprocessing, seen: Seen, blurs: Sequence[int] = ()
) -> Material:
    """The clip for all conditions. Blur hits the sampled frames before faces are looked for, as it
    would in a camera; faces that were cut out by another tool are blurred themselves."""
    crops = {CLEAN_BLUR: seen.faces.crops}
    for factor in blurs:
        if record.faces is not None:
            crops[factor] = blurred(seen.faces.crops, factor)
        else:
            frames = blurred(seen.decoded.frames, factor)
            soft = Decoded(
                frames, seen.decoded.frame_times, seen.decoded.waveform, seen.decoded.info
            )
            crops[factor] = faces_in(record, soft, p).crops
    return Material(crops, seen.decoded.waveform, record.text)


class Spool:
    """Materials on disk, one file a clip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, name: str, stamp: str, material: Material) -> None:
        """Writes a clip's material, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = {
            f"crops_{factor}": array for factor, array in material.crops.items()
        }
        arrays |= {"stamp": np.array(stamp), "text": np.array(material.text)}
        path = self._path(name)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, waveform=material.waveform, **arrays)
        temporary.replace(path)

    def find(self, name: str, stamp: str) -> Material | None:
        """What `keep` wrote of this very clip; None if that is not there."""
        try:
            with np.load(self._path(name), allow_pickle=False) as found:
                if str(found["stamp"]) != stamp:
                    return None
                crops = {
                    int(key.removeprefix("crops_")): found[key]
                    for key in found.files
                    if key.startswith("crops_")
                }
                return Material(crops, found["waveform"], str(found["text"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def remove(self) -> None:
        """Deletes everything, and the folder."""
        for path in self.folder.glob("*"):
            path.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"
