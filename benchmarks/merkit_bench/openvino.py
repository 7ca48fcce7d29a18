"""A contender in another environment's process: see `openvino_worker`."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InferenceError

WORKER = Path(__file__).with_name("openvino_worker.py")


class OpenVino:
    """Runs a model once a call. The call's own overhead (two lines through pipes) is included.

    Raises:
        InferenceError: the interpreter has no OpenVINO, or the model does not load there.
    """

    def __init__(
        self, python: Path, model: Path, feed: Mapping[str, NDArray[Any]], hint: str, threads: int
    ) -> None:
        with tempfile.NamedTemporaryFile(suffix=".npz", delete=False) as file:
            np.savez(file, allow_pickle=False, **feed)
        self._inputs = Path(file.name)
        self._process = subprocess.Popen(
            [str(python), str(WORKER), str(model), file.name, hint, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        first = json.loads(self._line())
        if first["provider"] != "OpenVINOExecutionProvider":
            self.close()
            raise InferenceError(f"{python} runs {first['provider']}", "OpenVINO's provider")
        self._output = np.array(first["output"], np.float32)

    def __call__(self) -> NDArray[Any]:
        """One run; the output of the first."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._line()
        return self._output

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._inputs.unlink(missing_ok=True)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InferenceError(
                f"the OpenVINO process ended with status {self._process.wait()}",
                "an environment with onnxruntime-openvino and numpy",
                "read its messages above",
            )
        return line
