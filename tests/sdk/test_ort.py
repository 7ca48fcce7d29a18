"""ONNX Runtime must not leave a device id behind, nor talk to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from merkit.bundle import Bundle

SCRIPT = """
import sys
from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import open_bundle
EmbeddedBackend(open_bundle(sys.argv[1]), threads=1).close()
"""


def test_opening_a_bundle_writes_nothing_into_the_temporary_folder(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment["TMPDIR"] = str(tmp_path)
    command = [sys.executable, "-c", SCRIPT, str(toy_bundle.root)]
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert not list(tmp_path.iterdir())
