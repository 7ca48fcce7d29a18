"""FunASR's model folders: what lies in them, read without unpickling and written whole.

The published Paraformer and CT-Transformer come as such folders, and funasr, funasr-onnx and
sherpa-onnx read them. A folder is `config.yaml`, `tokens.json`, `model.pt` (or `model.pb`),
and for a recogniser `am.mvn`. Weights go through `checkpoints.load_into`, key by key.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit.errors import BundleCorruptError, BundleNotFoundError, MissingExtraError
from merkit.speech.vocabulary import Vocabulary
from merkit_training.checkpoints import Checkpoint
from merkit_training.runs import write_bytes

CONFIG, CMVN, TOKENS = "config.yaml", "am.mvn", "tokens.json"
WEIGHTS = ("model.pt", "model.pb")
"""Names of the weights, best first."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training leaves the weights beside its own state."""
PARALLEL = "module."
"""What data-parallel training puts before every name."""
AGAIN = "fetch the folder again"


class FunasrCheckpoint(Checkpoint):
    """The tensors of `model.pt`, by FunASR's names."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        tensors = _tensors(path)
        self._files = dict.fromkeys(tensors, path)
        self._open = (path, tensors)


@dataclass(frozen=True)
class FunasrFolder:
    """A folder; what is missing or damaged shows when it is first asked for."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.yaml.

        Raises:
            BundleNotFoundError: there is none.
            BundleCorruptError: it is no YAML table of plain values.
        """
        yaml, path = _yaml(), self.path / CONFIG
        try:
            value = yaml.safe_load(path.read_text("utf-8"))
        except OSError as error:
            raise BundleNotFoundError(
                f"{path} cannot be read ({error.strerror})",
                "a folder that FunASR published or wrote",
                "give the folder with config.yaml, tokens.json and model.pt",
            ) from None
        except (yaml.YAMLError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise BundleCorruptError(f"{path} is no plain YAML ({first})", "YAML", AGAIN) from None
        if not isinstance(value, dict):
            raise BundleCorruptError(f"{path} holds {type(value).__name__}", "a table", AGAIN)
        return value

    def table(self, name: str) -> dict[str, Any]:
        """A table of config.yaml, such as `encoder_conf`; BundleCorruptError if it is none."""
        value = self.config.get(name) or {}
        if not isinstance(value, dict):
            found = f"{name} in {self.path / CONFIG} is {type(value).__name__}"
            raise BundleCorruptError(found, "a table", AGAIN)
        return value

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens; errors as of `Vocabulary.load`."""
        return Vocabulary.load(self.path / TOKENS)

    @cached_property
    def cmvn(self) -> NDArray[np.float32]:
        """Rows `shift` and `scale` of am.mvn, float32 [2, inputs]; errors as of `read_cmvn`."""
        return read_cmvn(self.path / CMVN)

    def checkpoint(self) -> FunasrCheckpoint:
        """The weights.

        Raises:
            BundleNotFoundError: neither model.pt nor model.pb is there.
            BundleCorruptError: it is damaged, or asks for more than tensors.
        """
        for name in WEIGHTS:
            if (self.path / name).is_file():
                return FunasrCheckpoint(self.path / name)
        raise BundleNotFoundError(
            f"{self.path} holds no weights", " or ".join(WEIGHTS), "give a whole FunASR folder"
        )


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes config.yaml."""
    text = _yaml().safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    write_bytes(folder / CONFIG, text.encode())


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes model.pt."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().clone() for name, tensor in tensors.items()}, buffer)
    write_bytes(folder / WEIGHTS[0], buffer.getvalue())


def read_cmvn(path: Path) -> NDArray[np.float32]:
    """What a Kaldi network file says of normalisation: what is added, what is multiplied with.

    Raises:
        BundleNotFoundError: no such file.
        BundleCorruptError: it lacks AddShift or Rescale, or they are not as many finite numbers.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleNotFoundError(
            f"{path} cannot be read ({error})", "am.mvn beside the model", AGAIN
        ) from None
    rows = []
    for part in ("AddShift", "Rescale"):
        match = re.search(rf"<{part}>[^\[]*\[([^\]]*)\]", text)
        try:
            rows.append([float(number) for number in match[1].split()] if match else [])
        except ValueError:
            rows.append([])
    if not rows[0] or len(rows[0]) != len(rows[1]) or not np.isfinite(rows).all():
        raise BundleCorruptError(
            f"{path} has {len(rows[0])} numbers to add and {len(rows[1])} to multiply with",
            "as many finite numbers in AddShift and in Rescale",
            AGAIN,
        )
    return np.asarray(rows, np.float32)


def write_cmvn(path: Path, shift: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
    """Writes what `read_cmvn` reads; the numbers come back to the last bit."""
    width, lines = len(shift), ["<Nnet>"]
    lines += [f"<Splice> {width} {width}", "[ 0 ]"]
    for part, row in (("AddShift", shift), ("Rescale", scale)):
        numbers = " ".join(np.format_float_positional(x, trim="0") for x in row)
        lines += [f"<{part}> {width} {width}", f"<LearnRateCoef> 0 [ {numbers} ]"]
    write_bytes(path, ("\n".join([*lines, "</Nnet>"]) + "\n").encode())


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        try:
            content = torch.load(path, "cpu", weights_only=True, mmap=True)
        except RuntimeError:  # older than torch 1.6: not a zip, so it cannot be mapped
            content = torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # weights_only, zip and the file system each refuse by their own
        first = (str(error).strip() or "no message").splitlines()[0].partition(". In PyTorch")[0]
        raise BundleCorruptError(
            f"{path} cannot be read ({type(error).__name__}: {first})",
            "tensors, and nothing but tensors",
            AGAIN,
        ) from None
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(map(torch.is_tensor, content.values())):
        raise BundleCorruptError(f"{path} holds more than tensors by name", "a state dict", AGAIN)
    return {str(name).removeprefix(PARALLEL): tensor for name, tensor in content.items()}


def _yaml() -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise MissingExtraError.of("pyyaml", "train") from None
    return yaml
