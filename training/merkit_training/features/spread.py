"""The same extraction over several processes of a machine, or over what `accelerate launch` starts.

One encoder seldom fills a machine, and a corpus of videos takes days. Processes share nothing but
the cache folder: each takes every n-th chunk, and what a chunk yields does not depend on who
computes it, so the files come out the same byte for byte.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from merkit.errors import InferenceError, MerkitError
from merkit_training.features.clips import ClipList, Job
from merkit_training.features.engine import Tally
from merkit_training.features.extract import Extraction, compute_share, extract
from merkit_training.features.extractor import Extractor, make_extractor
from merkit_training.features.report import Report

Chunks = Sequence[Sequence[Job]]
LOOPBACK = "127.0.0.1"


def within_launch(clips: ClipList, asked: Extraction) -> Report | None:
    """Extracts in this process, or, under `accelerate launch`, in all that it started.

    Returns:
        The report in the first process, None in the others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return extract(clips, asked)
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object

    state = PartialState(cpu=asked.encoder.device == "cpu")
    sent = False

    def share(own: Extraction, extractor: Extractor, chunks: Chunks) -> Tally:
        mine = chunks[state.process_index :: state.num_processes]
        total = sum(map(len, mine))
        told = f"features (1 of {state.num_processes} processes)"
        quiet = not state.is_main_process
        with tqdm(total=total, desc=told, unit="clip", mininterval=1, disable=quiet) as bar:
            tally = compute_share(own, extractor, mine, bar.update)
        gathered: list[Tally] = gather_object([tally])
        return sum(gathered, Tally())

    def lead(own: Extraction, extractor: Extractor, chunks: Chunks) -> Tally:
        nonlocal sent
        sent = True
        broadcast_object_list([chunks])
        return share(own, extractor, chunks)

    report = None
    if state.is_main_process:
        try:
            report = extract(clips, asked, lead)
        finally:
            if not sent:  # an error: the others must not wait for it
                broadcast_object_list([None])
    else:
        received: list[Any] = [None]
        broadcast_object_list(received)
        if received[0] is None:
            return None
        share(asked, make_extractor(asked.encoder), received[0])
    state.wait_for_everyone()  # who left earlier would break what others still read from it
    with suppress(RuntimeError):  # the first process may be gone by now
        state.destroy_process_group()
    return report


def with_processes(clips: ClipList, asked: Extraction, count: int) -> Report:
    """Extracts in `count` processes of this machine, which are spawned for it.

    Raises:
        what `extract` raises, whichever process it arose in; InferenceError if one died.
    """
    context = get_context("spawn")  # cv2 hangs in forks of a process with threads
    told = context.SimpleQueue()
    port = _free_port()
    processes = [
        context.Process(target=_process, args=(rank, count, port, clips, asked, told), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        report, errors = _wait(processes, told)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    if errors:
        raise errors[0]
    if report is None:
        codes = [process.exitcode for process in processes]
        raise InferenceError(
            f"a process ended before its work was done (exit codes {codes})",
            "processes that run to the end",
            "give the same command again, with fewer processes if memory is short",
        )
    return report


def _wait(processes: Sequence[Any], told: Any) -> tuple[Report | None, list[MerkitError]]:
    """What the processes told; returns as soon as one failed."""
    values: list[Report | MerkitError] = []
    while not any(isinstance(value, MerkitError) for value in values):
        running = [process for process in processes if process.is_alive()]
        failed = any(process.exitcode for process in processes)
        while not told.empty():  # after the look at the processes: what they told last counts
            values.append(told.get())
        if failed or not running:
            break
        running[0].join(0.1)
    reports = [value for value in values if isinstance(value, Report)]
    errors = [value for value in values if isinstance(value, MerkitError)]
    return reports[0] if reports else None, errors


def _process(
    rank: int, count: int, port: int, clips: ClipList, asked: Extraction, told: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
    }
    try:
        report = within_launch(clips, asked)
    except MerkitError as error:
        told.put(error)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # the parent, interrupted too, says so
        raise SystemExit(130) from None
    if report is not None:
        told.put(report)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
