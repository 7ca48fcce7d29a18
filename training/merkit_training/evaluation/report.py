"""One call from a model and a labelled set to a folder with the report.

OUT/report.html  OUT/report.json  OUT/clips/NAME.html (the worst answers)  OUT/cache/
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merkit.errors import InvalidInputError, MerkitError
from merkit.pipeline import DECODED_IN
from merkit.report import Report
from merkit.results import Prediction
from merkit_training.data import ClipRecord
from merkit_training.evaluation.answers import Asks, Examiner
from merkit_training.evaluation.labelled import Item, LabelledSet
from merkit_training.evaluation.material import look
from merkit_training.evaluation.measure import Settings, measure
from merkit_training.evaluation.page import html
from merkit_training.evaluation.subject import Subject
from merkit_training.runs import write_bytes, write_json

PAGES = "clips"


def evaluate(
    subject: Subject,
    data: LabelledSet,
    out: Path,
    settings: Settings,
    *,
    clips: int = 0,
    hard: int = 200,
    workers: int = 2,
    examiner: Asks | None = None,
) -> dict[str, Any]:
    """Asks, measures and writes; returns the report's content.

    Args:
        subject: the model.
        data: the labelled clips.
        out: folder of the report; what an interrupted call left there is used.
        settings: seed, resamples, number of worst clips, columns.
        clips: at most so many clips, drawn at random; 0: all.
        hard: of these, so many are made harder for the robustness curves; 0: none.
        workers: clips at a time.
        examiner: asks in another way than by decoding clips; then worst clips have no page.

    Raises:
        InvalidInputError: the folder cannot be written, or a number is out of range.
        BackendError, BundleError: the model failed, other than on a clip.
    """
    _check(clips, hard, workers, settings)
    cache = _folder(out)
    items = data.sample(clips, settings.seed)
    chosen = LabelledSet(data.source, data.split, items, (), 0).sample(hard, settings.seed)
    asks = examiner or Examiner(subject, cache, settings.seed, workers)
    tried = chosen if hard else ()
    found = asks.examine(items, tried)
    report = measure(subject, data, items, tried, found, settings)
    pages = _pages(subject, report.get("worst", []), items, out) if examiner is None else {}
    write_json(out / "report.json", report)
    write_bytes(out / "report.html", html(report, pages).encode("utf-8", "replace"))
    asks.close()
    return report


def predict(subject: Subject, record: ClipRecord, source: str) -> Prediction:
    """The model's answer on one clip in full, with the frames in which faces were found."""
    backend, start = subject.client.backend, time.perf_counter()
    seen = look(record, backend.contract.preprocessing)
    entry = {k: v for k, v in seen.tensors.items() if k in DECODED_IN}
    timings = {"decode and faces": 1e3 * (time.perf_counter() - start)}
    outputs = backend.infer(entry, timings)
    timings["total"] = 1e3 * (time.perf_counter() - start)
    times = {float(t) for t in seen.faces.times}
    pairs = zip(seen.decoded.frame_times, seen.decoded.frames, strict=True)
    frames = {float(t): frame for t, frame in pairs if float(t) in times}
    identity = dict(backend.identity) | ({"notice": subject.notice} if subject.notice else {})
    return Prediction.from_outputs(
        {**seen.tensors, **outputs},
        backend.contract,
        source=source,
        transcript=record.text or None,
        timings_ms=timings,
        bundle=identity,
        frames={} if record.faces else frames,
    )


def _pages(
    subject: Subject, worst: Sequence[Mapping[str, Any]], items: Sequence[Item], out: Path
) -> dict[str, str]:
    """Writes a page for each of the worst clips; their addresses by name."""
    folder = out / PAGES
    shutil.rmtree(folder, ignore_errors=True)
    records = {item.record.name: item.record for item in items}
    pages = {}
    for row in worst:
        folder.mkdir(exist_ok=True)
        page = Report()
        title = f"{row['name']} (labelled {row['truth']})"
        try:
            page.add(title, predict(subject, records[row["name"]], title))
        except MerkitError as error:  # the clip may have gone meanwhile
            page.add(title, error)
        page.write(folder / f"{row['name']}.html")
        pages[row["name"]] = f"{PAGES}/{row['name']}.html"
    return pages


def _folder(out: Path) -> Path:
    cache = out / "cache"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(out, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise InvalidInputError(
            f"no report can be written to {out}", "a folder, new or writable", "choose another"
        )
    return cache


def _check(clips: int, hard: int, workers: int, settings: Settings) -> None:
    least = {
        "clips": (clips, 0),
        "robustness": (hard, 0),
        "workers": (workers, 1),
        "resamples": (settings.resamples, 1),
        "worst": (settings.worst, 0),
        "seed": (settings.seed, 0),
    }
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise InvalidInputError(f"{name} is {value}", f"{lowest} or more", "correct it")
