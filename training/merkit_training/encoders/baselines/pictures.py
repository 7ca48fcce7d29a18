"""Published encoders of pictures and of short videos.

    vision  each picture by itself: the embedding that it shares with words where the model has
            one (CLIP's, 768 wide at the large size), else the mean over all tokens of the last
            layer, as MERTools takes it; the clip's feature is the mean over its pictures.
    video   runs of as many pictures as the model was trained on, spread evenly over the clip; the
            mean over all tokens of the last layer; the clip's feature is the mean over its runs.

Nothing is padded: pictures of several clips lie side by side in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.encoders.baselines.checkpoint import SUPPORTED, Opened, processor
from merkit_training.features.extractor import Extractor, Feature
from merkit_training.features.material import Material

PICTURE_MARGIN = 2
"""Whole pictures are decoded to this many times the model's side, for the processor to crop."""


class PictureBaseline(Extractor):
    """A model of pictures or of runs of them; see the module."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.processor = processor(opened, "AutoImageProcessor", backend="pil")
        side = _side(self.processor)
        # pictures of one run; 0: each picture by itself
        self.run = int(opened.config.num_frames) if opened.kind == "video" else 0
        p = Preprocessing()
        self.preprocessing = replace(
            p,
            frames_per_clip=opened.spec.images or max(self.run, p.frames_per_clip),
            face_size=side,
            max_frame_side=PICTURE_MARGIN * side,
        )
        self.name, self.identity = opened.name, opened.identity
        self.pictures = opened.spec.pictures
        self.reads = frozenset({"video"})
        self.width = self._probe(side)

    def length(self, material: Material) -> int:  # noqa: ARG002
        """All clips are alike: nothing is padded."""
        return 1

    @torch.inference_mode()
    def encode(self, materials: Sequence[Material], frames: bool) -> list[Feature | None]:
        """See Extractor."""
        units = [self._units(m.images) for m in materials]
        flat = [unit for own in units for unit in own]
        read = self._features(self._values(flat)).float().cpu().numpy()
        ends = np.cumsum([len(own) for own in units])
        made: list[Feature | None] = []
        for series in np.split(np.asarray(read, np.float32), ends[:-1]):
            made.append(Feature(series.mean(axis=0), series if frames else None))
        return made

    def _units(self, images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """What the model takes at a time: pictures, or runs of pictures [run, h, w, 3]."""
        if not self.run:
            return list(images)
        count = max(1, len(images) // self.run)
        parts = np.array_split(np.arange(len(images)), count)
        spread = ((np.arange(self.run) + 0.5) / self.run)[None]
        return [images[part[(spread[0] * len(part)).astype(int)]] for part in parts]

    def _values(self, units: Sequence[NDArray[np.uint8]]) -> Tensor:
        given: Any = [list(unit) for unit in units] if self.run else list(units)
        values: Tensor = self.processor(given, return_tensors="pt")["pixel_values"]
        return self.opened.send(values)

    def _features(self, values: Tensor) -> Tensor:
        model = self.opened.model
        if not self.run and hasattr(model, "get_image_features"):
            shared = model.get_image_features(pixel_values=values)
            pooled: Tensor = shared if isinstance(shared, Tensor) else shared.pooler_output
            return pooled
        last: Tensor = model(pixel_values=values).last_hidden_state
        # [n, tokens, width] of transformers, [n, width, rows, columns] of convolutions
        return last.mean(dim=1) if last.ndim == 3 else last.flatten(2).mean(dim=2)

    @torch.inference_mode()
    def _probe(self, side: int) -> int:
        """The width, found by a try that shows whether the model can be used so."""
        picture = np.zeros((max(1, self.run), side, side, 3), np.uint8)
        try:
            values = self._values(self._units(picture))
            first, second = self._features(values), self._features(values)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InvalidInputError(
                f"{self.name} gives no feature of a picture ({type(error).__name__})",
                SUPPORTED,
                "choose another model",
            ) from None
        if first.ndim != 2 or not torch.equal(first, second):
            raise InvalidInputError(
                f"{self.name} gives other numbers each time, or one for each place",
                "one feature of a picture, always the same",
                "choose another model; a masked autoencoder hides other patches each time",
            )
        return int(first.shape[1])


def _side(read: Any) -> int:
    """The side of the square that the model sees, in pixels."""
    for size in (getattr(read, "crop_size", None), getattr(read, "size", None)):
        value = getattr(size, "height", None) or getattr(size, "shortest_edge", None)
        if value:
            return int(value)
    raise InvalidInputError(
        "preprocessor_config.json states no size", "crop_size or size", "correct the file"
    )
