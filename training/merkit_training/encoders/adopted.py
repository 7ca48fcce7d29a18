"""An encoder that came as an ONNX file: somebody else's, taken into a run as it is.

A fusion can only be trained on the features that the bundle will compute. So a foreign encoder
becomes a step of a run, and this module runs its file, clip by clip and pooled in numpy: slow,
plain, and independent of the graph that the exporter makes of it, which is proven against it.

    RUN/<step>/adopted.json  RUN/<step>/model.onnx (and its external data)  RUN/<step>/card.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit.ort import import_onnxruntime
from merkit_training.runs import read_json
from merkit_training.settings import from_table

ADOPTED, GRAPH = "adopted.json", "model.onnx"
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
WHOLE = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
Pool = Literal["mean", "cls", "last"]
"""How positions become one feature: their mean, the first (a class token), or the last."""


@dataclass(frozen=True)
class AdoptedConfig:
    """How a foreign graph is fed and pooled."""

    kind: str = ""  # what its makers call the architecture, such as "hubert"
    reads: str = "input_values"  # the graph's input for sound, ids or pictures
    beside: tuple[str, ...] = ()  # its other inputs: attention_mask, token_type_ids, position_ids
    states: tuple[str, ...] = ("last_hidden_state",)  # layers [clips, time, width], averaged
    pool: Pool = "mean"  # of the positions
    hidden: int = 0  # width of the feature
    least: int = 1  # values of a clip; a shorter one is filled up with zeros
    before: tuple[int, ...] = ()  # ids that precede the text's
    after: tuple[int, ...] = ()  # ids that follow them
    scale: tuple[float, ...] = ()  # of each colour: what it expects is scale * ours + shift
    shift: tuple[float, ...] = ()
    side: int = 0  # of its pictures, in pixels; 0: as the contract's


class AdoptedEncoder(nn.Module):
    """The step, run from its file.

    Raises:
        BundleCorruptError: ONNX Runtime cannot load the file.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, config: AdoptedConfig, path: Path) -> None:
        super().__init__()
        self.config, self.path = config, path
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has exceptions of its own
            raise BundleCorruptError(
                f"{path} cannot be loaded ({str(error).splitlines()[0]})",
                "the ONNX file that was adopted",
                "adopt the encoder again: merkit-export adopt",
            ) from None
        self._types = {node.name: node.type for node in self._session.get_inputs()}

    def forward(self, values: Tensor, length: Tensor | None = None) -> Tensor:
        """Features [batch, hidden]; zeros for a clip of no length.

        Args:
            values: as the contract's: sound [batch, samples], ids [batch, tokens], both right
                padded, or pictures [batch, 3, side, side].
            length: int64 [batch, 1] of sound and ids; pictures have none.
        """
        array = values.detach().cpu().numpy()
        if length is None:
            return torch.from_numpy(self._pictures(array))
        rows = zip(array, length.clamp(min=0).flatten().tolist(), strict=True)
        made = [self._row(row[:count]) for row, count in rows]
        return torch.from_numpy(np.stack(made)) if made else torch.zeros(0, self.config.hidden)

    def frames(self, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Refuses: the file is run for whole clips."""
        raise InvalidInputError(
            f"features over time of the adopted encoder {self.path.parent.name}",
            "features of whole clips",
            "leave features over time out",
        )

    def _row(self, row: NDArray[Any]) -> NDArray[np.float32]:
        config = self.config
        if not len(row):
            return np.zeros(config.hidden, np.float32)
        filled = np.pad(row, (0, max(config.least - len(row), 0)))
        whole = np.concatenate([config.before, filled, config.after]).astype(row.dtype)
        return np.asarray(self._run(whole[None])[0], np.float32)

    def _pictures(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        config = self.config
        if config.scale:
            scale, shift = (
                np.array(v, np.float32)[:, None, None] for v in (config.scale, config.shift)
            )
            pictures = pictures * scale + shift
        if config.side and config.side != pictures.shape[-1]:
            size = (config.side, config.side)
            pictures = nn.functional.interpolate(
                torch.from_numpy(pictures), size, mode="bilinear", align_corners=False
            ).numpy()
        return self._run(pictures)

    def _run(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """[n, hidden] of what the graph reads, [n, ...], without padding."""
        given = {self.config.reads: values} | {
            name: _beside(name, values.shape[:2]) for name in self.config.beside
        }
        feed = {
            name: value.astype((FLOATS | WHOLE)[self._types[name]]) for name, value in given.items()
        }
        layers = self._session.run(list(self.config.states), feed)
        states = np.mean([layer.astype(np.float32) for layer in layers], axis=0)
        if self.config.pool == "mean":
            return np.asarray(states.mean(axis=1), np.float32)
        return np.asarray(states[:, 0 if self.config.pool == "cls" else -1], np.float32)


def _beside(name: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
    if name == "attention_mask":
        return np.ones(shape, np.int64)
    if name == "position_ids":
        return np.broadcast_to(np.arange(shape[1]), shape).copy()
    return np.zeros(shape, np.int64)


def is_adopted(run: Path, step: str) -> bool:
    """Whether a run has this step from elsewhere."""
    return (run / step / ADOPTED).is_file()


def load(run: Path, step: str) -> AdoptedEncoder:
    """The adopted step of a run.

    Raises BundleCorruptError.
    """
    folder = run / step
    config = from_table(AdoptedConfig, read_json(folder / ADOPTED), str(folder / ADOPTED))
    return AdoptedEncoder(config, folder / GRAPH)
