"""The one place where merkit imports ONNX Runtime, because importing it sends data away.

Since 1.29 its Linux and macOS wheels write a device id into the temporary folder and upload
events about models and sessions (pull requests 27379 and 29843 of microsoft/onnxruntime). A
process that judges people's emotions must talk to nobody. The switch is read once, at import:
an application that imports ONNX Runtime before merkit has to set it itself.
"""

from __future__ import annotations

import os
from typing import Any

from merkit.errors import MissingExtraError

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The module `onnxruntime`, silent unless the user has set the switch to something else."""
    os.environ.setdefault(TELEMETRY_SWITCH, "1")
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError.of("onnxruntime", "local") from None
    return onnxruntime
