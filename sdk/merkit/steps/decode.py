"""The step `decode`: a clip's bytes become frames, a waveform and a description.

One clip at a time: clips of different size cannot share an array without padding every one to
the largest, and decoding gains nothing from a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from merkit.contract import Contract
from merkit.errors import InvalidInputError
from merkit.faces import Faces
from merkit.media import Decoded, decode_clip, no_clip
from merkit.media.limits import Limits
from merkit.steps.base import Array, column, take
from merkit.steps.faces import face_tensors


class Decode:
    """`clip` uint8 [1,n] -> `frames`, `frame_times`, `waveform`, `waveform_length`, `media_info`.

    n = 0 stands for no clip (words alone) and gives arrays of zero length. Raises what
    `decode_clip` raises, and InvalidInputError for a batch of more than one.
    """

    name: ClassVar[str] = "decode"

    def __init__(
        self,
        contract: Contract,
        resources: Path | None = None,  # noqa: ARG002
        limits: Limits | None = None,
    ) -> None:
        self.contract = contract
        self.limits = limits or Limits()

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """See Step."""
        (clip,) = take(tensors, self.contract, "clip")
        if len(clip) != 1:
            raise InvalidInputError(
                f"a batch of {len(clip)} clips", "one clip", "send each clip in its own request"
            )
        data = clip[0].tobytes()
        p = self.contract.preprocessing
        decoded = decode_clip(data, p, self.limits) if data else no_clip()
        return {
            "frames": decoded.frames[None],
            "frame_times": decoded.frame_times[None],
            **_sound_and_info(decoded),
        }


def decoded_tensors(decoded: Decoded, faces: Faces, text: str = "") -> dict[str, Array]:
    """`pipeline.DECODED_IN` and `pipeline.DETAIL` of one clip, batch first.

    For callers that decode themselves: the embedded client, an edge device, training.
    """
    return {
        **face_tensors([faces]),
        **_sound_and_info(decoded),
        "text": np.array([[text]], dtype=np.object_),
    }


def _sound_and_info(decoded: Decoded) -> dict[str, Array]:
    return {
        "waveform": decoded.waveform[None],
        "waveform_length": column([len(decoded.waveform)]),
        "media_info": np.array([[decoded.info.to_json()]], dtype=np.object_),
    }
