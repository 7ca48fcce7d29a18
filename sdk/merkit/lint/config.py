"""Fields of one model's config that the server's core judges before any backend sees the model."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import Options
from merkit.lint.repository import (
    ENSEMBLE,
    PLATFORM_BACKENDS,
    Model,
    Repository,
    enum_name,
    type_name,
)

CORE = "core/src/model_config_utils.cc"
GUIDE = "Triton user guide, Model Configuration"
BACKENDS = frozenset(
    {"python", "onnxruntime", "tensorrt", "openvino", "pytorch", "tensorflow", "dali", "fil"}
    | {"tensorrtllm", "vllm", "identity", "repeat", "square"}
)
"""Backends of NVIDIA's containers and of Triton's own repositories."""
COMPLETING = frozenset({"python", "onnxruntime", "tensorrt", "openvino", "pytorch", "vllm"})
"""Backends that fill in tensors that a config leaves out, where the server lets them."""
NAMES = {"onnx": "onnxruntime", "trt": "tensorrt", "torch": "pytorch", "libtorch": "pytorch"}

NO_BACKEND = rule(
    "no-backend",
    "error",
    "neither a backend nor a platform that the server knows",
    CORE + " ValidateModelConfig",
    "unexpected platform type",
)
UNKNOWN_BACKEND = rule(
    "unknown-backend",
    "error",
    "a backend that is not installed with Triton, nor in the model's folder",
    "core/src/backend_model.cc",
    "unable to find backend library",
)
PAIR = rule(
    "platform-backend",
    "error",
    "a platform that belongs to another backend",
    CORE + " ValidateModelConfig",
    "unexpected 'platform' and 'backend' pair",
)
NEGATIVE = rule(
    "max-batch-negative",
    "error",
    "a max_batch_size below 0",
    CORE + " ValidateModelConfig",
    "'max_batch_size' must be non-negative",
)
OMITTED = rule(
    "max-batch-omitted",
    "warning",
    "no max_batch_size: ONNX and TensorRT models with a dynamic first dimension are given 4 and a "
    "dynamic batcher, others 0, and the meaning of dims changes with it",
    GUIDE + ", Default Max Batch Size and Dynamic Batcher",
)
TENSOR_NAME = rule("tensor-name", "error", "a tensor without a name", CORE, "must specify 'name'")
TENSOR_TYPE = rule(
    "tensor-type", "error", "a tensor without a data type", CORE, "must specify 'data_type'"
)
TENSOR_DIMS = rule("tensor-dims", "error", "a tensor without dims", CORE, "must specify 'dims'")
DIM = rule(
    "dim-value",
    "error",
    "a dimension that is neither 1 or more nor -1",
    CORE + " ValidateIOShape",
    "dimension must be integer >= 1",
)
DOUBLE = rule(
    "double-tensor",
    "warning",
    "two inputs or two outputs of one name: one of them is silently dropped",
    "server 24.10 loads it",
)
NO_TENSORS = rule(
    "no-tensors",
    "warning",
    "no inputs or outputs in the config, and nobody completes it: requests are impossible",
    GUIDE + ", Auto-Generated Model Configuration",
)
RESHAPE = rule(
    "reshape",
    "error",
    "a reshape to another number of elements, or to nothing without batching",
    CORE + " ValidateIOShape",
    "reshape",
)
FORMAT = rule(
    "image-format",
    "error",
    "FORMAT_NHWC or FORMAT_NCHW with other than three dims",
    CORE + " ValidateModelInput",
    "NHWC/NCHW require 3 dims",
)
SHAPE_TENSOR = rule(
    "shape-tensor",
    "error",
    "a shape tensor outside TensorRT",
    CORE + " ValidateModelInput",
    "shape tensors are only supported for TensorRT",
)
INSTANCE_GPUS = rule(
    "instance-gpus",
    "error",
    "GPUs named in an instance group of kind CPU or MODEL",
    CORE + " ValidateInstanceGroup",
    "but specifies one or more GPUs",
)
NO_GPU = rule(
    "no-gpu",
    "error",
    "an instance group on a GPU that the host does not have",
    CORE + " ValidateInstanceGroup",
    "KIND_GPU",
)
PROFILE = rule(
    "instance-profile",
    "error",
    "an instance group's profile that is no number, or outside TensorRT",
    CORE + " ValidateInstanceGroup",
    "profile field which is only supported for TensorRT",
)
TENSORRT_CPU = rule(
    "tensorrt-cpu",
    "error",
    "a TensorRT model on the CPU",
    "tensorrt_backend/src/instance_state.cc: instances must be of KIND_GPU",
)
TENSORRT_TYPE = rule(
    "tensorrt-type",
    "error",
    "a tensor type that TensorRT does not have, such as strings",
    "TensorRT API, DataType; tensorrt_backend/src/tensorrt_utils.cc",
)
BF16 = rule(
    "bf16-wire",
    "warning",
    "a BF16 tensor on the wire: numpy has no such type, and neither as_numpy nor JSON carries it",
    "python_backend README, Input Tensor Device Placement; Triton user guide, Datatypes",
)
CACHE_DECOUPLED = rule(
    "cache-decoupled",
    "error",
    "a response cache on a decoupled model",
    CORE + " ValidateModelConfig",
    "Response Cache does not currently support",
)
TENSORRT_TYPES = ("BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "BF16")


def check(repository: Repository, options: Options, _skip: Skip) -> Iterator[Finding]:
    """Backend, tensors, instances and cache of every model."""
    for model in repository.readable():
        if model.text is None:
            continue
        if not model.is_ensemble:
            yield from _backend(model, options)
            yield from _instances(model, options)
        completed = options.completes_configs and model.backend in COMPLETING
        yield from _batch_size(model, completed and not model.complete)
        yield from _tensors(model, completed)
        if model.config.response_cache.enable and model.config.model_transaction_policy.decoupled:
            found = "enabled, and the model may answer more than once"
            yield CACHE_DECOUPLED.at(model.name, "response_cache", found, "disable one of the two")


def _backend(model: Model, options: Options) -> Iterator[Finding]:
    config, name = model.config, model.backend
    if not name:
        found = f"platform {config.platform!r}" if config.platform else "neither is set"
        yield NO_BACKEND.at(model.name, "backend", found, "set backend, to python for one")
        return
    if name not in BACKENDS | options.backends and not _library(model, name):
        near = NAMES.get(name) or PLATFORM_BACKENDS.get(name)
        near = near or next(iter(difflib.get_close_matches(name, BACKENDS, 1)), "")
        action = f"write {near!r}" if near else "install it, and name it with --backend"
        yield UNKNOWN_BACKEND.at(model.name, "backend", f"there is no backend {name!r}", action)
    belongs = PLATFORM_BACKENDS.get(config.platform)
    if config.backend in PLATFORM_BACKENDS.values() and config.platform and belongs != name:
        found = f"platform {config.platform!r}, and the backend is {name!r}"
        yield PAIR.at(model.name, "platform", found, "drop the platform")


def _library(model: Model, backend: str) -> bool:
    folders = [model.path, *(model.path / str(version) for version in model.versions)]
    return any((folder / f"libtriton_{backend}.so").exists() for folder in folders)


def _batch_size(model: Model, completed: bool) -> Iterator[Finding]:
    if model.config.max_batch_size < 0:
        found = f"it is {model.config.max_batch_size}"
        yield NEGATIVE.at(model.name, "max_batch_size", found, "write 0 for no batching")
    written = re.sub(r"#[^\n]*", "", model.text or "")
    if model.is_ensemble or completed:
        return
    if not re.search(r"\bmax_batch_size\s*:", written):
        action = "write it: 0 if dims hold every dimension, else the most that one batch may hold"
        yield OMITTED.at(model.name, "max_batch_size", "it is not written", action)


def _tensors(model: Model, completed: bool) -> Iterator[Finding]:
    config = model.config
    for kind, tensors in (("input", config.input), ("output", config.output)):
        if not tensors and not completed:
            yield NO_TENSORS.at(
                model.name, kind, f"no {kind} is written down", f"write the {kind}s"
            )
        for name, times in Counter(tensor.name for tensor in tensors).items():
            if times > 1 and name:
                found = f"{times} {kind}s are called {name!r}"
                yield DOUBLE.at(model.name, f"{kind} {name}", found, "rename or remove one")
        for tensor in tensors:
            yield from _tensor(model, kind, tensor)


def _tensor(model: Model, kind: str, tensor: Any) -> Iterator[Finding]:
    place = f"{kind} {tensor.name}".strip()
    dtype = type_name(tensor)
    if not tensor.name:
        yield TENSOR_NAME.at(model.name, place, f"an {kind} has no name", "name it")
    if dtype == "INVALID" or dtype.lstrip("-").isdigit():
        yield TENSOR_TYPE.at(model.name, place, "it has no data_type", "write TYPE_FP32, say")
    if not tensor.dims:
        action = "write dims: [ 1 ] with reshape: { shape: [ ] } for one value per request"
        yield TENSOR_DIMS.at(model.name, place, "it has no dims", action)
    if wrong := [d for d in (*tensor.dims, *tensor.reshape.shape) if d < 1 and d != -1]:
        yield DIM.at(model.name, place, f"a dimension is {wrong[0]}", "write -1 for any size")
    elif tensor.HasField("reshape"):
        yield from _reshape(model, place, tensor)
    if kind == "input" and tensor.format and len(tensor.dims) != 3:
        found = f"an image of {len(tensor.dims)} dimensions"
        yield FORMAT.at(model.name, place, found, "drop format: the server converts nothing by it")
    if tensor.is_shape_tensor and model.backend != "tensorrt":
        yield SHAPE_TENSOR.at(model.name, place, f"of {model.backend or ENSEMBLE!r}", "drop it")
    if model.backend == "tensorrt" and dtype not in (*TENSORRT_TYPES, "INVALID"):
        action = "convert it in a Python or ONNX step before"
        yield TENSORRT_TYPE.at(model.name, place, f"TYPE_{dtype} is no type of TensorRT's", action)
    if dtype == "BF16":
        yield BF16.at(model.name, place, "it is TYPE_BF16", "cast to FP32 at the model's edge")


def _reshape(model: Model, place: str, tensor: Any) -> Iterator[Finding]:
    before, after = list(tensor.dims), list(tensor.reshape.shape)
    if not after and not model.batches:
        found = "it is empty, and max_batch_size is 0"
        yield RESHAPE.at(model.name, place, found, "give it a shape")
    elif _runs(before) != _runs(after) and not (not after and prod(before) == 1):
        found = f"dims {before} and reshape {after} differ in size"
        yield RESHAPE.at(model.name, place, found, "make both hold as many elements")


def _runs(dims: Sequence[int]) -> list[int]:
    """Elements before, between and after the variable dimensions."""
    runs = [1]
    for dim in dims:
        if dim == -1:
            runs.append(1)
        else:
            runs[-1] *= dim
    return runs


def _instances(model: Model, options: Options) -> Iterator[Finding]:
    for group in model.config.instance_group:
        kind = enum_name(group, "kind")
        if kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
            found = f"{kind} with gpus {list(group.gpus)}"
            yield INSTANCE_GPUS.at(model.name, "instance_group", found, "write KIND_GPU")
        present = options.gpus if kind == "KIND_GPU" else None
        if present is not None and (missing := [g for g in group.gpus or [0] if g >= present]):
            found = f"GPU {missing[0]} is asked for, and the host has {present}"
            action = "write KIND_CPU, or KIND_AUTO to take a GPU where there is one"
            yield NO_GPU.at(model.name, "instance_group", found, action)
        if model.backend == "tensorrt" and (kind == "KIND_CPU" or options.gpus == 0):
            found = "TensorRT runs on GPUs alone"
            yield TENSORRT_CPU.at(model.name, "instance_group", found, "render ONNX Runtime here")
        for profile in group.profile:
            if model.backend != "tensorrt" or not profile.strip().isdigit():
                found = f"profile {profile!r} of the backend {model.backend!r}"
                action = "name TensorRT profiles by their number, and drop others"
                yield PROFILE.at(model.name, "instance_group", found, action)
