"""The host: Python stubs, numpy, shared memory, caches, and the server's own flags.

The worst of these is silent: with numpy 2 the stub of server 24.10 answers with empty outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from math import prod
from pathlib import Path

from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import CLIENT_SHM_OFF, Options, Version
from merkit.lint.repository import Model, Repository, type_name
from merkit.lint.warmup import BYTES

STUB = "triton_python_backend_stub"
DEFAULT_REGION = 1 << 20  # bytes of shared memory that each stub begins with
CONTAINER_SHM = 64 << 20  # bytes of /dev/shm in a container
NUMPY_2_FAILS: Version = (24, 10)
WHEELS = {"0.7.0": (24, 10)}
"""Releases of the nvidia-pytriton wheel, and the server in them."""

NUMPY = rule(
    "numpy-2",
    "warning",
    "numpy 2 in the environment of server 24.10's Python models: their outputs are empty",
    "server 24.10: the stub answers without data and without an error",
)
NO_NUMPY = rule(
    "no-numpy",
    "error",
    "an environment without numpy, which every Python model imports",
    "python_backend README, Requirements",
    "numpy",
)
PYTHON = rule(
    "stub-python",
    "error",
    "an environment of another Python than the stub's",
    "python_backend README, Building Custom Python Backend Stub; release notes: 3.10 up to 24.10, "
    "3.12 from 24.11",
)
EXECUTION_ENV = rule(
    "execution-env",
    "error",
    "an EXECUTION_ENV_PATH that is not there",
    "python_backend README, Packaging the Conda Environment",
    "",
)
SHARED_MEMORY = rule(
    "shm-size",
    "advice",
    "Python models need room in /dev/shm, of which containers give 64 MB",
    "python_backend README, Shared Memory; one 60 MB request grew a stub's region to 88 MB",
)
SHARED_MEMORY_FULL = rule(
    "shm-full",
    "warning",
    "Python models that need more than the 64 MB of /dev/shm that containers give",
    "python_backend README, Shared Memory",
)
CACHE = rule(
    "cache-flag",
    "warning",
    "a response cache that the server is not told to keep: nothing is ever cached",
    "Triton user guide, Triton Response Cache: --cache-config; server 24.10 loads it",
)
CACHE_ADVICE = rule(
    "cache-advice",
    "advice",
    "a response cache works only in a server started with --cache-config",
    "Triton user guide, Triton Response Cache",
)
CLIENT_SHM = rule(
    "client-shm",
    "advice",
    "clients' shared memory is refused since 26.04 unless the server is told to allow it",
    "Triton protocol, Shared-Memory Extension: --allow-client-shm",
)
NOTHING_LOADED = rule(
    "nothing-loaded",
    "warning",
    "explicit model control without a model to load at start",
    "Triton user guide, Model Management, Model Control Mode EXPLICIT",
)


def check(repository: Repository, options: Options, _skip: Skip) -> Iterator[Finding]:
    """What the repository's models need of their host."""
    pythons = [model for model in repository.runners() if model.backend == "python"]
    if pythons:
        yield from _shared_memory(pythons)
        if options.environment is not None:
            yield from _environment(options.environment, options)
    for model in pythons:
        yield from _execution_environment(model)
    yield from _cache(repository, options)
    yield from _flags(repository, options)


def _shared_memory(models: list[Model]) -> Iterator[Finding]:
    stubs = sum(sum(max(g.count, 1) for g in m.config.instance_group) or 1 for m in models)
    least = sum(_region(model) for model in models)
    size = f"{least / (1 << 20):.0f} MB"
    found = f"{stubs} instances of Python models hold at least {size} of shared memory"
    action = "start the container with --shm-size=1g, or mount memory at /dev/shm"
    chosen = SHARED_MEMORY_FULL if least > CONTAINER_SHM else SHARED_MEMORY
    yield chosen.at("", "/dev/shm", found, action)


def _region(model: Model) -> int:
    """Bytes at least: a region for each instance, as large as its tensors of known size."""
    count = sum(max(group.count, 1) for group in model.config.instance_group) or 1
    held = 0
    for tensor in (*model.config.input, *model.config.output):
        width = BYTES.get(type_name(tensor), 0)
        if all(dim > 0 for dim in tensor.dims):
            held += width * prod(tensor.dims) * max(model.config.max_batch_size, 1)
    return count * max(held, DEFAULT_REGION)


def _environment(environment: Path, options: Options) -> Iterator[Finding]:
    folders = sorted(environment.glob("lib/python3.*/site-packages"))
    if not folders:
        found = f"{environment} holds no lib/python3.*/site-packages"
        yield NO_NUMPY.at("", "environment", found, "give a Python environment")
        return
    python = folders[0].parent.name.removeprefix("python")
    installed = _versions(folders[0])
    server = options.server_version or WHEELS.get(installed.get("nvidia-pytriton", ""))
    numpy = installed.get("numpy", "")
    if not numpy:
        found = f"{environment} has no numpy"
        yield NO_NUMPY.at("", "environment", found, f"run: {environment}/bin/pip install 'numpy<2'")
    elif int(numpy.split(".")[0]) >= 2 and server is not None and server <= NUMPY_2_FAILS:
        found = f"numpy {numpy} with server {'.'.join(map(str, server))}"
        yield NUMPY.at("", "environment", found, f"run: {environment}/bin/pip install 'numpy<2'")
    stubs = folders[0] / "pytriton" / "tritonserver" / "python_backend_stubs"
    if stubs.is_dir():
        fits = (stubs / python / STUB).is_file()
        wanted = ", ".join(sorted(path.name for path in stubs.iterdir()))
    elif server is not None:
        wanted = "3.12" if server >= (24, 11) else "3.10" if server >= (23, 3) else "3.8"
        fits = python == wanted
    else:
        return
    if not fits:
        found = f"Python {python}, and the stub is of {wanted}"
        action = f"make the environment with Python {wanted}, or build a stub of your own"
        yield PYTHON.at("", "environment", found, action)


def _versions(site_packages: Path) -> dict[str, str]:
    """Installed distributions by their lower-case name."""
    found = metadata.distributions(path=[str(site_packages)])
    return {str(d.metadata["Name"]).lower().replace("_", "-"): d.version for d in found}


def _execution_environment(model: Model) -> Iterator[Finding]:
    path = model.parameter("EXECUTION_ENV_PATH")
    if not path or re.match(r"[a-z0-9]+://", path):
        return
    real = Path(path.replace("$$TRITON_MODEL_DIRECTORY", str(model.path)))
    if not real.exists():
        found, action = f"{path} is not there", "pack the environment with conda-pack to that path"
        yield EXECUTION_ENV.at(model.name, "parameters EXECUTION_ENV_PATH", found, action)


def _cache(repository: Repository, options: Options) -> Iterator[Finding]:
    cached = [m.name for m in repository.readable() if m.config.response_cache.enable]
    if not cached:
        return
    action = "start the server with --cache-config local,size=104857600"
    found = f"{', '.join(cached)} want their answers cached"
    if options.server_args is None:
        yield CACHE_ADVICE.at("", "response_cache", found, action)
    elif not {"cache-config", "response-cache-byte-size"} & set(options.server_args):
        yield CACHE.at("", "response_cache", f"{found}, and no --cache-config is given", action)


def _flags(repository: Repository, options: Options) -> Iterator[Finding]:
    args = options.server_args
    allowed = args is not None and args.get("allow-client-shm", "").lower() in ("true", "1")
    version = options.server_version
    if version is not None and version >= CLIENT_SHM_OFF and not allowed:
        found = f"server {'.'.join(f'{part:02d}' for part in version)} refuses it by default"
        action = "add --allow-client-shm=true if clients on this host register regions"
        yield CLIENT_SHM.at("", "server", found, action)
    explicit = args is not None and args.get("model-control-mode") == "explicit"
    if explicit and args is not None and "load-model" not in args and repository.models:
        found = "--model-control-mode=explicit without --load-model"
        yield NOTHING_LOADED.at("", "server", found, "add --load-model=NAME, or load by a call")
