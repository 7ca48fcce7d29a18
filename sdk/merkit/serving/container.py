"""What the container runs: Triton, shut by default, on the repository that lies there.

NVIDIA's image starts a server with every port open and every model loadable by anybody. This
entry reads what the host decided out of the environment and becomes tritonserver:

    MERKIT_REPOSITORY      the model repository, a folder or an object store; default: /models
    MERKIT_TLS_CERT, MERKIT_TLS_KEY, MERKIT_CLIENT_CA, MERKIT_TOKEN_FILE, MERKIT_ADMIN_KEY_FILE
                           files: see `merkit.serving.guard.Protection`
    MERKIT_TRACE_URL, MERKIT_TRACE_RATE
                           see `merkit.serving.guard.Tracing`
    MERKIT_TRUSTED_KEYS    public keys, one of which must have signed each bundle there

Each bundle's files are hashed first: one that was changed, or failed its gate, is not served.

Further arguments are tritonserver's own and come last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from merkit.admission import TRUSTED_KEYS, configured_keys
from merkit.errors import InvalidInputError, MerkitError
from merkit.serving.admitted import admit_repository
from merkit.serving.control import entries_below
from merkit.serving.guard import METRICS, Protection, Tracing

REPOSITORY = "/models"
EXIT_SECONDS = 20
"""That requests under way get when the container is told to stop; the chart's grace is longer."""


def command(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> list[str]:
    """The whole command line of tritonserver.

    Raises:
        InvalidInputError: files and settings that cannot be used.
        BundleError: a bundle in the repository may not run here, see `admit_repository`.
    """

    def file(name: str) -> Path | None:
        return Path(stated) if (stated := environment.get(f"MERKIT_{name}")) else None

    protection = Protection(
        certificate=file("TLS_CERT"),
        key=file("TLS_KEY"),
        client_ca=file("CLIENT_CA"),
        token_file=file("TOKEN_FILE"),
        admin_key_file=file("ADMIN_KEY_FILE"),
    )
    protection.check_pair()
    tracing: list[str] = []
    if url := environment.get("MERKIT_TRACE_URL"):
        tracing = Tracing(url, _rate(environment.get("MERKIT_TRACE_RATE") or "1000")).flags()
    repository = environment.get("MERKIT_REPOSITORY") or REPOSITORY
    models = _models(repository)
    _admit(repository, configured_keys(environment))
    return [
        "tritonserver",
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        *METRICS,
        *protection.flags(),
        *tracing,
        *arguments,
    ]


def _models(repository: str) -> list[str]:
    """What to load: entry points, which bring their steps; of an object store, everything."""
    if "://" in repository:
        return ["*"]
    if entries := entries_below(Path(repository)):
        return entries
    raise InvalidInputError(
        f"{repository} holds no entry point of a bundle",
        "a rendered repository",
        "mount one there, or set MERKIT_REPOSITORY",
    )


def _admit(repository: str, keys: Sequence[str] | None) -> None:
    if "://" not in repository:
        admit_repository(Path(repository), keys)
    elif keys is not None:
        raise InvalidInputError(
            f"{TRUSTED_KEYS} is set, and {repository} cannot be looked into before it is served",
            "a folder, whose signatures can be checked",
            "fetch the repository in an init container, or leave the keys out",
        )


def _rate(text: str) -> int:
    if not text.isdecimal():
        raise InvalidInputError(
            f"MERKIT_TRACE_RATE is {text!r}", "a whole number", "trace one of so many requests"
        )
    return int(text)


def main() -> None:
    """Becomes tritonserver, so that signals and the exit status are the server's own."""
    try:
        line = command(os.environ, sys.argv[1:])
        os.execvp(line[0], line)
    except (MerkitError, OSError) as error:
        sys.exit(f"merkit: {error}")


if __name__ == "__main__":
    main()
