"""The processes of one run: who writes, who waits, and how they begin.

Several processes that train together all walk through the same stages. Were each to write its
files, they would tear each other's; so one of them, the main process, writes, and the others wait.
A single process, which is the rule, pays for none of this: torch is not even imported here.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from merkit.errors import MerkitError

PATIENCE = timedelta(days=2)  # that processes wait for each other; a stage may run for a day
GRACE = 5.0  # seconds
STARTER = "MERKIT_STARTER"  # in the environment: the process that `launch` runs in


def count() -> int:
    """How many processes train together, as torchrun and `accelerate launch` tell."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def join() -> None:
    """Meets the other processes; the first call connects to them."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        part_at_exit()
        state.wait_for_everyone()


def part_at_exit() -> None:
    """Has this process leave the group in order when it ends. Where the group's threads still ran
    then, a finished run now and then died of it (`terminate called without an active exception`).
    """
    atexit.unregister(_part)
    atexit.register(_part)


def _part() -> None:
    import torch.distributed as group

    with suppress(RuntimeError):  # the others may be gone by now
        if group.is_available() and group.is_initialized():
            group.destroy_process_group()


def end_with_starter() -> None:
    """Ends this process when the one that launched it is gone, however that was killed: orphans
    would go on writing while the same command, given again, begins beside them."""
    starter = int(os.environ.get(STARTER, "0"))

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(0.5)
        os._exit(128 + signal.SIGKILL)

    if starter:
        threading.Thread(target=watch, daemon=True).start()


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Runs `merkit-train ARGUMENTS` in several processes of this machine, over loopback.

    `accelerate launch --cpu --num_processes 2` starts one process and says nothing, and torch's
    launcher buries a one-line error under forty. What they put into the environment is little.

    Raises:
        SystemExit: the main process failed; it has said why.
        MerkitError: another one did, or did not answer to the main one.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    common = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ
    common |= {STARTER: str(os.getpid()), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    command = [sys.executable, "-m", "merkit_training.cli", *arguments]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as said:
        try:
            for rank in map(str, range(processes)):
                environment = common | {"RANK": rank, "LOCAL_RANK": rank}
                quiet = None if rank == "0" else said  # most errors are every process's own
                children.append(subprocess.Popen(command, env=environment, stderr=quiet))
            while any(child.poll() is None for child in children):
                if any(child.poll() for child in children):
                    break
                time.sleep(0.1)
        finally:
            _end(children)
            signal.signal(signal.SIGTERM, before)
        failed = [rank for rank, child in enumerate(children) if child.returncode]
        said.seek(0)
        message = said.read().decode(errors="replace").strip()
    if children[0].returncode > 0:
        raise SystemExit(children[0].returncode)
    if failed:
        raise MerkitError(
            f"process {failed[-1]} of {processes} ended with status "
            f"{children[failed[-1]].returncode} ({message[-2000:] or 'no message'})",
            "all of them to finish",
            "the same command continues",
        )


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Gives processes whose fellow has failed a moment to fail themselves, then ends them."""
    deadline = time.monotonic() + GRACE
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
