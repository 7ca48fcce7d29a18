"""Warm-up samples: what runs before the first request, or silently does not."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from merkit.lint.config import GUIDE
from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import Options
from merkit.lint.repository import Model, Repository, type_name

FOLDER = "warmup"
INSTANCE = "core/src/backend_model_instance.cc GenerateWarmupData"
BYTES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2}
BYTES |= {"UINT32": 4, "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8}

FILE = rule(
    "warmup-file",
    "error",
    "a warm-up sample whose file is not in the model's warmup folder, or is too short",
    INSTANCE,
    "warmup",
)
DIMS = rule(
    "warmup-dims",
    "error",
    "a warm-up input with a variable dimension",
    INSTANCE,
    "warmup setting expects all variable-size dimensions are specified",
)
DATA = rule(
    "warmup-data",
    "error",
    "a warm-up input without zero_data, random_data or input_data_file",
    INSTANCE,
    "to have input_data_type set",
)
INPUTS = rule(
    "warmup-inputs",
    "error",
    "a warm-up sample that leaves out a required input, or does not fit the model's",
    INSTANCE + ", InferenceRequest::PrepareForInference",
    "",
)
IDLE = rule(
    "warmup-idle",
    "warning",
    "a warm-up sample of batch_size 0, which is the default: it is skipped without a word",
    INSTANCE,
)
BATCH = rule(
    "warmup-batch",
    "error",
    "a warm-up sample of a larger batch than max_batch_size: refused, or the whole server ends",
    GUIDE + ", Model Warmup; server 24.10 was seen to end with a segmentation fault",
    "failed to run warmup sample",
)


def check(repository: Repository, _options: Options, _skip: Skip) -> Iterator[Finding]:
    """The warm-up samples of every model."""
    for model in repository.readable():
        if not model.is_ensemble:
            for sample in model.config.model_warmup:
                yield from _sample(model, sample)


def _sample(model: Model, sample: Any) -> Iterator[Finding]:
    place = f"model_warmup {sample.name}"
    if sample.batch_size == 0:
        yield IDLE.at(model.name, place, "batch_size is 0 or absent", "write batch_size: 1")
        return
    if sample.batch_size > max(model.config.max_batch_size, 1):
        found = f"batch_size {sample.batch_size}, max_batch_size {model.config.max_batch_size}"
        yield BATCH.at(model.name, place, found, "choose a batch that the model takes")
    tensors = {tensor.name: tensor for tensor in model.config.input}
    for name, value in sample.inputs.items():
        yield from _data(model, f"{place} {name}", value)
        if name in tensors:
            yield from _fit(model, f"{place} {name}", value, tensors[name])
    absent = [n for n, t in tensors.items() if n not in sample.inputs and not t.optional]
    if tensors and absent:
        yield INPUTS.at(model.name, place, f"no input {absent[0]!r}", "give every required input")


def _data(model: Model, place: str, value: Any) -> Iterator[Finding]:
    if min(value.dims, default=0) == -1:
        yield DIMS.at(model.name, place, f"dims {list(value.dims)}", "write sizes")
        return
    chosen = value.WhichOneof("input_data_type")
    if chosen is None:
        yield DATA.at(model.name, place, "it says not what to send", "write zero_data: true, say")
    if chosen != "input_data_file":
        return
    file = model.path / FOLDER / value.input_data_file
    need = BYTES.get(type_name(value), 0) * prod(value.dims)
    if not file.is_file():
        yield FILE.at(model.name, place, f"there is no {_beside(file)}", "put the file there")
    elif file.stat().st_size < need:
        found = f"{_beside(file)} has {file.stat().st_size} bytes of {need}"
        yield FILE.at(model.name, place, found, "write the whole tensor")


def _fit(model: Model, place: str, value: Any, tensor: Any) -> Iterator[Finding]:
    dims, wanted = list(value.dims), list(tensor.dims)
    same = len(dims) == len(wanted) and all(
        w in (-1, d) for d, w in zip(dims, wanted, strict=False)
    )
    if value.data_type != tensor.data_type or not same:
        found = f"{type_name(value)} {dims}, and the model takes {type_name(tensor)} {wanted}"
        yield INPUTS.at(model.name, place, found, "let both agree")


def _beside(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"
