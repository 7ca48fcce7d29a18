"""What lint is told about the server that a repository is meant for.

Some of a repository's faults depend on the server: its version, its flags, its GPUs, the Python
environment of its stubs. What is not told is not judged.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from merkit.errors import InvalidInputError

Version = tuple[int, int]
CLIENT_SHM_OFF: Version = (26, 4)  # from here on --allow-client-shm defaults to false


@dataclass(frozen=True)
class Options:
    """The server that a repository is linted for; None or empty means: not known."""

    server_version: Version | None = None
    """Release of the container, (24, 10) for 24.10."""
    server_args: Mapping[str, str] | None = None
    """tritonserver's flags without dashes; see `server_arguments`."""
    gpus: int | None = None
    """How many GPUs the host has."""
    environment: Path | None = None
    """The Python environment that Python models run in."""
    backends: frozenset[str] = field(default_factory=frozenset)
    """Names of backends that are installed beside Triton's own."""
    graphs: bool = True
    """Whether to read ONNX files; a bundle's have been proven before."""

    @property
    def completes_configs(self) -> bool:
        """Whether the server fills in what a config leaves out."""
        args = self.server_args or {}
        strict = args.get("strict-model-config", "false").lower()
        return "disable-auto-complete-config" not in args and strict not in ("true", "1")


UNKNOWN_SERVER = Options()


def server_version(text: str) -> Version:
    """(24, 10) out of "24.10"; InvalidInputError for anything else."""
    match = re.fullmatch(r"(\d{2})\.(\d{1,2})(-py3)?", text.strip())
    if match is None or not 1 <= int(match[2]) <= 12:
        raise InvalidInputError(
            f"the server version {text!r}", "a container release such as 24.10", "correct it"
        )
    return int(match[1]), int(match[2])


def server_arguments(text: str) -> dict[str, str]:
    """Flags of a tritonserver command line: `--name=value` and `--name value` alike.

    Of a flag given several times, the values joined by newlines.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidInputError(
            f"the server's arguments {text!r} ({error})", "a shell command line", "correct it"
        ) from None
    flags: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            flags[name] = "\n".join(filter(None, (flags.get(name, ""), value)))
        elif name:
            flags[name] = "\n".join(filter(None, (flags.get(name, ""), word)))
            name = ""
    return flags
