"""The processes of one run: who writes, who waits, and how they begin.

Several processes that train together all walk through the same stages. Were each to write its
files, they would tear each other's; so one of them, the main process, writes, and the others wait.
A single process, which is the rule, pays for none of this: torch is not even imported here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta

from merkit.errors import MerkitError

PATIENCE = timedelta(days=2)  # that processes wait for each other; a stage may run for a day


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
        state.wait_for_everyone()


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Runs `merkit-train ARGUMENTS` in several processes of this machine, over loopback.

    `accelerate launch --cpu --num_processes 2` starts one process and says nothing, so this asks
    torch's own launcher, which Accelerate understands as well.

    Raises:
        MerkitError: one of them failed; it has said why.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    command += ["-m", "merkit_training.cli", *arguments]
    threads = max(1, (os.cpu_count() or 1) // processes)
    ended = subprocess.run(command, env={"OMP_NUM_THREADS": str(threads)} | os.environ, check=False)
    if ended.returncode:
        raise MerkitError(
            f"one of {processes} processes failed (status {ended.returncode})",
            "all of them to finish",
            "read its message above; the same command continues",
        )
