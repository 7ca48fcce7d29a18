"""Official checkpoints, read a tensor at a time and matched to our modules key by key.

`load_state_dict(strict=False)` turns a misspelt key into an encoder at random weights that trains
and deploys without a word. Here each key of the file must have a place, each weight of the module
must have a source, and what does not fit is named with the shape found and the shape expected.

A checkpoint is a folder as Hugging Face writes it: `config.json` beside `model.safetensors`,
sharded `model-00001-of-00002.safetensors` with an index, or the same as `pytorch_model*.bin`.
The `.bin` files are read with `weights_only=True`: nothing is unpickled but tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from merkit.errors import (
    BundleCorruptError,
    BundleNotFoundError,
    InvalidInputError,
    MissingExtraError,
)

FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file, best first; `<file>.index.json` beside shards stands for each."""
HUB_SMALL = ("*.json", "*.txt", "*.model", "*.tiktoken")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Part = slice | Callable[[Tensor], Tensor]
"""What of a checkpoint's tensor goes to a key: rows (a slice of the first axis), or a function."""
Target = str | Sequence[tuple[str, Part]] | None
Rename = Callable[[str], Target]


@dataclass(frozen=True)
class LoadReport:
    """What became of each name."""

    loaded: tuple[str, ...]  # weights of the module that now come from the checkpoint
    unused: tuple[str, ...]  # tensors of the checkpoint that `rename` set aside
    initial: tuple[str, ...]  # optional weights of the module that kept their initial values


class Checkpoint:
    """A folder of weights; `open_checkpoint` makes one.

    Attributes:
        folder: where it lies, for tokenisers and preprocessor files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _weight_map(folder)
        self._open: tuple[Path, Any] | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            BundleNotFoundError: there is none.
            BundleCorruptError: it is no JSON object.
        """
        return _json_object(self.folder / "config.json")

    def names(self) -> tuple[str, ...]:
        """The names of all tensors, as the checkpoint spells them."""
        return tuple(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it where the format allows."""
        reader = self._reader(name)
        if isinstance(reader, Mapping):
            return tuple(reader[name].shape)
        return tuple(reader.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the checkpoint's own number format.

        Raises:
            InvalidInputError: no such name.
            BundleCorruptError: its file is missing or damaged.
        """
        reader = self._reader(name)
        value: Tensor = reader[name] if isinstance(reader, Mapping) else reader.get_tensor(name)
        return value

    def _reader(self, name: str) -> Any:
        """What holds `name`: an open safetensors file, or the mapping of a .bin."""
        if name not in self._files:
            raise InvalidInputError(f"{self.folder} has no tensor {name!r}", "one of its names")
        path = self._files[name]
        if self._open is None or self._open[0] != path:
            self._open = None  # lets go of the last shard before the next is opened
            self._open = (path, _read(path))
        reader = self._open[1]
        if name not in reader.keys():  # noqa: SIM118  (safe_open is no mapping)
            raise BundleCorruptError(f"{path} lacks {name!r}, which the index places there")
        return reader


def open_checkpoint(source: str, *, hub: bool = False) -> Checkpoint:
    """The checkpoint in a local folder, or of a hub when `hub` is true.

    Args:
        source: a folder, or an id such as "facebook/vit-mae-base".
        hub: whether an id that is no folder may be fetched (or found in the hub's local cache).

    Raises:
        BundleNotFoundError: no such folder or id, or no weights in it.
        BundleCorruptError: an index that cannot be read or names files outside the folder.
        MissingExtraError: `hub` without the package huggingface_hub.
    """
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return Checkpoint(folder)
    if hub and HUB_ID.fullmatch(source):
        return Checkpoint(_fetch(source))
    raise BundleNotFoundError(
        f"there is no checkpoint folder {source!r}",
        f"a folder with config.json and {' or '.join(FILES)}",
        "correct the recipe's `checkpoint`; ids of a hub need `hub = true` in its [run] table",
    )


def load_into(
    module: nn.Module,
    checkpoint: Checkpoint,
    rename: Rename,
    *,
    optional: Collection[str] = (),
) -> LoadReport:
    """Copies a checkpoint's tensors into `module`, each into its place.

    Args:
        module: on a real device; tensors are converted to its number formats.
        checkpoint: what to read.
        rename: for each name of the checkpoint the key of `module.state_dict()`; None sets the
            tensor aside; a list of `(key, part)` splits or changes it, as in
            `[("q.weight", slice(0, n)), ("k.weight", slice(n, 2 * n))]` for a fused projection.
        optional: keys of the module that may lack a source, each a name or the part before a dot
            (`"head"` covers `head.weight`). Tied weights need only one source.

    Raises:
        InvalidInputError: an unknown key, a key without source, a key with two, or another
            shape. Nothing has been copied when a name is at fault.
    """
    places = module.state_dict(keep_vars=True)
    plan, unused = _plan(checkpoint, rename, places)
    sources = {key: name for name, targets in plan.items() for key, _ in targets}
    initial = _without_source(places, sources, optional, checkpoint)
    with torch.no_grad():
        for name, targets in plan.items():
            tensor = checkpoint.tensor(name)
            for key, part in targets:
                value = tensor[part] if isinstance(part, slice) else part(tensor)
                if value.shape != places[key].shape:
                    raise _other_shape(checkpoint, name, value.shape, key, places[key].shape)
                places[key].data.copy_(value)
    return LoadReport(tuple(sources), unused, initial)


def _plan(
    checkpoint: Checkpoint, rename: Rename, places: Mapping[str, Tensor]
) -> tuple[dict[str, list[tuple[str, Part]]], tuple[str, ...]]:
    """Which tensor goes where, with names, doubles and plain shapes already checked."""
    plan: dict[str, list[tuple[str, Part]]] = {}
    sources: dict[str, str] = {}
    unused = []
    for name in checkpoint.names():
        target = rename(name)
        if target is None:
            unused.append(name)
            continue
        plan[name] = [(target, slice(None))] if isinstance(target, str) else list(target)
        for key, _ in plan[name]:
            if key not in places:
                raise InvalidInputError(
                    f"{checkpoint.folder} holds {name!r} of shape {checkpoint.shape(name)}, and "
                    f"the model has no {key!r}",
                    "only the tensors of this architecture",
                    "check that the checkpoint is of the architecture that the recipe names",
                )
            if key in sources:
                raise InvalidInputError(
                    f"{checkpoint.folder} gives {key!r} twice, as {sources[key]!r} and {name!r}",
                    "one tensor for each weight",
                    "remove one of them from the checkpoint",
                )
            sources[key] = name
        if isinstance(target, str) and checkpoint.shape(name) != places[target].shape:
            shape = checkpoint.shape(name)
            raise _other_shape(checkpoint, name, shape, target, places[target].shape)
    return plan, tuple(unused)


def _without_source(
    places: Mapping[str, Tensor],
    sources: Mapping[str, str],
    optional: Collection[str],
    checkpoint: Checkpoint,
) -> tuple[str, ...]:
    """The weights that no tensor reaches, by name or by being tied; all must be optional."""
    reached = {places[key].data_ptr() for key in sources if places[key].numel()}
    left = [k for k, p in places.items() if k not in sources and p.data_ptr() not in reached]
    for key in left:
        if not any(key == name or key.startswith(f"{name}.") for name in optional):
            raise InvalidInputError(
                f"{checkpoint.folder} has nothing for {key!r}",
                f"a tensor of shape {tuple(places[key].shape)}",
                "check that the checkpoint is complete and of the architecture of the recipe",
            )
    return tuple(left)


def _other_shape(
    checkpoint: Checkpoint, name: str, found: Sequence[int], key: str, expected: Sequence[int]
) -> InvalidInputError:
    return InvalidInputError(
        f"{name!r} in {checkpoint.folder} has the shape {tuple(found)}",
        f"{tuple(expected)} for {key!r}",
        "check the sizes in its config.json and in the recipe",
    )


def _weight_map(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    for file in FILES:
        if (path := folder / file).is_file():
            return dict.fromkeys(_read(path).keys(), path)
        index = folder / f"{file}.index.json"
        if index.is_file():
            return _from_index(index)
    raise BundleNotFoundError(
        f"{folder} holds no weights",
        f"{' or '.join(FILES)}, whole or in shards with an index",
        "give the folder that a `save_pretrained` or a hub download wrote",
    )


def _from_index(index: Path) -> dict[str, Path]:
    names = _json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BundleCorruptError(f"{index} has no weight_map", "names of tensors and their files")
    files = {str(file) for file in names.values()}
    for file in sorted(files):
        if Path(file).name != file:
            raise BundleCorruptError(f"{index} names the file {file!r}", "files beside the index")
        if not (index.parent / file).is_file():
            raise BundleNotFoundError(
                f"the shard {index.parent / file} is missing",
                f"all {len(files)} shards of the index",
                "fetch the checkpoint again",
            )
    return {name: index.parent / str(file) for name, file in names.items()}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safe_open(path, "pt")
        try:
            content = torch.load(path, "cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: not a zip, so it cannot be mapped
            content = torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise _damaged(path, error) from None
    except Exception as error:  # weights_only refuses by pickle.UnpicklingError, zip by others
        raise _damaged(path, error) from None
    if not isinstance(content, Mapping) or not all(map(torch.is_tensor, content.values())):
        raise BundleCorruptError(f"{path} holds more than tensors by name", "a state dict")
    return content


def _damaged(path: Path, error: Exception) -> BundleCorruptError:
    first = (str(error).strip() or "no message").splitlines()[0]
    first = first.partition(". In PyTorch")[0]  # which goes on to advise unpickling anything
    return BundleCorruptError(
        f"{path} cannot be read ({type(error).__name__}: {first})",
        "tensors, and nothing but tensors",
        "fetch the checkpoint again",
    )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError:
        raise BundleNotFoundError(
            f"there is no {path}", "the configuration beside the weights", "add it"
        ) from None
    except ValueError as error:
        raise BundleCorruptError(f"{path} is no JSON ({error})", "a JSON object") from None
    if not isinstance(value, dict):
        raise BundleCorruptError(f"{path} holds {type(value).__name__}", "a JSON object")
    return value


def _fetch(source: str) -> Path:
    """A hub's checkpoint in the local cache: safetensors where there are any, else .bin."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise MissingExtraError.of("huggingface_hub", "train") from None
    try:
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            folder = Path(snapshot_download(source, allow_patterns=[*HUB_SMALL, weights]))
            if any(folder.glob(weights)):
                break
    except Exception as error:  # the hub's client raises its own, httpx's and OSError's types
        raise BundleNotFoundError(
            f"{source!r} cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0]})",
            "a checkpoint that the hub has and this machine may read",
            "check the id, the network and HF_TOKEN, or give a local folder",
        ) from None
    return folder
