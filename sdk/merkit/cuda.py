"""The few calls of the CUDA driver that running a plan takes, through ctypes.

TensorRT works on device memory that its caller owns. PyTorch or a package of bindings would be
hundreds of megabytes for twelve functions of a library, `libcuda`, that lies wherever a GPU's
driver does and whose interface has been stable for a decade.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import BackendError, InferenceError

MAJOR_ATTRIBUTE, MINOR_ATTRIBUTE = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: independent of the default stream
NAMES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")

_INT, _SIZE, _POINTER = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_DEVICE_POINTER = ctypes.c_uint64
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (_POINTER,),
    "cuDeviceGetCount": (_POINTER,),
    "cuDeviceGet": (_POINTER, _INT),
    "cuDeviceGetAttribute": (_POINTER, _INT, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER, _INT),
    "cuCtxSetCurrent": (_POINTER,),
    "cuGetErrorString": (_INT, _POINTER),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_DEVICE_POINTER,),
    "cuMemcpyHtoDAsync_v2": (_DEVICE_POINTER, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _DEVICE_POINTER, _SIZE, _POINTER),
    "cuStreamCreate": (_POINTER, ctypes.c_uint),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamDestroy_v2": (_POINTER,),
}
"""What is called, with the types of its arguments; each returns 0 or an error's number."""


class Cuda:
    """One GPU's driver. Every method raises InferenceError with the driver's own words.

    Args:
        library: the loaded driver; default: the one of this machine.
        device: which GPU, as CUDA numbers them.

    Raises:
        BackendError: no driver, or no GPU of that number.
    """

    def __init__(self, library: Any = None, device: int = 0) -> None:
        self._calls = _bind(_load() if library is None else library)
        try:
            self("cuInit", 0)
            count = self._number("cuDeviceGetCount")
        except InferenceError as error:
            raise BackendError(error.found, "a GPU that CUDA can use", NO_GPU) from None
        if device >= count:
            found = f"the CUDA driver sees {count} GPUs" if count else "the CUDA driver sees no GPU"
            raise BackendError(found, f"a GPU with the number {device}", NO_GPU)
        handle = self._number("cuDeviceGet", device)
        major = self._number("cuDeviceGetAttribute", MAJOR_ATTRIBUTE, handle)
        minor = self._number("cuDeviceGetAttribute", MINOR_ATTRIBUTE, handle)
        version = self._number("cuDriverGetVersion")
        self.compute_capability = f"{major}.{minor}"
        self.driver = f"{version // 1000}.{version % 1000 // 10}"
        self._context = _POINTER()
        self("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)

    def use(self) -> None:
        """Makes the GPU's primary context, which TensorRT shares, this thread's current one."""
        self("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """A new stream; `free_stream` gives it back."""
        made = _POINTER()
        self("cuStreamCreate", ctypes.byref(made), NON_BLOCKING)
        return made.value or 0

    def free_stream(self, stream: int) -> None:
        """Frees a stream."""
        self("cuStreamDestroy_v2", stream)

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of device memory (at least one: TensorRT wants an address)."""
        made = _DEVICE_POINTER()
        self("cuMemAlloc_v2", ctypes.byref(made), max(size, 1))
        return made.value

    def free(self, address: int) -> None:
        """Frees device memory."""
        self("cuMemFree_v2", address)

    def to_device(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Queues a copy of a contiguous array, which must live until `synchronize`."""
        if array.nbytes:
            self("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def to_host(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Queues a copy into a contiguous array, which is filled after `synchronize`."""
        if array.nbytes:
            self("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)

    def synchronize(self, stream: int) -> None:
        """Waits until all that was queued is done."""
        self("cuStreamSynchronize", stream)

    def __call__(self, name: str, *arguments: Any) -> None:
        """Calls a function of the driver by name."""
        if status := self._calls[name](*arguments):
            said = ctypes.c_char_p()
            self._calls["cuGetErrorString"](status, ctypes.byref(said))
            words = (said.value or b"an unknown error").decode("ascii", "replace")
            raise InferenceError(
                f"the CUDA driver's {name} failed with error {status} ({words})",
                "a GPU with enough free memory",
                "look at nvidia-smi; free memory, or use the provider cpu",
            )

    def _number(self, name: str, *arguments: Any) -> int:
        value = np.zeros(1, np.int32)
        self(name, value.ctypes.data, *arguments)
        return int(value[0])


NO_GPU = "run this on a machine with an NVIDIA GPU and its driver; preflight runs anywhere"


def _load() -> Any:
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendError("there is no CUDA driver here", f"{NAMES[0]}, of an NVIDIA driver", NO_GPU)


def _bind(library: Any) -> dict[str, Callable[..., int]]:
    calls = {}
    for name, arguments in FUNCTIONS.items():
        call = getattr(library, name)
        call.argtypes, call.restype = arguments, _INT
        calls[name] = call
    return calls
