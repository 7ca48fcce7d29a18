"""From a list of clips to cached features: decoded ahead, batched by length, in bounded memory.

Batches change a feature's last bits, so a batch must not depend on who computes it or on what a
kill left behind. Contents are cut into chunks of fixed size in fixed order; a chunk is the unit
of work of every process, actor and resumption, and its batches depend on its own clips alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from merkit.errors import InferenceError, MerkitError, MissingExtraError
from merkit_training.features.cache import FeatureCache
from merkit_training.features.clips import Job
from merkit_training.features.extractor import Extractor, Feature
from merkit_training.features.material import Material, read_material

CHUNK = 32
"""Clips decoded together: what memory holds at most twice."""
DECODERS = 2

T = TypeVar("T")


@dataclass
class Tally:
    """What a process did; adds up over processes."""

    computed: int = 0  # clips
    slots: int = 0  # of all batches: clips times the longest
    filled: int = 0  # of these, what is no padding
    failed: dict[str, str] = field(default_factory=dict)  # by key: why it could not be read

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.computed + other.computed,
            self.slots + other.slots,
            self.filled + other.filled,
            self.failed | other.failed,
        )

    @property
    def padding(self) -> float:
        """Share of the batches that was padding."""
        return 1 - self.filled / self.slots if self.slots else 0.0


def chunked(items: Sequence[T], size: int = CHUNK) -> list[Sequence[T]]:
    """`items` in runs of `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def compute(
    chunks: Sequence[Sequence[Job]],
    extractor: Extractor,
    cache: FeatureCache,
    *,
    frames: bool,
    batch: int,
    progress: Callable[[int], object] = lambda _: None,
) -> Tally:
    """Fills the cache with what these chunks lack of it.

    Args:
        chunks: this process's share.
        extractor: the encoder.
        cache: where features go, each as soon as its batch is done.
        frames: whether features over time are wanted too.
        batch: clips in a batch at most.
        progress: told how many clips are done.

    Raises:
        InferenceError: the encoder failed, or gave numbers that are not finite.
    """
    tally = Tally()
    with _Ahead(extractor) as ahead:
        for chunk, pending in ahead.decoded(chunks, lambda job: not cache.has(job.key, frames)):
            tally += _chunk(chunk, pending, extractor, cache, frames, batch)
            progress(len(chunk))
    return tally


def batches(lengths: Sequence[int], most: int, padding: float) -> list[list[int]]:
    """Positions in batches of similar length, shortest first.

    Args:
        lengths: of each clip, as the encoder measures.
        most: clips in a batch.
        padding: the greatest share of a batch that may be padding.
    """
    made: list[list[int]] = []
    held = 0
    for position in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[position]
        size = len(made[-1]) + 1 if made else 0
        fits = 0 < size <= most and 1 - (held + length) / max(1, size * length) <= padding
        if fits:
            made[-1].append(position)
            held += length
        else:
            made.append([position])
            held = length
    return made


class _Ahead:
    """Decodes the next chunk while one is computed."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.pool = ThreadPoolExecutor(DECODERS)

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def read(self, job: Job) -> Future[Material | MerkitError]:
        return self.pool.submit(self._read, job)

    def _read(self, job: Job) -> Material | MerkitError:
        e = self.extractor
        try:
            return read_material(job.clip, e.reads_of(job.clip), e.pictures, e.preprocessing)
        except MissingExtraError:
            raise
        except MerkitError as error:
            return error

    def decoded(
        self, chunks: Sequence[Sequence[Job]], lacking: Callable[[Job], bool]
    ) -> Iterator[tuple[Sequence[Job], dict[str, Material | MerkitError]]]:
        """Each chunk with what is in the clips of it; nothing where none of it is pending.

        A chunk of which a part is done is decoded whole, unless what is pending cannot be read:
        else its batches would not be the ones of an undisturbed run.
        """
        waiting: list[tuple[Sequence[Job], dict[str, Future[Material | MerkitError]]]] = []
        for chunk in chunks:
            waiting.append((chunk, {job.key: self.read(job) for job in chunk if lacking(job)}))
            if len(waiting) > 1:
                yield self._finished(*waiting.pop(0))
        for chunk, futures in waiting:
            yield self._finished(chunk, futures)

    def _finished(
        self, chunk: Sequence[Job], futures: dict[str, Future[Material | MerkitError]]
    ) -> tuple[Sequence[Job], dict[str, Material | MerkitError]]:
        read = {key: future.result() for key, future in futures.items()}
        if any(isinstance(value, Material) for value in read.values()):
            rest = {job.key: self.read(job) for job in chunk if job.key not in read}
            read |= {key: future.result() for key, future in rest.items()}
        return chunk, read


def _chunk(
    chunk: Sequence[Job],
    read: dict[str, Material | MerkitError],
    extractor: Extractor,
    cache: FeatureCache,
    frames: bool,
    batch: int,
) -> Tally:
    """Computes what the cache lacks of a chunk, whole batches at a time."""
    tally = Tally()
    usable: list[tuple[Job, Material]] = []
    for job in chunk:
        value = read.get(job.key)
        if isinstance(value, MerkitError):
            tally.failed[job.key] = value.found
        elif value is not None and value.present:
            usable.append((job, value))
        elif value is not None:
            cache.write(job.key, None, value.problems)
    lengths = [extractor.length(material) for _, material in usable]
    for positions in batches(lengths, batch, extractor.padding):
        jobs, materials = zip(*(usable[i] for i in positions), strict=True)
        lacking = [not cache.has(job.key, frames) for job in jobs]
        if not any(lacking):
            continue
        features = _encode(extractor, jobs, materials, frames)
        for job, material, feature, lacks in zip(jobs, materials, features, lacking, strict=True):
            if lacks:  # what was known before keeps its last bits
                cache.write(job.key, feature, material.problems)
        own = [lengths[i] for i in positions]
        tally.computed += sum(lacking)
        tally.slots += len(own) * max(own)
        tally.filled += sum(own)
    return tally


def _encode(
    extractor: Extractor, jobs: Sequence[Job], materials: Sequence[Material], frames: bool
) -> list[Feature | None]:
    names = ", ".join(job.clip.name for job in jobs)
    try:
        features = extractor.encode(materials, frames)
    except MerkitError:
        raise
    except Exception as error:
        raise InferenceError.of(f"encoding {names}", error) from error
    for job, feature in zip(jobs, features, strict=True):
        if feature is not None and not np.isfinite(feature.utterance).all():
            raise InferenceError(
                f"the feature of {job.clip.name} is not finite",
                "finite numbers",
                "check the encoder's weights, or compute without bf16",
            )
    return features
