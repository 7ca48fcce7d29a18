"""The same extraction over several processes, or over the machines of a Ray cluster.

One encoder seldom fills a machine, and a corpus of videos takes days. Processes share nothing but
the cache folder: each takes every n-th chunk, and what a chunk yields does not depend on who
computes it, so the files come out the same byte for byte. On a cluster, clips, encoder and cache
must lie on storage that every machine sees under the same path.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from merkit.errors import InferenceError, MerkitError, MissingExtraError
from merkit_training.data import ClipRecord
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

    try:
        if state.is_main_process:
            try:
                return extract(clips, asked, lead)
            finally:
                if not sent:  # an error: the others must not wait for it
                    broadcast_object_list([None])
        received: list[Any] = [None]
        broadcast_object_list(received)
        if received[0] is not None:
            share(asked, make_extractor(asked.encoder), received[0])
        return None
    finally:
        state.destroy_process_group()


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
    report: Report | None = None
    errors: list[MerkitError] = []
    while not errors:
        running = [process for process in processes if process.is_alive()]
        while not told.empty():
            value = told.get()
            if isinstance(value, MerkitError):
                errors.append(value)
            else:
                report = value
        if not running or any(process.exitcode for process in processes):
            break
        running[0].join(0.1)
    return report, errors


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
    if report is not None:
        told.put(report)


def with_ray(clips: ClipList, asked: Extraction, count: int) -> Report:
    """Extracts by Ray Data with `count` actors, on the cluster at RAY_ADDRESS, else on this
    machine alone.

    Raises:
        MissingExtraError: ray is not installed.
        and what `extract` raises, in whichever actor.
    """

    def spread(own: Extraction, _: Extractor, chunks: Chunks) -> Tally:
        return _by_ray(own, chunks, count)

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when ray is imported
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise MissingExtraError.of("ray", "ray") from None
    whole = tuple(
        replace(clip, path=_absolute(clip.path), faces=_absolute(clip.faces))
        for clip in clips.clips
    )
    source = asked.encoder.source
    run, mark, step = source.rpartition(":")
    if Path(source).is_dir() or (mark and Path(run).is_dir()):
        source = f"{Path(run).absolute()}:{step}" if mark else str(Path(source).absolute())
    absolute = replace(
        asked,
        encoder=replace(asked.encoder, source=source),
        out=asked.out.absolute(),
        cache=asked.cache_folder.absolute(),
    )
    return extract(replace(clips, clips=whole), absolute, spread)


def _by_ray(asked: Extraction, chunks: Chunks, count: int) -> Tally:
    import ray
    import ray.data

    if not chunks:
        return Tally()
    _start_ray(count)
    try:
        rows = [
            {"jobs": json.dumps([[job.key, job.clip.to_json()] for job in chunk])}
            for chunk in chunks
        ]
        gpus = 1 if asked.encoder.device.startswith("cuda") else None
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _RayWorker,
            fn_constructor_args=(asked,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=asked.encoder.threads,
            num_gpus=gpus,
        )
        tally = Tally()
        total = sum(map(len, chunks))
        with tqdm(total=total, desc=f"features ({count} actors)", unit="clip") as bar:
            for row in done.iter_rows():
                if error := MerkitError.from_wire(row["error"]):
                    raise error
                tally += Tally(**json.loads(row["tally"]))
                bar.update(row["clips"])
        return tally
    except ray.exceptions.RayError as error:
        raise InferenceError.of("an actor of Ray", error) from error
    finally:
        ray.shutdown()


def _start_ray(count: int) -> None:
    import ray

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        # one machine: nothing listens beyond it, and arrays do not travel
        options |= {
            "num_cpus": max(count, os.cpu_count() or 1),
            "include_dashboard": False,
            "_node_ip_address": LOOPBACK,
            "object_store_memory": 100 << 20,
        }
    ray.init(**options)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


class _RayWorker:
    """An actor: builds the encoder once, then computes the chunks it is handed."""

    def __init__(self, asked: Extraction) -> None:
        self.asked = asked
        self.extractor: Extractor | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        told: dict[str, list[Any]] = {"tally": [], "error": [], "clips": []}
        for text in batch["jobs"]:
            chunk = [Job(key, ClipRecord.from_json(c)) for key, c in json.loads(str(text))]
            tally, error = Tally(), ""
            try:
                self.extractor = self.extractor or make_extractor(self.asked.encoder)
                tally = compute_share(self.asked, self.extractor, [chunk])
            except MerkitError as raised:
                error = raised.to_wire()
            told["tally"].append(json.dumps(asdict(tally)))
            told["error"].append(error)
            told["clips"].append(len(chunk))
        return told


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
