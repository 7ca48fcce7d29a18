"""Starts a Triton server on a bundle, and leaves nothing behind when it ends.

Started by hand, Triton needs a repository that suits its backends, a Python path for its stubs,
free ports and somebody who waits; killed carelessly, it leaves stub processes and shared memory.
`Server` does both ends.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from merkit.admission import admit
from merkit.bundle import Bundle, open_bundle
from merkit.errors import InferenceError, InvalidInputError, MerkitError, ServerUnavailableError
from merkit.lint import Options, refuse_errors, server_arguments
from merkit.serving.control import entries_below
from merkit.serving.deployment import DEFAULT, Deployment, StepDeployment
from merkit.serving.guard import METRICS, PLAIN, Protection, Tracing
from merkit.serving.render import render
from merkit.serving.scratch import ScratchFolder
from merkit.serving.tritonserver import Installation, assemble, find_installation

HOST = "127.0.0.1"
CACHE_BYTES = 256 << 20  # of responses, where a step's are kept
POLL_SECONDS = 0.05
EXIT_SECONDS = 5  # that Triton gives requests under way when it is told to end
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL
STUB_SECONDS = 10.0  # stubs notice within 1-4 s that their server is gone
SPAWN = (  # the kernel kills the server when merkit dies; a stuck one would ignore SIGTERM
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)
Served = str | os.PathLike[str] | Bundle
FAILED_MODEL = re.compile(r"failed to load '([^']+)' version \d+: ([^\n]*)")


@dataclass(frozen=True)
class ServeOptions:
    """How to run a server."""

    host: str = HOST
    """Address to bind to. Beyond loopback, protect it."""
    protection: Protection = PLAIN
    """TLS, a token, and who may administer the server; default: nobody may."""
    tracing: Tracing | None = None
    """Where to send spans; None: nowhere."""
    grpc_port: int = 0
    """0 picks a free port, here and below."""
    http_port: int = 0
    metrics_port: int = 0
    threads: int = 0
    """Intra-op threads of each ONNX session; 0 means one for each core."""
    decoders: int = 1
    """Copies of the steps that decode clips and find faces."""
    versioned: bool = False
    """Name models after what they hold; always where several bundles are served."""
    explicit: bool = False
    """Let bundles be loaded and unloaded while it runs; whoever has the admin key may."""
    deployment: Deployment = DEFAULT
    """This host's choices; a server without ONNX Runtime's backend runs its steps in Python."""
    start_seconds: float = 120.0
    """How long the server may take until it is ready."""
    verbose: int = 0
    """Triton's --log-verbose level."""


class Server:
    """A running Triton on one bundle; a context manager.

    Attributes:
        grpc, http, metrics: addresses, the first as `merkit.connect` takes it.
        log: the server's log file, which is removed with the server.
    """

    def __init__(
        self,
        bundle: Served | Sequence[Served],
        options: ServeOptions = ServeOptions(),
        installation: Installation | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Starts the server and waits until it is ready.

        Args:
            bundle: an opened bundle, or its folder; or several.
            options: ports and limits.
            installation: which server; None looks for one.
            progress: called with a line of text about once a second while waiting.

        Raises:
            BundleError: the bundle cannot be opened, failed its gate, or is not signed by a key
                that MERKIT_TRUSTED_KEYS names.
            ServerUnavailableError: no server is installed, a port is taken, or it is not ready
                in time.
            InferenceError: the server gave up; the message holds the telling lines of its log.
        """
        self.options = options
        given = [bundle] if isinstance(bundle, str | os.PathLike | Bundle) else bundle
        opened = [one if isinstance(one, Bundle) else open_bundle(one) for one in given]
        self.bundles = [admit(one) for one in opened]
        self.bundle = self.bundles[0]
        self.installation = installation or find_installation(self.bundle.root)
        options.protection.check_pair()
        ports = (options.grpc_port, options.http_port, options.metrics_port)
        grpc, http_, metrics = free_ports(options.host, ports)
        self._address = (options.host, http_)
        scheme = "grpcs" if options.protection.certificate else "grpc"
        self.grpc = f"{scheme}://{options.host}:{grpc}"
        self.http = f"http://{options.host}:{http_}"
        self.metrics = f"http://{options.host}:{metrics}/metrics"
        self._scratch = ScratchFolder()
        self.folder = self._scratch.path
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        try:
            command, environment = self._prepare((grpc, http_, metrics))
            self._spawn(command, environment)
            self._wait_ready(progress)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Blocks until the server ends, and returns its exit status."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """Ends server and stubs (SIGTERM, after a grace SIGKILL) and removes the temporary files.

        Safe to call twice.
        """
        if self._stopped:
            return
        self._stopped = True
        if self._process is not None:
            _end(self._process)
        self._scratch.remove()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _prepare(self, ports: Sequence[int]) -> tuple[list[str], dict[str, str]]:
        options, installation = self.options, self.installation
        deployment = self._deployment()
        repository = self.folder / "models"
        versioned = options.versioned or len(self.bundles) > 1
        for bundle in self.bundles:
            render(bundle, repository, deployment, versioned=versioned)
        support = self.folder / "support"
        support.mkdir()
        backends, environment = assemble(installation, support)
        command = [
            str(installation.binary),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self.folder.name}",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            f"--log-verbose={options.verbose}",
        ]
        names = [step.name for bundle in self.bundles for step in bundle.contract.steps]
        if any(deployment.of(name).response_cache for name in names):
            command.append(f"--cache-config=local,size={CACHE_BYTES}")
            caches = installation.caches
            command += [f"--cache-directory={caches}"] if caches else []
        if options.explicit:
            command.append("--model-control-mode=explicit")
            command += [f"--load-model={name}" for name in entries_below(repository)]
        command += [*METRICS, *options.protection.flags()]
        command += options.tracing.flags() if options.tracing else []
        for service, port in zip(("grpc", "http", "metrics"), ports, strict=True):
            command += [f"--{service}-address={options.host}", f"--{service}-port={port}"]
        flags = server_arguments(shlex.join(command))
        refuse_errors(repository, Options(server_args=flags, graphs=False))
        return command, environment

    def _deployment(self) -> Deployment:
        """The choices asked for, but nothing that the server at hand cannot run."""
        options, chosen = self.options, self.options.deployment
        steps = dict(chosen.steps)
        for name in ("decode", "faces"):
            if options.decoders > 1:
                own = steps.get(name, StepDeployment())
                steps[name] = replace(own, instances=options.decoders)
        if self.installation.flavour == "python":
            here: dict[str, Any] = {"flavour": None, "kind": "auto", "gpus": ()}  # of CPUs alone
            steps = {name: replace(own, **here) for name, own in steps.items()}
            chosen = replace(chosen, flavour="python")
        threads = options.threads or chosen.threads or len(os.sched_getaffinity(0))
        return replace(chosen, threads=threads, steps=steps)

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the process from a thread that outlives it.

        The kernel's parent-death signal follows the *thread* that forked, so a caller's worker
        thread that ends would take the server with it.
        """
        started = threading.Event()
        failure: list[OSError] = []
        launcher = [sys.executable, "-I", "-S", "-c", SPAWN, str(os.getpid()), *command]

        def run() -> None:
            try:
                with self.log.open("wb") as log:
                    self._process = subprocess.Popen(
                        launcher,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=dict(environment),
                        cwd=self.folder,  # the stubs import from their working folder first
                        start_new_session=True,  # Ctrl-C reaches merkit, which then ends all
                    )
            except OSError as error:
                failure.append(error)
            finally:
                started.set()
            if self._process is not None:
                self._process.wait()

        threading.Thread(target=run, name="merkit-server", daemon=True).start()
        started.wait()
        if failure:
            raise ServerUnavailableError(
                f"{command[0]} cannot be started ({failure[0]})",
                "a Triton server that runs here",
                "install it again",
            )

    def _wait_ready(self, progress: Callable[[str], None] | None) -> None:
        begin = time.monotonic()
        told = 0.0
        while not _answers(*self._address):
            waited = time.monotonic() - begin
            if not self.running():
                raise self._death()
            if waited > self.options.start_seconds:
                raise ServerUnavailableError(
                    f"Triton was not ready after {waited:.0f} s; its log ends:\n{self.tail()}",
                    f"ready within {self.options.start_seconds:.0f} s",
                    "allow more time, or read the log above",
                )
            if progress and waited - told >= 1:
                told = waited
                progress(f"waiting for Triton ({waited:.0f} s)")
            time.sleep(POLL_SECONDS)

    def _death(self) -> MerkitError:
        text = self.log.read_text("utf-8", "replace")
        for line in reversed(text.splitlines()):
            if (error := MerkitError.from_wire(line)) is not None:
                return error
        if "Address already in use" in text:
            return ServerUnavailableError(
                f"a port was taken while Triton started:\n{telling_lines(text)}",
                "free ports",
                "start it again, or choose other ports",
            )
        return InferenceError(
            f"Triton gave up while starting:\n{telling_lines(text)}",
            "a server that loads every model",
            "read the lines above; merkit verify checks the bundle itself",
        )

    def tail(self) -> str:
        """The lines of the log that say why."""
        return telling_lines(self.log.read_text("utf-8", "replace"))


def telling_lines(log: str, most: int = 12) -> str:
    """What in a Triton log says why: the reason of each model that failed, else the errors."""
    reasons = [f"{name}: {why.split(chr(92) + 'n')[0]}" for name, why in FAILED_MODEL.findall(log)]
    lines = log.splitlines()
    errors = [line for line in lines if line[:2] in ("E0", "E1") or line.startswith("error:")]
    return "\n".join(line[:400] for line in (reasons or errors or lines)[-most:])


def free_ports(host: str, wanted: Sequence[int]) -> list[int]:
    """`wanted`, with each 0 replaced by a port that is free now.

    Raises ServerUnavailableError when a port that was asked for is taken.
    """
    if not host:  # to sockets the empty name is every interface
        raise InvalidInputError("the host is ''", "an address of this machine", "give one")
    with contextlib.ExitStack() as stack:
        ports = []
        for port in wanted:
            if not 0 <= port < 65536:
                raise InvalidInputError(f"port {port}", "0 to 65535", "choose another port")
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                raise ServerUnavailableError(
                    f"{host}:{port} cannot be bound ({error.strerror})",
                    "an address of this machine with a free port",
                    "choose another, or stop what listens there",
                ) from None
            ports.append(int(listener.getsockname()[1]))
        return ports


def _answers(host: str, port: int) -> bool:
    """Whether all models behind Triton's HTTP port are ready."""
    connection = http.client.HTTPConnection(host, port, timeout=1)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and its group: SIGTERM first, SIGKILL for what outlives the grace."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        if process.poll() is None:
            process.kill()
            process.wait()
    deadline = time.monotonic() + STUB_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(POLL_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
