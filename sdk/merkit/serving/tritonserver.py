"""Finds a Triton server on this machine and says how to start it.

Triton comes as NVIDIA's container, or inside the nvidia-pytriton wheel, whose server needs its
backend directory assembled and a Python environment of its own (numpy below 2). Whatever was
found becomes one `Installation`, so that starting a server need not know which it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from merkit.errors import ServerUnavailableError
from merkit.ort import TELEMETRY_SWITCH
from merkit.serving.deployment import Flavour

SERVER_VARIABLE = "MERKIT_TRITONSERVER"
ENVIRONMENT_VARIABLE = "MERKIT_TRITON_ENV"
ENVIRONMENT_NAME = ".venv-triton"
REQUIREMENTS = (
    "nvidia-pytriton==0.7.0 'numpy<2' onnxruntime av 'opencv-python-headless<5' tokenizers"
)
INSTALL = f"python3 -m venv {ENVIRONMENT_NAME} && {ENVIRONMENT_NAME}/bin/pip install {REQUIREMENTS}"


@dataclass(frozen=True)
class Installation:
    """A Triton server that can be started here."""

    binary: Path
    backends: Path
    """Its backend directory, one folder per backend; for the wheel, a template without stub."""
    stub: Path | None = None
    """The wheel's Python stub, to be copied into the python backend; None for a container's."""
    caches: Path | None = None
    """Its response caches, where the server would not find them by itself."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that the server and its stubs need beside the inherited ones."""

    @property
    def flavour(self) -> Flavour:
        """How ONNX steps run there: by the server's own backend if it has one."""
        return "onnxruntime" if (self.backends / "onnxruntime").is_dir() else "python"


def find_installation(beside: Path) -> Installation:
    """The server to start: $MERKIT_TRITONSERVER, $MERKIT_TRITON_ENV, PATH, or `.venv-triton`
    in the working folder, or in one that holds the bundle `beside`.

    Raises:
        ServerUnavailableError: there is none, or the one named cannot be used.
    """
    if sys.platform != "linux":
        raise ServerUnavailableError(
            f"this is {sys.platform}", "Linux, the only system Triton runs on", "serve from Linux"
        )
    if named := os.environ.get(SERVER_VARIABLE):
        return _from_binary(Path(named))
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return _from_wheel(Path(named).resolve())
    if on_path := shutil.which("tritonserver"):
        return _from_binary(Path(on_path))
    for folder in _homes(beside):
        if (folder / ENVIRONMENT_NAME).is_dir():
            return _from_wheel(folder / ENVIRONMENT_NAME)
    raise ServerUnavailableError(
        f"no Triton server is installed: no tritonserver on PATH, no {ENVIRONMENT_NAME} here",
        f"either, or one named by ${SERVER_VARIABLE} or ${ENVIRONMENT_VARIABLE}",
        f"run: make triton, or: {INSTALL}",
    )


def _homes(beside: Path) -> Iterator[Path]:
    yield Path.cwd()
    yield from beside.resolve().parents


def _from_binary(binary: Path) -> Installation:
    resolved = binary.resolve()
    backends = resolved.parent.parent / "backends"
    if not resolved.is_file() or not os.access(resolved, os.X_OK):
        raise ServerUnavailableError(
            f"{binary} is not an executable file", "tritonserver", f"correct ${SERVER_VARIABLE}"
        )
    if not (backends / "python").is_dir():
        raise ServerUnavailableError(
            f"{backends} holds no python backend",
            "a Triton with its Python backend, which decodes clips",
            "use NVIDIA's full container (the '-py3' image)",
        )
    return Installation(resolved, backends)


def _from_wheel(environment: Path) -> Installation:
    found = sorted(environment.glob("lib/python3.*/site-packages/pytriton/tritonserver"))
    if not found:
        raise ServerUnavailableError(
            f"{environment} holds no nvidia-pytriton", "an environment with it", f"run: {INSTALL}"
        )
    tree, site_packages = found[0], found[0].parent.parent
    version = site_packages.parent.name.removeprefix("python")
    stub = tree / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServerUnavailableError(
            f"nvidia-pytriton has no Python stub for {version}",
            "an environment of Python 3.10 to 3.13",
            f"make {environment.name} with another Python",
        )
    libdir = _library_folder(environment)
    libraries = [str(site_packages / "nvidia_pytriton.libs"), libdir]
    if inherited := os.environ.get("LD_LIBRARY_PATH"):
        libraries.append(inherited)
    variables = {
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PATH": f"{environment / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONNOUSERSITE": "1",
    }
    binary = tree / "bin" / "tritonserver"
    return Installation(binary, tree / "backends", stub, tree / "caches", variables)


def _library_folder(environment: Path) -> str:
    """The folder of the shared libpython that the environment's Python must have."""
    code = (
        "import sysconfig as s; "
        "print(s.get_config_var('LIBDIR'), s.get_config_var('Py_ENABLE_SHARED'), sep='\\n')"
    )
    try:
        command = [str(environment / "bin" / "python"), "-I", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        libdir, shared = done.stdout.splitlines()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ServerUnavailableError(
            f"the Python of {environment} does not run ({error})",
            "a working environment",
            f"make it again: {INSTALL}",
        ) from None
    if shared != "1":
        raise ServerUnavailableError(
            f"the Python of {environment} has no shared libpython",
            "one built with --enable-shared, which Triton's Python backend links to",
            f"make {environment.name} with such a Python, the distribution's for one",
        )
    return libdir


def assemble(installation: Installation, folder: Path) -> tuple[Path, dict[str, str]]:
    """Puts together what a server needs to run merkit's steps.

    Its Python must find this merkit, but never the folder merkit lies in, whose other packages
    (numpy 2, say) would win over its own. So it is given a folder with one link.

    Args:
        installation: the server.
        folder: an empty folder, in use as long as the server runs.

    Returns:
        The backend directory, and the variables to start the server with.
    """
    package = Path(__file__).resolve().parents[1]
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONSTARTUP"}
    variables.setdefault(TELEMETRY_SWITCH, "1")  # for a container's own ONNX Runtime, too
    if installation.stub is None:
        (folder / "merkit").symlink_to(package)
        paths = [str(folder), os.environ.get("PYTHONPATH", "")]
        return installation.backends, variables | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths))
        }
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installation.backends, folder, dirs_exist_ok=True, ignore=ignored)
    stub = folder / "python" / installation.stub.name
    shutil.copy2(installation.stub, stub)
    stub.chmod(0o755)
    # this stub ignores PYTHONPATH: it takes the site-packages of the first python3 on PATH,
    # and the folder of triton_python_backend_utils
    (folder / "python" / "merkit").symlink_to(package)
    return folder, variables | installation.environment
