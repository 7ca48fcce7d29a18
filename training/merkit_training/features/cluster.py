"""The same extraction over the machines of a Ray cluster, by Ray Data.

An actor builds the encoder once and is handed one chunk after another; features go into the cache,
not over the wire. So clips, encoder and cache must lie on storage that every machine sees under
the same path.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from merkit.errors import InferenceError, MerkitError, MissingExtraError
from merkit_training.data import ClipRecord
from merkit_training.features.clips import ClipList, Job
from merkit_training.features.engine import Tally
from merkit_training.features.extract import Extraction, compute_share, extract
from merkit_training.features.extractor import Extractor, make_extractor
from merkit_training.features.report import Report
from merkit_training.features.spread import LOOPBACK

Chunks = Sequence[Sequence[Job]]


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


def _by_ray(own: Extraction, chunks: Chunks, count: int) -> Tally:
    import ray
    import ray.data

    if not chunks:
        return Tally()

    class Worker(_RayWorker):  # carries its own task: Ray cannot restart actors with arguments
        asked = own

    _start_ray(count)
    try:
        rows = [
            {"jobs": json.dumps([[job.key, job.clip.to_json()] for job in chunk])}
            for chunk in chunks
        ]
        gpus = 1 if own.encoder.device.startswith("cuda") else None
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=own.encoder.threads,
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
        # one machine: nothing listens beyond it, arrays do not travel, and actors are no nicer
        # than who asked for them (Ray's 15 starved them on a busy machine)
        os.environ.setdefault("RAY_worker_niceness", "0")
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

    asked: ClassVar[Extraction]

    def __init__(self) -> None:
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
