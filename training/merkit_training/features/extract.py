"""`merkit-train features` as a function: list, compute in one or many processes, write out.

Only computing is spread. Keys are made and files are written by one process from the cache, so
that one process, several under Accelerate and a Ray cluster leave the same bytes behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from merkit.errors import InvalidInputError, MerkitError
from merkit_training.data import ClipRecord
from merkit_training.features import mertools
from merkit_training.features.cache import FeatureCache
from merkit_training.features.clips import ClipList, Job, clip_key, to_jobs
from merkit_training.features.engine import DECODERS, Tally, chunked, compute
from merkit_training.features.extractor import EncoderSpec, Extractor, make_extractor
from merkit_training.features.report import ClipOutcome, Report, recorded_identity


@dataclass(frozen=True)
class Extraction:
    """What is asked for."""

    encoder: EncoderSpec
    out: Path  # folder of the feature folders
    name: str | None = None  # of the feature folders; None: the encoder's own
    frames: bool = False  # also features over time
    batch: int = 16  # clips at most; a file's last bits depend on it
    cache: Path | None = None  # None: out/cache
    skip_absent: bool = False  # no file where MERTools would write zeros

    @property
    def cache_folder(self) -> Path:
        """Where the cache lies."""
        return self.cache or self.out / "cache"


Compute = Callable[[Extraction, Extractor, Sequence[Sequence[Job]]], Tally]
"""How the chunks are computed; returns when all are in the cache."""


def extract(clips: ClipList, asked: Extraction, how: Compute | None = None) -> Report:
    """Extracts features of all clips and writes them below `asked.out`.

    Raises:
        InvalidInputError: no clips, or a folder that holds another encoder's features.
        and what `make_extractor` and `engine.compute` raise.
    """
    extractor = make_extractor(asked.encoder)
    name = check(clips, asked, extractor)
    started = time.monotonic()
    keys, failed, jobs = keyed(clips, extractor)
    tally = (how or alone)(asked, extractor, chunked(jobs))
    failed |= {clip: tally.failed[key] for clip, key in keys.items() if key in tally.failed}
    outcomes = write_out(clips, asked, extractor, name, keys, failed)
    seconds = time.monotonic() - started
    report = Report(
        name,
        asked.encoder.source,
        extractor.fingerprint,
        extractor.width,
        asdict(extractor.preprocessing),
        outcomes,
        clips.problems,
        {
            "seconds": round(seconds, 2),
            "computed": tally.computed,
            "clips_per_second": round(tally.computed / seconds, 2),
            "padding": round(tally.padding, 4),
        },
    )
    report.write(asked.out / f"{name}.json")
    return report


def check(clips: ClipList, asked: Extraction, extractor: Extractor) -> str:
    """The name of the feature folders, after refusing what cannot be done."""
    if not clips.clips:
        raise InvalidInputError(
            "there are no clips", "a folder of media files, or a data set", "check the path"
        )
    name = asked.name or extractor.name
    if not name or Path(name).name != name:
        raise InvalidInputError(f"the name {name!r} is no file name", "a plain name", "correct it")
    found = recorded_identity(asked.out / f"{name}.json")
    if found not in (None, extractor.fingerprint):
        raise InvalidInputError(
            f"{asked.out} holds features of another encoder under the name {name!r}",
            "one encoder under one name",
            "choose another --name or --out, or remove them",
        )
    return name


def keyed(
    clips: ClipList, extractor: Extractor
) -> tuple[dict[str, str], dict[str, str], list[Job]]:
    """Keys and errors by clip, and the jobs; see `clips.to_jobs`. Files are hashed ahead."""

    def attempt(clip: ClipRecord) -> str | MerkitError:
        try:
            return clip_key(clip, extractor)
        except MerkitError as error:
            return error

    with ThreadPoolExecutor(DECODERS) as pool:
        made = dict(zip((c.name for c in clips.clips), pool.map(attempt, clips.clips), strict=True))

    def key_of(clip: ClipRecord) -> str:
        value = made[clip.name]
        if isinstance(value, MerkitError):
            raise value
        return value

    return to_jobs(clips.clips, key_of)


def alone(asked: Extraction, extractor: Extractor, chunks: Sequence[Sequence[Job]]) -> Tally:
    """Computes in this process."""
    total = sum(map(len, chunks))
    with tqdm(total=total, desc="features", unit="clip", mininterval=1) as bar:
        return compute_share(asked, extractor, chunks, bar.update)


def compute_share(
    asked: Extraction,
    extractor: Extractor,
    chunks: Sequence[Sequence[Job]],
    progress: Callable[[int], object] = lambda _: None,
) -> Tally:
    """Computes some of the chunks, in whatever process."""
    cache = FeatureCache(asked.cache_folder)
    run = partial(compute, frames=asked.frames, batch=asked.batch)
    return run(chunks, extractor, cache, progress=progress)


def write_out(
    clips: ClipList,
    asked: Extraction,
    extractor: Extractor,
    name: str,
    keys: dict[str, str],
    failed: dict[str, str],
) -> dict[str, ClipOutcome]:
    """Writes each clip's files from the cache and says what became of it."""
    cache = FeatureCache(asked.cache_folder)
    outcomes: dict[str, ClipOutcome] = {}
    for clip in clips.clips:
        entry = None if clip.name in failed else cache.read(keys[clip.name], asked.frames)
        if entry is None:
            mertools.remove_feature(asked.out, name, clip.name)
            problem = failed.get(clip.name, "its cached feature vanished while it was extracted")
            outcomes[clip.name] = ClipOutcome("none", (problem,))
            continue
        feature = entry.feature
        if feature is None and asked.skip_absent:
            mertools.remove_feature(asked.out, name, clip.name)
            outcomes[clip.name] = ClipOutcome("none", entry.problems)
            continue
        shown = feature or mertools.zeros(extractor.width)
        mertools.write_feature(asked.out, name, clip.name, shown, asked.frames)
        outcomes[clip.name] = ClipOutcome("computed" if feature else "zeros", entry.problems)
    return outcomes
