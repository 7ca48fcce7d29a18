"""The one place where merkit imports TensorRT, which fails in more ways than by being absent.

The package may be there without its libraries, the libraries without a driver, or a version may
be there whose networks are typed by flags that no longer exist. Each is said in one sentence.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from merkit.cuda import Cuda
from merkit.errors import BackendError, MissingExtraError
from merkit.plans import Host

MAJOR = 11
"""Since this version networks are always strongly typed: precision lies in the ONNX file."""


def import_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        MissingExtraError: it is not installed.
        BackendError: its libraries cannot be loaded, or it is older than merkit can use.
    """
    try:
        import tensorrt
    except ModuleNotFoundError:
        raise MissingExtraError.of("tensorrt", "tensorrt") from None
    except (ImportError, OSError) as error:
        raise BackendError(
            f"tensorrt is installed, but cannot be loaded ({error})",
            "its libraries beside it",
            "install merkit[tensorrt] from NVIDIA's package index",
        ) from None
    if int(tensorrt.__version__.split(".")[0]) < MAJOR:
        raise BackendError(
            f"TensorRT {tensorrt.__version__} is installed",
            f"TensorRT {MAJOR} or newer",
            "run: pip install --upgrade 'merkit[tensorrt]'",
        )
    return tensorrt


def host_of(tensorrt: Any, cuda: Cuda) -> Host:
    """This machine, as sidecars describe it."""
    return Host(tensorrt.__version__, cuda.compute_capability, this_platform(), cuda.driver)


def this_platform() -> str:
    """`linux-x86_64` and the like."""
    return f"{sys.platform}-{platform.machine().lower()}"


def make_log(tensorrt: Any) -> Any:
    """A logger for TensorRT: the last error stays in `last` for our messages, the rest goes.

    Its class can be made only once there is a TensorRT to inherit from.
    """

    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
                self.last = (msg.strip() or "no message").splitlines()[0]

    return Log()
