"""Reads a Triton model repository as the server reads it, so that rules can look at plain values.

The server resolves a model's backend, its versions and its file names by rules of its own. Were
each lint rule to guess at them, the guesses would differ; they are made here, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from merkit.errors import InvalidInputError, MissingExtraError

CONFIG = "config.pbtxt"
ENSEMBLE = "ensemble"
PLATFORM_BACKENDS = {
    "tensorrt_plan": "tensorrt",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
MODEL_FILES = {
    "tensorrt": "model.plan",
    "onnxruntime": "model.onnx",
    "openvino": "model.xml",
    "pytorch": "model.pt",
    "python": "model.py",
}
"""What the server looks for in a version folder where no default_model_filename is set."""


@dataclass(frozen=True)
class Model:
    """One folder of a repository.

    Attributes:
        name: the folder's name.
        text: its config.pbtxt, None without one.
        config: the parsed config; an empty one without a file; None where it cannot be parsed.
        problem: why it cannot be parsed.
        doubles: keys that a map of the config holds twice, as "map: key".
        newer: fields that server 24.10 does not know.
    """

    name: str
    path: Path
    text: str | None
    config: Any
    problem: str = ""
    doubles: tuple[str, ...] = ()
    newer: tuple[str, ...] = ()

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """Names of the folders in it."""
        return tuple(sorted(p.name for p in self.path.iterdir() if p.is_dir()))

    @cached_property
    def versions(self) -> tuple[int, ...]:
        """Its versions, ascending: folders that are whole numbers without a leading zero."""
        return tuple(
            sorted(int(name) for name in self.folders if re.fullmatch("[1-9][0-9]*", name))
        )

    @cached_property
    def served(self) -> tuple[int, ...]:
        """The versions that its version policy picks."""
        if self.config is None:
            return self.versions
        policy = self.config.version_policy
        chosen = policy.WhichOneof("policy_choice")
        if chosen == "all":
            return self.versions
        if chosen == "specific":
            return tuple(v for v in self.versions if v in set(policy.specific.versions))
        count = policy.latest.num_versions if chosen == "latest" else 1
        return self.versions[-count:] if count else ()

    @cached_property
    def backend(self) -> str:
        """The backend that runs it, as the server completes it; "" where it finds none."""
        config = self.config
        if config is None or self.is_ensemble:
            return ""
        if config.backend:
            return str(config.backend)
        if config.platform:
            return PLATFORM_BACKENDS.get(config.platform, "")
        names = {file: backend for backend, file in MODEL_FILES.items()}
        if config.default_model_filename:
            return names.get(config.default_model_filename, "")
        for folder in self.folders[:1]:
            for file, backend in names.items():
                if (self.path / folder / file).exists():
                    return backend
        return ""

    @property
    def is_ensemble(self) -> bool:
        """Whether it joins other models instead of running something."""
        config = self.config
        return config is not None and (
            config.platform == ENSEMBLE or config.HasField("ensemble_scheduling")
        )

    @property
    def batches(self) -> bool:
        """Whether tensors have a batch dimension that the config leaves out."""
        return self.config is not None and self.config.max_batch_size > 0

    @property
    def complete(self) -> bool:
        """Whether its tensors are written down, so that others can be compared with them."""
        return self.config is not None and bool(self.config.input) and bool(self.config.output)

    def model_files(self) -> tuple[str, ...]:
        """Names of the files of which a version folder must hold at least one."""
        config = self.config
        if config is None or self.is_ensemble:
            return ()
        default = config.default_model_filename or MODEL_FILES.get(self.backend, "")
        return tuple(name for name in (default, *config.cc_model_filenames.values()) if name)

    def parameter(self, key: str) -> str:
        """The string value of one of its parameters; "" without it."""
        if self.config is None or key not in self.config.parameters:
            return ""
        return str(self.config.parameters[key].string_value)


@dataclass(frozen=True)
class Repository:
    """A model repository: each folder in its root, by name."""

    root: Path
    models: Mapping[str, Model]

    def readable(self) -> Iterator[Model]:
        """The models whose config can be parsed."""
        return (model for model in self.models.values() if model.config is not None)

    def runners(self) -> Iterator[Model]:
        """The readable models that are no ensembles."""
        return (model for model in self.readable() if not model.is_ensemble)

    def ensembles(self) -> Iterator[Model]:
        """The readable ensembles that have steps."""
        for model in self.readable():
            if model.is_ensemble and model.config.ensemble_scheduling.step:
                yield model


def read_repository(root: Path) -> Repository:
    """Reads every folder in `root`.

    Raises:
        InvalidInputError: `root` is no folder, or is itself a model.
        MissingExtraError: tritonclient, which holds the config's schema, is not installed.
    """
    if not root.is_dir():
        found = f"{root} is no folder" if root.exists() else f"there is no folder {root}"
        raise InvalidInputError(found, "a Triton model repository", "check the path")
    if (root / CONFIG).exists():
        raise InvalidInputError(
            f"{root} holds a {CONFIG}, so it is a model",
            "a repository: a folder of model folders",
            f"give its parent, {root.resolve().parent}",
        )
    _schema()  # tells of a missing extra before anything else is imported
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return Repository(root, {path.name: _read_model(path) for path in folders})


def enum_name(message: Any, field: str) -> str:
    """The name of an enumeration's value in a config; its number where it has no name."""
    values = type(message).DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    number = getattr(message, field)
    return str(values[number].name) if number in values else str(number)


def type_name(message: Any) -> str:
    """The data type of a tensor without `TYPE_`, such as FP32."""
    return enum_name(message, "data_type").removeprefix("TYPE_")


def _read_model(path: Path) -> Model:
    from google.protobuf import text_format

    file = path / CONFIG
    if file.is_fifo() or file.is_socket():  # reading would wait for ever
        return Model(path.name, path, "", None, "it is no file")
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return Model(path.name, path, None, _schema()())
    except (OSError, UnicodeDecodeError) as error:
        return Model(path.name, path, "", None, f"it cannot be read ({error})")
    try:
        config = text_format.Parse(text, _schema()())
    except (text_format.ParseError, ValueError) as error:  # a number out of its field's range
        return Model(path.name, path, text, None, str(error))
    return Model(path.name, path, text, config, "", tuple(_doubles(text)), tuple(_newer(config)))


def _schema() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise MissingExtraError.of("tritonclient", "triton") from None
    return model_config_pb2.ModelConfig


@cache
def _mapless_schema() -> Any:
    """The config's schema with its maps as plain lists, which keep a key that comes twice."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto()
    _schema().DESCRIPTOR.file.CopyToProto(file)

    def unmap(messages: Any) -> None:
        for message in messages:
            message.options.ClearField("map_entry")
            unmap(message.nested_type)

    unmap(file.message_type)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def _doubles(text: str) -> Iterator[str]:
    from google.protobuf import text_format

    config = text_format.Parse(text, _mapless_schema()())
    maps = [("parameters", config.parameters), ("cc_model_filenames", config.cc_model_filenames)]
    for step in config.ensemble_scheduling.step:
        maps.append((f"{step.model_name} input_map", step.input_map))
        maps.append((f"{step.model_name} output_map", step.output_map))
    for warmup in config.model_warmup:
        maps.append((f"model_warmup {warmup.name} inputs", warmup.inputs))
    for place, entries in maps:
        keys = [entry.key for entry in entries]
        yield from (f"{place}: {key}" for key in dict.fromkeys(keys) if keys.count(key) > 1)


def _newer(config: Any) -> Iterator[str]:
    """Fields of today's schema that are not in the one that server 24.10 carries."""
    known = {name for name, _ in ((f.name, v) for f, v in config.ListFields())}
    if "model_metrics" in known:
        yield "model_metrics"
    if any(f.name == "max_inflight_requests" for f, _ in config.ensemble_scheduling.ListFields()):
        yield "ensemble_scheduling.max_inflight_requests"
