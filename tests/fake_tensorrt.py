"""A TensorRT and a CUDA driver that need no GPU: plans hold their graph and ONNX Runtime runs it.

Everything merkit asks of the real ones is here and nothing else is, so a call that is not here
fails; `tests/export/test_tensorrt_bindings.py` holds what is here against the real bindings.
Device memory is the host's, so a wrong address or a copy that is missing shows in the results.
"""

# ruff: noqa: ARG002 - names of arguments are the real ones, used or not

from __future__ import annotations

import base64
import ctypes
import enum
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from merkit.ort import import_onnxruntime

__version__ = "11.4.0.106"


class ILogger:
    """Base of loggers."""

    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class BuilderFlag(enum.Enum):
    TF32 = "TF32"
    REFIT = "REFIT"
    STRIP_PLAN = "STRIP_PLAN"
    VERSION_COMPATIBLE = "VERSION_COMPATIBLE"
    WEIGHT_STREAMING = "WEIGHT_STREAMING"


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class DataType(enum.Enum):
    FLOAT = TensorProto.FLOAT
    INT32 = TensorProto.INT32
    INT64 = TensorProto.INT64
    BOOL = TensorProto.BOOL
    UINT8 = TensorProto.UINT8


def nptype(trt_type: DataType) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(trt_type.value)


class IProgressMonitor:
    def __init__(self) -> None:
        pass

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class IOptimizationProfile:
    __slots__ = ("shapes",)

    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert len(min) == len(opt) == len(max)
        self.shapes[input] = [list(min), list(opt), list(max)]


class ITensor:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class INetworkDefinition:
    __slots__ = ("model",)

    def __init__(self) -> None:
        self.model: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self.model.graph.input[index].name)


class ParserError:
    def __init__(self, name: str, operator: str, words: str) -> None:
        self._said = name, operator, words

    def node_name(self) -> str:
        return self._said[0]

    def node_operator(self) -> str:
        return self._said[1]

    def desc(self) -> str:
        return self._said[2]


REFUSED_OPERATORS: set[str] = set()
"""What the parser refuses."""


class OnnxParser:
    __slots__ = ("_errors", "_network")

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors = network, list[ParserError]()

    def parse(self, model: bytes, path: str | None = None) -> bool:
        self._network.model = onnx.load_from_string(model)
        self._errors = [
            ParserError(node.name, node.op_type, "no importer")
            for node in self._network.model.graph.node
            if node.op_type in REFUSED_OPERATORS
        ]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class IBuilderConfig:
    __slots__ = (
        "_cache",
        "_flags",
        "_pools",
        "_profiles",
        "builder_optimization_level",
        "hardware_compatibility_level",
        "progress_monitor",
    )

    def __init__(self) -> None:
        self._flags, self._profiles = {BuilderFlag.TF32}, list[IOptimizationProfile]()
        self._pools: dict[MemoryPoolType, int] = {}

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._cache


BUILDS: list[dict[str, Any]] = []
"""What was built, in order: a record for tests."""
DURING_BUILD: list[Callable[[], None]] = []
"""Called at every step of a build: a test's hand on the plug."""


class Builder:
    __slots__ = ()

    def __init__(self, logger: ILogger) -> None:
        if not DEVICES:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 100\nmore")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 4)
        for step in range(4):
            for call in DURING_BUILD:
                call()
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        said = {
            "flags": sorted(flag.name for flag in config._flags),
            "pools": {pool.name: size for pool, size in config._pools.items()},
            "profiles": [profile.shapes for profile in config._profiles],
            "level": config.builder_optimization_level,
            "hardware": config.hardware_compatibility_level.name,
        }
        BUILDS.append(said)
        content = base64.b64encode(network.model.SerializeToString()).decode()
        return json.dumps({**said, "model": content}).encode()


class Runtime:
    __slots__ = ("engine_host_code_allowed",)

    def __init__(self, logger: ILogger) -> None:
        pass

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        plan = json.loads(serialized_engine)
        if "VERSION_COMPATIBLE" in plan["flags"] and not self.engine_host_code_allowed:
            return None
        return ICudaEngine(plan)


class ICudaEngine:
    __slots__ = ("_model", "_plan", "_refitted", "_values", "weight_streaming_budget_v2")

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan, self._refitted = plan, "STRIP_PLAN" not in plan["flags"]
        self._model = onnx.load_from_string(base64.b64decode(plan["model"]))
        self._values = {v.name: v for v in [*self._model.graph.input, *self._model.graph.output]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    def get_tensor_name(self, index: int) -> str:
        return list(self._values)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._values[name].type.tensor_type.elem_type)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        made = name in {v.name for v in self._model.graph.output}
        return TensorIOMode.OUTPUT if made else TensorIOMode.INPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_weight_streaming_automatic_budget(self) -> int:
        return 7

    def create_execution_context(self) -> IExecutionContext:
        assert self._refitted, "an engine without weights"
        return IExecutionContext(self)


class IExecutionContext:
    __slots__ = ("_addresses", "_engine", "_profile", "_results", "_session", "_shapes")

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._profile = engine, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._results: dict[str, Any] = {}
        content = engine._model.SerializeToString()
        ort = import_onnxruntime()
        self._session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return profile_index < len(self._engine._plan["profiles"])

    def set_input_shape(self, name: str, shape: Any) -> bool:
        low, _, high = self._engine._plan["profiles"][self._profile][name]
        self._shapes[name], self._results = tuple(shape), {}
        return all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory != 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if not self._results:
            feed = {
                name: _at(self._addresses[name], shape, nptype(self._engine.get_tensor_dtype(name)))
                for name, shape in self._shapes.items()
            }
            names = [value.name for value in self._engine._model.graph.output]
            self._results = dict(zip(names, self._session.run(names, feed), strict=True))
        return tuple(self._results[name].shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        for name, value in self._results.items():
            ctypes.memmove(self._addresses[name], value.ctypes.data, value.nbytes)
        return stream_handle == STREAM


class Refitter:
    __slots__ = ("_engine",)

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        self._engine = engine

    def refit_cuda_engine(self) -> bool:
        self._engine._refitted = True
        return True


class OnnxParserRefitter:
    __slots__ = ()

    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        pass

    def refit_from_file(self, model: str) -> bool:
        return model.endswith("model.onnx")


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)


DEVICES = ["9.0"]
"""Compute capabilities of the GPUs there are."""
STREAM = 77
MEMORY: dict[int, Any] = {}
"""Device memory in use, by address."""
_INT, _SIZE, _POINTER, _DEVICE = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint64


def driver() -> SimpleNamespace:
    """A `libcuda` of C functions with the prototypes of cuda.h."""

    def number(value: Callable[..., int]) -> Callable[..., int]:
        def write(pointer: int, *arguments: int) -> int:
            ctypes.c_int.from_address(pointer).value = value(*arguments)
            return 0

        return write

    def attribute(which: int, device: int) -> int:
        return int(DEVICES[device].split(".")[which - 75])

    def handle(pointer: int, *_: int) -> int:
        ctypes.c_void_p.from_address(pointer).value = STREAM
        return 0

    def allocate(pointer: int, size: int) -> int:
        if size > 1 << 32:
            return 2
        block = ctypes.create_string_buffer(size)
        address = ctypes.addressof(block)
        MEMORY[address] = block
        ctypes.c_uint64.from_address(pointer).value = address
        return 0

    def free(address: int) -> int:
        del MEMORY[address]
        return 0

    def copy(to: int, source: int, size: int, stream: int) -> int:
        ctypes.memmove(to, source, size)
        return 0 if stream == STREAM else 400

    words = ctypes.create_string_buffer(b"out of memory")

    def explain(_: int, pointer: int) -> int:
        ctypes.c_void_p.from_address(pointer).value = ctypes.addressof(words)
        return 0

    functions = {
        "cuInit": (lambda _: 0, (ctypes.c_uint,)),
        "cuDriverGetVersion": (number(lambda: 13000), (_POINTER,)),
        "cuDeviceGetCount": (number(lambda: len(DEVICES)), (_POINTER,)),
        "cuDeviceGet": (number(lambda index: index), (_POINTER, _INT)),
        "cuDeviceGetAttribute": (number(attribute), (_POINTER, _INT, _INT)),
        "cuDevicePrimaryCtxRetain": (handle, (_POINTER, _INT)),
        "cuCtxSetCurrent": (lambda context: 0 if context == STREAM else 201, (_POINTER,)),
        "cuGetErrorString": (explain, (_INT, _POINTER)),
        "cuMemAlloc_v2": (allocate, (_POINTER, _SIZE)),
        "cuMemFree_v2": (free, (_DEVICE,)),
        "cuMemcpyHtoDAsync_v2": (copy, (_DEVICE, _POINTER, _SIZE, _POINTER)),
        "cuMemcpyDtoHAsync_v2": (copy, (_POINTER, _DEVICE, _SIZE, _POINTER)),
        "cuStreamCreate": (handle, (_POINTER, ctypes.c_uint)),
        "cuStreamSynchronize": (lambda stream: 0 if stream == STREAM else 400, (_POINTER,)),
        "cuStreamDestroy_v2": (lambda stream: 0 if stream == STREAM else 400, (_POINTER,)),
    }
    return SimpleNamespace(
        **{
            name: ctypes.CFUNCTYPE(_INT, *types)(function)
            for name, (function, types) in functions.items()
        },
        kept=words,
    )


def install(monkeypatch: Any) -> None:
    """Puts both in the place of the real ones for one test, with one GPU and nothing refused."""
    import sys

    import merkit.cuda

    monkeypatch.setitem(sys.modules, "tensorrt", sys.modules[__name__])
    monkeypatch.setattr(merkit.cuda, "_load", driver)
    monkeypatch.setattr(sys.modules[__name__], "DEVICES", ["9.0"])
    for record in (BUILDS, DURING_BUILD, REFUSED_OPERATORS, MEMORY):
        record.clear()
